"""For tests on a CUDA device: a stretch in which the host must not wait for it."""

import warnings
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting():
    """What makes the host wait for the device raises. A first call, which loads kernels, belongs before it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
