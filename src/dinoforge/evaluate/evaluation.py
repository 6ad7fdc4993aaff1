"""The interface of every evaluation: what it is asked of, and what measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dinoforge.base.config import Config
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.score import Score

Needs = Literal["classes", "clips", "gallery", "images", "asked", "masks", "depths"]
"""``classes``: labelled images to learn from, and others; ``clips``: the same of clips, each side ``Clips``; ``gallery``:
images to search, and queries; ``images``: any; ``asked``: images to be asked that bring what is true of them, of the split
for it where there is one; ``masks``: images with the class of every pixel to learn from, and others; ``depths``: with the
depth of every pixel."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The images of an evaluation; their labels and groups mean the same on both sides."""

    known: Source
    """What is learnt from, or searched, or looked at."""
    asked: Source
    """What is classified, or sought; the very same images as ``known`` where ``itself``."""
    itself: bool = False
    """Whether each image is sought among all others."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation."""

    config: type[Config]
    needs: Needs
    measure: Callable[..., list[Score]]
    """Of a frozen backbone (``Eyes``), the images (``Sides``) and the config; with ``heads`` also of ``save``, a folder."""
    check: Callable[[Sides, Any], object] | None = None
    """Raises where the images lack what it takes, or a setting does not go with them; looks at columns alone."""
    several: bool = False
    """Whether images may show several classes each (see ``several.py``)."""
    heads: bool = False
    """Whether a head is trained that can be kept: ``measure`` then takes ``save=``, the folder it is written to, or None."""
    images: tuple[str, ...] = ()
    """Settings that are addresses of further images."""
    files: tuple[str, ...] = ()
    """Settings that are files."""
    draws: Callable[[Any], bool] | None = None
    """Whether anything is drawn with a config; null: wherever it has a seed."""
    of_one_seed: tuple[str, ...] = ()
    """Settings that go with pictures of one seed, so not with ``seeds`` above 1."""
    once: bool = False
    """Whether features are not kept, so that to measure again without leaked images would take as long as the first time."""
