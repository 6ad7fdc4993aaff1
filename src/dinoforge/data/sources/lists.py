"""List files: one path or address a line (``.txt``, ``.lst``), or a table with a header (``.csv``, ``.tsv``)."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from dinoforge.base.errors import ConfigError, DataError, closest
from dinoforge.data.film import VIDEOS
from dinoforge.data.ground_truth import TRUTHS
from dinoforge.data.sources.clips import Films
from dinoforge.data.sources.columns import (
    TEXTS,
    by_folder,
    known_columns,
    named_like,
    refuse_doubles,
    texts,
    with_split,
)
from dinoforge.data.sources.options import ACCESS, COLUMNS, WEB, Options, scheme_of, shown
from dinoforge.data.sources.paths import Paths, storage
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import LONGEST, on_opening

PATHS = ("file", "path", "image", "file_name", "filename", "url")
"""Columns that hold the images' paths, the first that is there."""


def open_list(address: str, name: str, options: Options) -> Source:
    """The images that a text file names, one a line, after a tab the label if it has one; relative to the file.

    Blank lines and lines that begin with ``#`` count for nothing.

    Raises:
        DataError: The file cannot be read, is no text, or names no image.
        ConfigError: An option that has no effect on a list.
    """
    options.only(*ACCESS, "frames", of="a list without columns")
    lines = [line for line in _text(address, options).split("\n") if line.strip() and not line.lstrip().startswith("#")]
    parts = [line.rstrip("\r").partition("\t") for line in lines]
    if not parts:
        raise DataError(f"{shown(address)} names no image; it takes a path or an address a line.")
    labels = [part[2].strip() for part in parts]
    table = pa.table(
        {"path": pa.array([part[0].strip() for part in parts], pa.string())}
        | ({"label": _labels(labels)} if any(labels) else {})
    )
    return _listed(address, name, options, table=table, image="path")


def _labels(labels: list[str]) -> Any:
    """Whole numbers where all are, else texts."""
    known = [label for label in labels if label]
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in known):
        return pa.array([int(label) if label else None for label in labels], pa.int64())
    return pa.array([label or None for label in labels], pa.string())


def open_table(address: str, name: str, options: Options) -> Source:
    """The images that a table names in a column ``file``, ``path``, ``image`` … or the one that ``image=`` says, or the videos.

    Raises:
        DataError: The file cannot be read, is no table, or has no such column.
        ConfigError: A column that was asked for is not there.
    """
    options.only(*COLUMNS, *ACCESS, "frames", of="a table of paths")
    tab = "\t" if PurePosixPath(shown(address).partition("?")[0]).suffix.lower() == ".tsv" else ","
    content, known = _text(address, options).encode(), _texts(options)
    try:
        table = _table(content, tab, known)
        unknown = {field.name: pa.string() for field in table.schema if pa.types.is_null(field.type)}
        table = _table(content, tab, known | unknown) if unknown else table
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{shown(address)} cannot be read as a table: {str(error).splitlines()[0]}") from None
    return _listed(address, name, options, table=table, image=path_column(table, address, options))


def _table(content: bytes, delimiter: str, types: dict[str, Any]) -> Any:
    """A table: NA, null and the like are missing numbers among numbers, and texts among texts, for a class may be called so."""
    return csv.read_csv(
        io.BytesIO(content),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(quoted_strings_can_be_null=False, column_types=types),
    )


def _texts(options: Options) -> dict[str, Any]:
    """Columns that are texts whatever they look like: 007 is no number where it names a file."""
    asked = [options.image, options.id, *options.truths.values()]
    names = [*PATHS, *TRUTHS, *TEXTS, "id", "label_name", "group_name", *(name for name in asked if name)]
    return {name: pa.string() for name in names}


def path_column(table: Any, address: str, options: Options) -> str:
    """Which column of a table (or schema) names the images.

    Raises:
        ConfigError: The one that was asked for is not there.
        DataError: None of the usual ones is.
    """
    names = getattr(table, "column_names", None) or table.names
    refuse_doubles(names, shown(address))
    if options.image is not None:
        if options.image not in names:
            raise ConfigError(f"{shown(address)} has no column {options.image!r}.{closest(options.image, names)}")
        return options.image
    found = next((column for column in PATHS if column in names), None)
    if found is None:
        raise DataError(
            f"{shown(address)} has no column {' or '.join(map(repr, PATHS[:3]))}; it has {', '.join(names)}. "
            "?image= names another."
        )
    return found


def truth_paths(table: Any, address: str, options: Options) -> dict[str, np.ndarray]:
    """The columns of texts that name masks and depth maps.

    Raises:
        ConfigError: One that was asked for is not there.
    """
    found = {}
    for truth, asked in options.truths.items():
        if asked is not None and asked not in table.column_names:
            raise ConfigError(f"{shown(address)} has no column {asked!r}.{closest(asked, table.column_names)}")
        column = asked or truth
        if column in table.column_names and pa.types.is_string(table[column].type):
            found[truth] = texts(table[column])
    return found


def _overlong(table: Any, image: str, options: Options) -> dict[int, str]:
    """Rows with a text that is too long for a column of texts, each with the reason."""
    own = {options.label or "label", options.group or "group", *named_like(options).values()}
    found: dict[int, str] = {}
    for column in table.column_names:
        if column in {image, *own, *_texts(options)} and pa.types.is_string(table[column].type):
            length = pc.fill_null(pc.utf8_length(table[column]), 0).to_numpy()
            for row in np.flatnonzero(length > LONGEST).tolist():
                found[row] = f"its {column} has {length[row]:,} characters, more than {LONGEST:,}"
    return found


def _listed(address: str, name: str, options: Options, *, table: Any, image: str) -> Source:
    """Rows that a file names in the column ``image``."""
    if not len(table):
        raise DataError(f"{shown(address)} names no image: it has a header and no row.")
    overlong = _overlong(table, image, options)
    table = table.take(pa.array(np.setdiff1d(np.arange(len(table)), list(overlong)))) if overlong else table
    if not len(table):
        raise DataError(f"{shown(address)} names no image; of its first row, {next(iter(overlong.values()))}.")
    where = texts(table[image])
    base = address.partition("?")[0].rpartition("/")[0] or ("" if "/" not in address else "/")
    names = unique_names(where, web=scheme_of(address) in WEB)
    known = known_columns(table, shown(address), options=options, names=names)
    folders = by_folder(names.tolist())
    if "label" in known.columns:
        folders = {column: values for column, values in folders.items() if column == "split"}
    by_name = known.by_name | ({"label"} & folders.keys())
    found = Paths(
        shown(address), base, where, columns=with_split({**folders, **known.columns}, name), options=options,
        by_name=by_name, truths=truth_paths(table, address, options),
    )  # fmt: skip
    # A signed address or a picture written as text may be what is too long: the row is named by its number alone.
    found.rejected = [(f"{name}:{row}", reason) for row, reason in sorted(overlong.items())]
    if _are_videos(where, names):
        return Films(found)
    options.only(*(option for option in options.model_fields_set if option != "frames"), of="a list of images")
    return found


def _are_videos(where: np.ndarray, names: np.ndarray) -> bool:
    """Whether files are videos by their names: all that have one."""
    parts = (name.rpartition(".") for name, path in zip(names.tolist(), where.tolist(), strict=True) if path)
    suffixes = {dot + end.partition("#")[0].lower() for _, dot, end in parts}  # a path that comes again is path#2
    return bool(suffixes) and suffixes <= VIDEOS


def unique_names(where: np.ndarray, *, web: bool = False) -> np.ndarray:
    """Paths and addresses as names of rows: without credentials; a second one of a name gets ``#2``, a third ``#3``."""
    found = where.tolist()
    if web:  # relative ones may be signed too, or name another host
        found = [(f"https:{text}" if text.startswith("//") else text) for text in found]
        found = [text if "://" in text else text.partition("?")[0] for text in found]
    if any("://" in text for text in found):
        found = [shown(text).partition("?")[0] if "://" in text else text for text in found]
    if len(set(found)) < len(found):
        count: Counter[str] = Counter()
        for row, text in enumerate(found):
            count[text] += 1
            found[row] = text if count[text] == 1 else f"{text}#{count[text]}"
    return np.asarray(found, dtype=np.str_)


def _text(address: str, options: Options) -> str:
    """The text of a file.

    Raises:
        DataError: It cannot be read, or is no UTF-8.
    """
    with on_opening(address):
        content = storage(address, options).read(address)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(address)} is no UTF-8 text: byte {error.start:,} fits none; save it as UTF-8."
        ) from None
