"""What a layout of weights is: how other code names and arranges the tensors of a vision transformer, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dinoforge.model.vit import VitConfig


@dataclass(frozen=True, slots=True)
class Parsed:
    """A backbone out of another layout. Names that the layout does not have are kept as they were, to be told of."""

    config: VitConfig
    state: dict[str, Tensor]
    """Under our names."""
    dropped: dict[str, str] = field(default_factory=dict)
    """What is left out on purpose: their name, and why."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A backbone in another layout."""

    tensors: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)
    """What the layout has no place for: our name, and why nothing else is lost by it."""
    settings: dict[str, Any] | None = None
    """What lies beside the tensors in ``config.json``; None where a layout has no such file."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to name and arrange the tensors of a vision transformer."""

    name: str
    format: str
    """The word for it in ``to=`` of convert; layouts of one format differ in what they hold."""
    positions: Literal["table", "rope"]
    """Of the backbones that it holds."""
    knows: Callable[[Mapping[str, Tensor]], bool]
    """Whether these are its names."""
    parse: Callable[[Mapping[str, Tensor], Mapping[str, Any] | None, str], Parsed]
    """From tensors, ``config.json`` where there is one, and the name of the file for messages."""
    compose: Callable[[VitConfig, Mapping[str, Tensor]], Composed]
    """From our settings and tensors."""


TRAINING_ONLY = "used in training alone"


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A dotted name with its longest known beginning replaced; one that begins otherwise stays."""
    for old in sorted(names, key=len, reverse=True):
        if name == old or name.startswith(old + "."):
            return names[old] + name[len(old) :]
    return name


def backwards(names: Mapping[str, str]) -> dict[str, str]:
    """The same names the other way."""
    return {new: old for old, new in names.items()}


def joined(parts: Mapping[int, Tensor], count: int) -> Tensor:
    """Parts one below the other; one that is absent is zero."""
    some = next(iter(parts.values()))
    return torch.cat([parts.get(place, torch.zeros_like(some)) for place in range(count)])
