"""The interface of every evaluation: what it is asked of, and what measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dinoforge.base.config import Config
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.score import Score
from dinoforge.features.eyes import Eyes

Needs = Literal["classes", "gallery", "images"]
"""``classes``: labelled images to learn from, and others; ``gallery``: images to search, and queries; ``images``: any."""


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
    measure: Callable[[Eyes, Sides, Any], list[Score]]
    """Of a frozen backbone, the images and the config."""
    several: bool = False
    """Whether images may show several classes each (see ``several.py``)."""
    once: bool = False
    """Whether features are not kept, so that to measure again without leaked images would take as long as the first time."""
