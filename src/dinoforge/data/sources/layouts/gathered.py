"""Rows of a published set as its lists name them, checked one by one, as a source.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.paths import Paths, stamps_of

_AS_TEXT = ("group_name",)


class Gathered:
    """Rows in the order in which they were added.

    Args:
        classes: Names of the classes in the order of their numbers, or how many there are; None: the set has no labels.
        first: The number that the set gives to its first class.
    """

    def __init__(self, folder: Folder, classes: Sequence[str] | int | None = None, *, first: int = 0) -> None:
        self._folder, self._first = folder, first
        self._names = None if classes is None or isinstance(classes, int) else list(classes)
        self._count = classes if isinstance(classes, int) else len(self._names or ())
        self._number = {name: number for number, name in enumerate(self._names or ())}
        self._rows: dict[str, int] = {}
        self._splits: list[str] = []
        self._labels: list[int] = []
        self._facts: dict[str, dict[int, Any]] = {}
        self._truths: dict[str, dict[int, str]] = {}
        self._missing: list[tuple[str, str]] = []

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._count

    def add(
        self, file: str, *, by: str, split: str, label: str | int | None = None, labelled_by: str = "",
        **facts: Any,
    ) -> None:  # fmt: skip
        """One more row.

        Args:
            file: Its image, relative to the folder; the id of the row.
            by: The list that names it, for messages.
            label: The number that the set gives to its class, or the name; None: unknown.
            labelled_by: The list that gives the label, where that is another.
            facts: Other columns: whole numbers and texts.

        Raises:
            DataError: The file was named before, or there is no such class.
        """
        row = len(self._splits)
        if self._rows.setdefault(file, row) != row:
            raise self._folder.error(by, f"names {file}, which is named already")
        self._there(file, by)
        self._splits.append(split)
        self._labels.append(-1 if label is None else self._class(label, file, labelled_by or by))
        for name, value in facts.items():
            self._facts.setdefault(name, {})[row] = value

    def add_truth(self, name: str, file: str, *, by: str) -> None:
        """The ``mask`` or ``depth`` of the row that was added last.

        Args:
            file: Its map, relative to the folder.
            by: The list that names it, for messages.
        """
        self._truths.setdefault(name, {})[len(self._splits) - 1] = file
        self._folder.used.add(file)
        self._there(file, by)

    def _there(self, file: str, by: str) -> None:
        if file not in self._folder.names:
            self._missing.append((file, by))

    def _class(self, label: str | int, file: str, by: str) -> int:
        number = self._number.get(label, -1) if isinstance(label, str) else label - self._first
        if not 0 <= number < self._count:
            known = f"its {self._count:,} classes" + (
                "" if isinstance(label, str) else f" are numbered from {self._first}"
            )
            raise self._folder.error(by, f"gives {file} the class {label!r}; {known}")
        return number

    def source(self) -> Paths:
        """The rows as a source.

        Raises:
            DataError: No row, or files that are not there.
        """
        self.check()
        folder = self._folder
        return Paths(
            shown(folder.address), folder.address, np.asarray([*self._rows], dtype=np.str_), columns=self.columns(),
            options=folder.options, stamps=stamps_of(folder.stamps, [*self._rows]),
            truths={
                name: np.asarray([held.get(row, "") for row in range(len(self._splits))], dtype=np.str_)
                for name, held in self._truths.items()
            },
        )  # fmt: skip

    def check(self) -> None:
        """Refuse lists that name nothing, or files that are not there.

        Raises:
            DataError: They do.
        """
        if self._missing:
            file, by = self._missing[0]
            more = f" (and {len(self._missing) - 1:,} more)" if len(self._missing) > 1 else ""
            raise self._folder.error(by, f"names {file}{more}, which is not there")
        if not self._rows:
            raise self._folder.error("", "holds no image that its lists name")

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of the rows; see ``Source``. Texts beyond the usual ones are objects, for few rows have long ones."""
        found = {
            "id": np.asarray([*self._rows], dtype=np.str_),
            "split": np.asarray(self._splits, dtype=np.str_),
        }
        if self._count:
            found["label"] = np.asarray(self._labels, dtype=np.int64)
        if self._names:
            found["label_name"] = np.asarray([*self._names, ""], dtype=np.str_)[found["label"]]
        return found | {name: self._column(name, values) for name, values in self._facts.items()}

    def _column(self, name: str, values: Mapping[int, Any]) -> np.ndarray:
        number = isinstance(next(iter(values.values())), int)
        column: np.ndarray = np.full(len(self._splits), -1 if number else "", dtype=np.int64 if number else object)
        for row, value in values.items():  # not as a whole: that makes every text as long as the longest one on the way
            column[row] = value
        return column.astype(np.str_) if name in _AS_TEXT else column
