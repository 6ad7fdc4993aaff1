"""The film strip: the same images at several steps, as small pictures for the page.

Axes: F frames, Q queries, H by W patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Integer, UInt8

from dinoforge.features.parts import BACKGROUND, maps
from dinoforge.report.attention import heat
from dinoforge.report.film import Cast, Frame

COLUMNS = 6
"""Steps that are shown at most."""

Colours = UInt8[np.ndarray, "Q H W 3"]


@dataclass(frozen=True, slots=True)
class Strip:
    """Maps of the queries, a column a step."""

    steps: list[int]
    parts: list[UInt8[np.ndarray, "Q _ _ 3"]]
    """PCA colours for every step; a phase at another resolution has more patches."""
    attention: list[UInt8[np.ndarray, "Q _ _ 3"]]


def strip(frames: Sequence[Frame]) -> Strip:
    """The strip of at most ``COLUMNS`` frames: the first, the last, and evenly between."""
    places = np.unique(np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).round().astype(np.int64))
    chosen = [frames[place] for place in places]
    parts = [maps(torch.from_numpy(frame.patches).float()) for frame in chosen]
    # From the last back, each takes the colours of the one after it: what stays the same part keeps its colour.
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].shape == parts[place + 1].shape:
            parts[place] = recoloured(parts[place], parts[place + 1])
    looks = [heat(torch.from_numpy(frame.attention).float()) for frame in chosen]
    return Strip([frame.step for frame in chosen], parts, looks)


def recoloured(colours: Colours, like: Colours) -> Colours:
    """The same map with its three directions reordered and turned so that they correlate best with another's.

    Order and sign of principal components mean nothing, so nothing is lost. Only patches that are foreground in both count.
    """
    mine, theirs = (c.reshape(-1, 3).astype(np.float64) for c in (colours, like))
    front = (mine != BACKGROUND).any(1)
    both = front & (theirs != BACKGROUND).any(1)
    if both.sum() < 4:
        return colours
    a, b = (c[both] - c[both].mean(0) for c in (mine, theirs))
    size = np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    agreement = a.T @ b / np.maximum(size, 1e-12)
    orders = [np.asarray(order) for order in permutations(range(3))]
    order = max(orders, key=lambda p: float(np.abs(agreement[p, range(3)]).sum()))
    turned = np.asarray([agreement[order[k], k] < 0 for k in range(3)])
    moved = mine[:, order]
    moved = np.where(turned, 255 - moved, moved)
    return np.where(front[:, None], moved, mine).astype(np.uint8).reshape(colours.shape)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One neighbour of a query."""

    row: int
    """In the gallery."""
    same: bool | None
    """Whether it is of the query's class; None without labels."""


def neighbours(cast: Cast, nearest: Integer[np.ndarray, "Q K"]) -> list[list[Neighbour]]:
    """The neighbours of every query, nearest first."""
    labels = cast.labels

    def one(query: int, row: int) -> Neighbour:
        return Neighbour(row, bool(labels[query] == labels[row]) if labels[query] else None)

    return [[one(query, int(row)) for row in rows] for query, rows in enumerate(nearest)]
