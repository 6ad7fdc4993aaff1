"""In which order images are seen: a permutation a pass, computed, never stored, so any position can be asked for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt64

from dinoforge.base.random import key

_ROUNDS = 6


def rows_at(
    positions: Int[np.ndarray, " n"], *, images: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Row and pass of every position in the endless stream that goes through all ``images`` in a new order each pass."""
    passes, places = np.divmod(positions.astype(np.int64), images)
    rows = np.empty_like(places)
    for number in np.unique(passes):
        here = passes == number
        rows[here] = permute(places[here], images=images, seed=key(seed, "order", int(number)))
    return rows, passes


def permute(places: Int[np.ndarray, " n"], *, images: int, seed: int) -> Int[np.ndarray, " n"]:
    """Where a pseudo-random permutation of ``range(images)`` sends the given places.

    A balanced Feistel network on the next power of four (Luby & Rackoff 1988); what falls outside walks on until it falls
    inside (Black & Rogaway 2002), so it is a bijection for every number of images, without a table.
    """
    half = max(1, ((images - 1).bit_length() + 1) // 2)
    keys = [np.uint64(key(seed, "round", number)) for number in range(_ROUNDS)]
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        found[outside] = _network(found[outside], half, keys)
        outside = found >= images
    return found.astype(np.int64)


def _network(values: UInt64[np.ndarray, " n"], half: int, keys: list[np.uint64]) -> UInt64[np.ndarray, " n"]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for round_key in keys:
        left, right = right, left ^ (_mix(right + round_key) & mask)
    return (left << bits) | right


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
