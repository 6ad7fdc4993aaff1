"""What a target of ``export`` is, and what it says of itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.model.features import Features
from dinoforge.model.weights import Backbone


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    backbone: Backbone
    """As the target computes it by its own rules; the one that was given where nothing differs."""
    differs: list[str] = field(default_factory=list)
    """What the target does otherwise, in words."""
    dropped: list[str] = field(default_factory=list)
    """What it has no place for, each with its reason."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """What was written, opened again."""

    features: Callable[[Tensor], Features]
    """Of normalised images."""
    runtime: str
    """What computes them, with its version."""
    compared: bool = True
    """Whether that is the target's own runtime."""
    notes: tuple[str, ...] = ()
    """What else was seen."""
    half: bool = True
    """Whether it can be run in bfloat16 too, and does not hold its precision itself."""


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime that a backbone goes out to."""

    title: str
    """Its name in a sentence."""
    needs: tuple[str, ...]
    """Modules without which nothing can be written."""
    install: str
    """What to call where one is absent."""
    bound: float
    """Features may differ by so much of their greatest value, in float32."""
    library: str
    """In the model card's head, as model hubs name it."""
    usage: str
    """How to open it: Python, run in the folder."""
    refuse: Callable[[Backbone], None]
    """Raise a ``WeightsError`` for what it cannot express."""
    write: Callable[[Path, Backbone], Written]
    """Fill an empty folder."""
    reopen: Callable[[Path, Written], Reopened]
    """Open the folder again. Damage is a ``WeightsError``."""


def able(name: str, target: Target) -> None:
    """Refuse where something that writing needs is not installed.

    Raises:
        ConfigError: It is.
    """
    absent = [module for module in target.needs if not installed(module)]
    if absent:
        raise ConfigError(f"to={name} needs {', '.join(absent)}, not installed here: {target.install}")


def installed(module: str) -> bool:
    """Whether a module can be imported, by its name."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a module without a place on disk
        return False


def transformer(name: str, backbone: Backbone) -> None:
    """Refuse what is no vision transformer of ours.

    Raises:
        WeightsError: It is none.
    """
    kind = getattr(backbone.config, "kind", None)
    if kind != "vit":
        raise WeightsError(f"to={name} takes vision transformers of dinoforge; this backbone is a {kind}.")
