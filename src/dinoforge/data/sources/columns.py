"""From the columns of any table to those that every source uses, whole columns at a time.

Axes: N rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from dinoforge.base.errors import ConfigError, DataError, closest
from dinoforge.data.sources.numbers import numbered
from dinoforge.data.sources.options import Options, shown

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "gallery": "gallery", "query": "query"}  # fmt: skip
"""Names of files and folders that are splits."""
TEXTS = ("split", "clip", "variant", "pose", "copy_of", "easy", "hard", "junk", "labels", "difficult", "real", "keypoints",
         "box", "pairs", "depth_unit")  # fmt: skip
"""Columns of texts that any table may have; an unknown one is empty. ``pose`` is a matrix written as text, ``copy_of`` the id
of an image's original; ``easy``, ``hard`` and ``junk`` are ids of other images, a line each, for retrieval; ``labels`` names of
classes, a line each, where an image shows several, ``difficult`` those that do not count, ``real`` numbers of classes;
``keypoints`` where some points are, ``box`` where the object is, ``pairs`` which points of another image are the same, all
three as JSON, see ``evaluate/keypoints.py``; ``depth_unit`` is what the numbers of its depth are."""
MARKS = ("x_robots_tag", "robots", "robots_meta", "noai", "noimageai")
"""Columns, in any case and with any marks between the words, in which crawlers keep what an owner says of use by machines."""
_PART = re.compile(r"([A-Za-z]+)[-_.]?\d[-_.\d]*(?:of[-_.]?\d+)?")
"""A file that is one of several: train-00000-of-00004, val_3."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the rows of a table."""

    columns: dict[str, np.ndarray]
    by_name: frozenset[str]
    """See ``Source.by_name``."""


def known_columns(
    table: Any, where: str, *, options: Options, names: np.ndarray | None = None, called: str = ""
) -> Known:  # fmt: skip
    """The columns of a table (pyarrow) under the names that every source uses.

    Args:
        where: The table's address, for messages.
        names: Of the rows, where the table has none; ``called:row`` by default.

    Raises:
        DataError: Labels or groups that are neither whole numbers nor texts, or an ``id=`` that does not name every row once.
        ConfigError: A column that was asked for is not there.
    """
    _check_names(table.column_names, where, options)
    found = {"id": _names(table, where, options, names, called)}
    for column, own in (("label", options.label or "label"), ("group", options.group or "group")):
        if own in table.column_names:
            found |= _classes(table[own], column, f"{where} column {own!r}")
    by_name = {column for column in ("label", "group") if f"{column}_name" in found}
    for text, own in (named_like(options) | {column: column for column in TEXTS}).items():
        if own in table.column_names and text not in found and is_plain(table[own].type):
            found[text] = texts(table[own])
    if "split" in found:
        found["split"] = _usual(found["split"])
    found |= _origin(table, found["id"])
    for column in ("label", "group"):
        if f"{column}_name" in found and column not in found:  # names alone are numbered too
            found[column] = numbered(found[f"{column}_name"])
            by_name.add(column)
    return Known(found | _numbers(table, where), frozenset(by_name))


def refuse_doubles(names: Sequence[str], where: str) -> None:
    """Refuse a table in which a name says nothing.

    Raises:
        DataError: Two columns have one name.
    """
    double = next((name for name, count in Counter(names).items() if count > 1), None)
    if double is not None:
        raise DataError(f"{where} has two columns {double!r}; every column takes a name of its own.")


def _check_names(names: Sequence[str], where: str, options: Options) -> None:
    refuse_doubles(names, where)
    for asked in (options.label, options.group, options.id):
        if asked is not None and asked not in names:
            raise ConfigError(f"{where} has no column {asked!r}.{closest(asked, names)}")


def _usual(splits: np.ndarray) -> np.ndarray:
    """Splits by their usual names: ``training`` is train, ``validation`` val."""
    names, number = np.unique(splits, return_inverse=True)
    return np.asarray([SPLITS.get(name.lower(), name) for name in names.tolist()], dtype=np.str_)[number]


def _origin(table: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Where rows come from and what their owners say of it: ``url`` where the ids do not say it, and ``robots``, the marks
    of X-Robots-Tag, of the robots meta tag and of columns ``noai``, joined by commas."""
    found = {}
    if "url" in table.column_names and is_plain(table["url"].type):
        url = np.asarray([shown(text) for text in texts(table["url"]).tolist()], dtype=np.str_)
        if not np.array_equal(url, ids):
            found["url"] = url
    for name in table.column_names:
        plain = re.sub(r"[^a-z]+", "_", name.lower())
        if plain in MARKS and is_plain(table[name].type):
            marks = _marks(table[name], plain)
            found["robots"] = np.char.add(np.char.add(found["robots"], ","), marks) if "robots" in found else marks
    return found


def _marks(column: Any, name: str) -> np.ndarray:
    """A column's marks as texts; one that says yes or no under the name of a mark is that mark or nothing."""
    found = texts(column)
    if name in {"noai", "noimageai"}:
        said = np.char.lower(found)
        found = np.where(np.isin(said, ["true", "yes", "y", "1", "1.0"]), name, found)
        found = np.where(np.isin(said, ["false", "no", "n", "0", "0.0"]), "", found)
    return found


def _numbers(table: Any, where: str) -> dict[str, np.ndarray]:
    """A clip's frame, and how often to see a row relative to the others."""
    found = {}
    if "frame" in table.column_names and pa.types.is_integer(table["frame"].type):
        found["frame"] = _whole(table["frame"], f"{where} column 'frame'")
    if "weight" in table.column_names:
        held = table["weight"].type
        if pa.types.is_integer(held) or pa.types.is_floating(held):
            found["weight"] = np.asarray(table["weight"].cast(pa.float64()).to_numpy())
    return found


def named_like(options: Options) -> dict[str, str]:
    """Which columns hold the names that go with the numbers: label_name, or coarse_name with coarse_label."""
    own = {}
    for column, chosen in (("label", options.label), ("group", options.group)):
        asked = chosen or column
        replaced = asked != column and column in asked
        own[f"{column}_name"] = asked.replace(column, "name") if replaced else f"{asked}_name"
    return own


def _names(table: Any, where: str, options: Options, names: np.ndarray | None, called: str) -> np.ndarray:
    """What the rows are called: by the table where it names each once."""
    own = options.id or "id"
    if own in table.column_names and is_plain(table[own].type):
        found = texts(table[own])
        if len(np.unique(found)) == len(found) and not (found == "").any():
            return found
    if options.id:
        raise DataError(f"{where} column {own!r} does not name every row once; id= takes a column that does.")
    return np.char.add(f"{called}:", np.arange(table.num_rows).astype(np.str_)) if names is None else names


def is_plain(held: Any) -> bool:
    """Whether a column holds texts, numbers or the like, not lists, structs or bytes."""
    held = held.value_type if pa.types.is_dictionary(held) else held
    kinds = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return not any(of_kind(held) for of_kind in kinds)


def texts(column: Any) -> np.ndarray:
    """A column as texts; what is missing is empty."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = column.cast(pa.string())
    encoded = column.dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return np.asarray([], dtype=np.str_)
    words = np.asarray([*encoded.chunk(0).dictionary.to_pylist(), ""], dtype=np.str_)
    indices = [chunk.indices.fill_null(len(words) - 1).to_numpy() for chunk in encoded.chunks]
    return words[np.concatenate(indices)]


def _whole(column: Any, where: str) -> Int[np.ndarray, " N"]:
    """Whole numbers, -1 for what is missing.

    Raises:
        DataError: One has no place in 64 bits.
    """
    try:
        return np.asarray(column.cast(pa.int64()).fill_null(-1).to_numpy())
    except pa.ArrowInvalid:
        raise DataError(f"{where} holds {pc.max(column)}, which is no whole number of 64 bits.") from None


def _classes(column: Any, name: str, where: str) -> dict[str, np.ndarray]:
    """Numbers as they are, -1 for unknown; texts are numbered in their sorted order and stay as names.

    Raises:
        DataError: Numbers that are not whole, or have no place in 64 bits, or neither numbers nor texts.
    """
    held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_plain(held):
        raise DataError(f"{where} holds {held}; it takes whole numbers or texts.")
    if pa.types.is_floating(held):
        column = pc.if_else(pc.is_nan(column), None, column)
        odd = pc.drop_null(pc.filter(column, pc.or_(pc.not_equal(column, pc.floor(column)),
                                                    pc.greater_equal(pc.abs(column), 2.0**63))))  # fmt: skip
        if len(odd):
            raise DataError(f"{where} holds {odd[0].as_py()}; it takes whole numbers or texts.")
    if pa.types.is_floating(held) or pa.types.is_integer(held) or pa.types.is_boolean(held) or pa.types.is_null(held):
        return {name: _whole(column, where)}
    names = texts(column)
    return {name: numbered(names), f"{name}_name": names}


def split_of(path: str) -> str | None:
    """The split that one of a file's folders or its own name stands for; ``train-00000-of-00004`` is train."""
    *folders, file = PurePosixPath(path).parts
    stem = PurePosixPath(file).stem
    part = _PART.fullmatch(stem)
    words = [*folders, part.group(1) if part else stem]
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)


def by_folder(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Split and label columns of files, where the names of folders give them: the innermost that is no split is the label."""
    of_file = [name.rpartition("/")[0] for name in names]
    known: dict[str, tuple[str, str]] = {}
    for folder in dict.fromkeys(of_file):
        parts = folder.split("/")
        split = next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), "")
        known[folder] = split, next((part for part in reversed(parts) if part and part.lower() not in SPLITS), "")
    found: dict[str, np.ndarray] = {}
    if any(split for split, _ in known.values()):
        found["split"] = np.asarray([known[folder][0] for folder in of_file], dtype=np.str_)
    if len({label for _, label in known.values()} - {""}) > 1:
        found["label_name"] = np.asarray([known[folder][1] for folder in of_file], dtype=np.str_)
        found["label"] = numbered(found["label_name"])
    return found


def with_split(columns: Mapping[str, np.ndarray], path: str) -> Mapping[str, np.ndarray]:
    """Columns with the split that the file's path stands for, where they have none of their own."""
    split = split_of(path)
    if split is None or "split" in columns:
        return columns
    return {**columns, "split": np.full(len(columns["id"]), split)}
