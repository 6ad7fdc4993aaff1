"""The classes that labelled images are of, numbered from 0 for those who learn them.

Axes: N images, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.data.sources.source import Source

_NAMED = 5
"""Classes that an error names."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of the images that are learnt from."""

    labels: Int[np.ndarray, " C"]
    """The number of each class in the sources, rising; a class's place here is its column in a table of scores."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, source: Source) -> Int[Tensor, " N"]:
        """The place of every image's class; every image must be of one of them."""
        return torch.from_numpy(np.searchsorted(self.labels, source.columns["label"]))


def classes_of(known: Source, asked: Source) -> Classes:
    """The classes of ``known``, of which every image of ``asked`` must be too; ``asked`` may lack some.

    Raises:
        DataError: One class alone; or ``asked`` has classes that ``known`` lacks, or other names for them.
    """
    for source in (known, asked):
        if "label" not in source.columns:
            raise DataError(
                f"{source.address} has no class for each image; where an image shows several, take tasks=logistic."
            )
    theirs, ours = _names(asked), _names(known)
    if len(ours) < 2:
        raise DataError(
            f"{known.address} has one class, {next(iter(ours.values()))}; to be told apart there must be two."
        )
    new = [name for label, name in theirs.items() if label not in ours]
    if new:
        raise DataError(f"{asked.address} has classes that {known.address} lacks: {_listed(new)}.")
    renamed = [f"{label} is {ours[label]} and {name}" for label, name in theirs.items() if ours[label] != name]
    if renamed:
        raise DataError(f"Classes of {known.address} and {asked.address} differ: {_listed(renamed)}.")
    return Classes(np.asarray(list(ours)), tuple(ours.values()))


def told_apart(names: Sequence[str], labels: Sequence[int]) -> tuple[str, ...]:
    """The same names; behind one that several classes have stands the class's number (ImageNet has two cranes)."""
    many = Counter(names)
    return tuple(name if many[name] == 1 else f"{name} ({label})" for name, label in zip(names, labels, strict=True))


def _names(source: Source) -> Mapping[int, str]:
    """The name of every class by its number, rising."""
    labels, first = np.unique(source.columns["label"], return_index=True)
    names = source.columns.get("label_name")
    return {
        int(label): str(label) if names is None else str(names[row]) for label, row in zip(labels, first, strict=True)
    }


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
