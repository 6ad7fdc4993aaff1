"""A folder in the form that a data set was published in: the names of its files, and its ground truth read whole."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.decode import SUFFIXES
from dinoforge.data.picture import first_line
from dinoforge.data.sources.layouts.unpickled import unpickled
from dinoforge.data.sources.options import Options, shown
from dinoforge.data.sources.paths import joined, read, storage
from dinoforge.data.sources.storage import Found, on_opening

_MOST_CLASSES = 1_000_000
_MOST_NUMBERS = 100_000_000  # in a MATLAB file, which is compressed: a few bytes may stand for all memory
_MOST_BYTES = 1 << 30


class Folder:
    """What a form is recognised and read by. Every file that is read for its ground truth is noted in ``used``."""

    def __init__(self, address: str, found: Found, options: Options) -> None:
        self.address, self.files, self.options = address, found.names, options
        self.stamps = found.stamps
        self.used: set[str] = set()

    @cached_property
    def names(self) -> frozenset[str]:
        """Relative paths of all files."""
        return frozenset(self.files)

    @cached_property
    def top(self) -> frozenset[str]:
        """Names of the folders in the root."""
        return frozenset(name.partition("/")[0] for name in self.files if "/" in name)

    @property
    def own_name(self) -> str:
        """What the folder itself is called."""
        return self.address.rstrip("/").rpartition("/")[2]

    def holds_only(self, own: re.Pattern[str]) -> bool:
        """Whether the paths of all images begin in this way."""
        return all(own.match(name) for name in self.ending(SUFFIXES))

    def ending(self, suffixes: frozenset[str]) -> Iterator[str]:
        """The paths of files that end in one of these suffixes, in small letters or large ones."""
        return (name for name in self.files if f".{name.rpartition('.')[2].lower()}" in suffixes)

    def has(self, *names: str) -> bool:
        """Whether all these files are there."""
        return self.names.issuperset(names)

    def first(self, *names: str) -> str:
        """The first of these files that is there.

        Raises:
            DataError: None is.
        """
        there = next((name for name in names if name in self.names), None)
        if there is None:
            raise DataError(f"{shown(self.address)} does not hold {' or '.join(names)}, which its published form has.")
        return there

    def firsts(self, form: re.Pattern[str]) -> dict[str, str]:
        """The first file of that form for everything that its group may be: the list of each split, say."""
        found: dict[str, str] = {}
        for name in self.files:
            match = form.fullmatch(name)
            if match:
                found.setdefault(match.group(1), name)
        return found

    def prefix(self, paths: Iterable[str]) -> str:
        """The folder, with its slash, in which the paths of a list begin, told by the first of them that is anywhere."""
        wanted = {*paths}
        if not wanted.isdisjoint(self.names):
            return ""
        for name in self.files:
            head, tail = "", name
            while tail:
                if tail in wanted:
                    return head
                part, _, tail = tail.partition("/")
                head += f"{part}/"
        return ""

    def error(self, name: str, why: str) -> DataError:
        """The error of a file of ground truth."""
        return DataError(f"{shown(joined(self.address, name))} {why}; ?layout=none reads the folder without its lists.")

    def content(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            DataError: It is not there or cannot be read.
        """
        self.first(name)
        self.used.add(name)
        with on_opening(joined(self.address, name)):
            return read(self.address, name, self.options)

    def lines(self, name: str) -> list[str]:
        """The lines of a text that are neither blank nor begin with ``#``, without the blanks around them.

        Raises:
            DataError: It is no UTF-8 text.
        """
        try:
            text = self.content(name).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise self.error(name, "is no UTF-8 text") from None
        lines = (line.strip() for line in text.split("\n"))
        return [line for line in lines if line and not line.startswith("#")]

    def rows(self, name: str, *, fields: int, mark: str | None = None) -> Iterator[list[str]]:
        """The fields of every line, the last one with all that is left of it.

        Args:
            mark: What stands between two fields; blanks by default.

        Raises:
            DataError: A line has fewer.
        """
        for line in self.lines(name):
            parts = line.split(mark, fields - 1)
            if len(parts) < fields:
                raise self.error(name, f"has the line {line[:80]!r}, which takes {fields} fields")
            yield parts

    def whole(self, name: str, text: Any) -> int:
        """A whole number that stands in a file.

        Raises:
            DataError: It is none.
        """
        try:
            number = int(text)
            if (isinstance(text, str) or number == text) and abs(number) < 1 << 63:
                return number
        except (TypeError, ValueError, OverflowError):
            pass
        seen = (
            repr(str(text)[:40])
            if isinstance(text, (str, float, np.number))
            else f"a value of type {type(text).__name__}"
        )
        raise self.error(name, f"has {seen} where it takes a whole number")

    def class_number(self, name: str, text: Any) -> int:
        """The number of a class that stands in a file.

        Raises:
            DataError: It is no whole number, or so great that the names of all classes below it would fill the memory.
        """
        number = self.whole(name, text)
        if number >= _MOST_CLASSES:
            raise self.error(name, f"has a class of number {number:,}; they are below {_MOST_CLASSES:,}")
        return number

    def entries(self, name: str, *needed: str, within: str | None = None) -> list[dict[str, Any]]:
        """The objects of a list in a JSON file, each with the keys that are needed.

        Args:
            within: Key of the list; the file is the list itself by default.

        Raises:
            DataError: It is no JSON, or holds something else.
        """
        held = self.json(name)
        held = held.get(within) if within and isinstance(held, dict) else held
        at = f"in {within!r} " if within else ""
        if not isinstance(held, list) or not all(isinstance(one, dict) for one in held):
            raise self.error(name, f"holds no list of objects {at}".rstrip())
        for one in held:
            lost = next((key for key in needed if key not in one), None)
            if lost is not None:
                raise self.error(name, f"has an object {at}without {lost!r}")
        return held

    def json(self, name: str) -> Any:
        """What a JSON file holds; one that was read last is not read again.

        Raises:
            DataError: It is no JSON.
        """
        if getattr(self, "_json", (None,))[0] != name:
            try:
                self._json = name, json.loads(self.content(name))
            except (ValueError, RecursionError) as error:
                raise self.error(name, f"is no JSON: {first_line(error)}") from None
        return self._json[1]

    def pickled(self, name: str, *needed: str) -> dict[str, Any]:
        """The mapping in a Python pickle, read without running any code, its keys as texts.

        Raises:
            DataError: It holds something else than plain data, or lacks a key.
        """
        try:
            held = unpickled(self.content(name))
        except DataError as error:
            raise self.error(name, str(error)) from None
        if not isinstance(held, Mapping):
            raise self.error(name, "holds no mapping")
        named = {(key.decode("latin1") if isinstance(key, bytes) else str(key)): value for key, value in held.items()}
        self._needed(name, named, needed)
        return named

    def mat(self, name: str, *needed: str) -> dict[str, Any]:
        """The variables of a MATLAB file (versions 4 to 7).

        Raises:
            DataError: It is none, damaged, of version 7.3 (HDF5), too large, or lacks a variable.
        """
        import scipy.io

        self.first(name)
        address = joined(self.address, name)
        with on_opening(address):
            size, _ = storage(address, self.options).stamp(address)
        if size > _MOST_BYTES:
            raise self.error(name, f"has {size:,} bytes; of a MATLAB file {_MOST_BYTES:,} are read")
        content = self.content(name)
        if b"MATLAB 7.3" in content[:128]:
            raise self.error(name, "is a MATLAB 7.3 file (HDF5), which is not read; save it with -v7")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held = sum(math.prod(map(int, shape)) for _, shape, _ in scipy.io.whosmat(io.BytesIO(content)))
                if held > _MOST_NUMBERS:
                    raise ValueError(f"it holds {held:,} numbers, more than {_MOST_NUMBERS:,}")
                found = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=True)
        except Exception as error:  # scipy raises whatever comes up on damaged files
            raise self.error(name, f"cannot be read as a MATLAB file: {first_line(error)}") from None
        self._needed(name, found, needed)
        return dict(found)

    def fields(self, name: str, variable: str, *needed: str) -> list[np.ndarray]:
        """The fields of an array of structures in a MATLAB file, one value a structure.

        Raises:
            DataError: As ``mat``, or the variable is no such array or lacks a field.
        """
        held = np.atleast_1d(self.mat(name, variable)[variable])
        self._needed(name, held.dtype.names or (), needed)
        return [held[field].ravel() for field in needed]

    def _needed(self, name: str, held: Any, needed: Sequence[str]) -> None:
        lost = next((key for key in needed if key not in held), None)
        if lost is not None:
            raise self.error(name, f"holds no {lost!r}")
