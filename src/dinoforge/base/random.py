"""Random numbers as pure functions of (seed, purpose, counters): nothing is advanced, saved or shared.

The counters say *which* draw: an image's index and its pass, a group's number, a view. Never a rank, a worker or a step
counted since start, so that an interrupted run goes on with the same numbers on any number of devices.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit number that identifies one draw; other seeds, purposes or counters give unrelated numbers."""
    packed = struct.pack(f"<{1 + len(counters)}q", seed, *counters)
    digest = hashlib.blake2b(packed + purpose.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for one draw (Philox, which starts anywhere at no cost)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *counters)))


def torch_generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A torch generator on the CPU for one draw."""
    return torch.Generator().manual_seed(key(seed, purpose, *counters))
