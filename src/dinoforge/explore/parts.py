"""Patches as colours, and which patches of two pictures belong together; see ``features/parts.py`` and ``matching.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinoforge.explore.answers import Asked, Shown
from dinoforge.explore.collection import Collection
from dinoforge.features.matching import MatchConfig, match
from dinoforge.features.parts import foreground, maps


@dataclass(frozen=True, slots=True)
class Parts:
    """The patches of one picture as colours, line after line from the top."""

    image: Shown
    colours: tuple[tuple[str, ...], ...]
    """``#rrggbb`` of every patch, ``[H][W]``; the background is dark grey."""
    foreground: tuple[tuple[bool, ...], ...]
    """Whether it belongs to what the picture shows, ``[H][W]``."""


@dataclass(frozen=True, slots=True)
class Line:
    """Two patches that belong together: the middles of both, x and y in shares of the own picture."""

    first: tuple[float, float]
    second: tuple[float, float]
    similarity: float
    """Cosine."""
    salience: float
    """By how much it is above that of the best other place in either picture."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Two pictures and the lines between them, most salient first."""

    first: Shown
    second: Shown
    lines: tuple[Line, ...]


def coloured(collection: Collection, asked: Sequence[Asked]) -> list[Parts]:
    """The patches of several pictures as colours, equal parts in equal ones: three main directions of their common foreground.

    Raises:
        ConfigError: No such row.
        DataError: A picture cannot be read.
    """
    patches = torch.stack([_patches(collection, one) for one in asked])
    front = foreground(patches)
    colours = maps(patches, front)
    return [
        Parts(
            collection.about(one),
            tuple(tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in line) for line in picture.tolist()),
            tuple(tuple(line) for line in mask.tolist()),
        )
        for one, picture, mask in zip(asked, colours, front, strict=True)
    ]


def matching(collection: Collection, first: Asked, second: Asked, *, lines: int = 16) -> Matching:
    """The most salient mutual nearest neighbours among the patches of two pictures, at most ``lines``.

    Raises:
        ConfigError: No such row.
        DataError: A picture cannot be read.
    """
    found = match(_patches(collection, first), _patches(collection, second), config=MatchConfig(matches=lines))
    sides = (_middles(places, collection.grid) for places in (found.first, found.second))
    drawn = zip(*sides, found.similarity.tolist(), found.salience.tolist(), strict=True)
    return Matching(collection.about(first), collection.about(second), tuple(Line(*line) for line in drawn))


def _patches(collection: Collection, asked: Asked) -> Tensor:
    return torch.from_numpy(collection.see(asked).patches)


def _middles(places: Tensor, grid: tuple[int, int]) -> list[tuple[float, float]]:
    tall, wide = grid
    return [((x + 0.5) / wide, (y + 0.5) / tall) for y, x in places.tolist()]
