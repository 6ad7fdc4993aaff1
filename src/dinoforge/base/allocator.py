"""The C library's way with freed memory."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def keep_freed_memory() -> None:
    """Have the C library of Linux keep memory that was freed for the next tensor, for as long as this process lives.

    Otherwise it gives every large block back to the system and gets it anew, page by page, which the system clears first: up
    to a third of a training step on two cores. Where there is no ``mallopt`` (macOS, musl) nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
