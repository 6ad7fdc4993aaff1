"""Ids and labels of a collection as columns, to look for images by them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dinoforge.explore.collection import Collection


@dataclass(frozen=True, slots=True)
class LabelCount:
    """A label and how many images have it."""

    label: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Columns of N images."""

    ids: np.ndarray
    labels: np.ndarray
    """Name of the label, its number where it has none, empty where there is no label."""
    counts: tuple[LabelCount, ...]
    """The most frequent first."""

    @classmethod
    def of(cls, collection: Collection) -> Names:
        """Those of a collection."""
        columns = collection.source.columns
        labels = np.full(len(collection), "")
        if "label" in columns:
            labels = np.where(columns["label"] >= 0, columns["label"].astype(np.str_), "")
        if "label_name" in columns:
            labels = np.where(columns["label_name"] != "", columns["label_name"], labels)
        names, counts = np.unique(labels[labels != ""], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return cls(columns["id"], labels, tuple(LabelCount(str(names[n]), int(counts[n])) for n in order))

    def rows(self, *, label: str | None, find: str | None) -> Int[np.ndarray, " n"]:
        """Rows with that label whose id holds that text, in order."""
        wanted = np.ones(len(self.ids), bool)
        if label is not None:
            wanted &= self.labels == label
        if find is not None:
            wanted &= np.char.find(self.ids, find) >= 0
        return np.flatnonzero(wanted)
