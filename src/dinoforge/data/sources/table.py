"""Every kind of source by what its address looks like. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from dinoforge.base.errors import DataError, unknown
from dinoforge.data.manifest import is_manifest
from dinoforge.data.sources.folder import open_folder
from dinoforge.data.sources.manifest import Listed
from dinoforge.data.sources.parquet import Parquet
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.toy import open_toy

Options = Mapping[str, str]


def _files(place: str, options: Options) -> Source:
    """A folder, one Parquet file, or a manifest."""
    extra = set(options) - {"label"}
    if extra:
        raise unknown("option of a source", extra.pop(), ["split", "label"])
    path, label = Path(place).expanduser(), options.get("label", "label")
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise DataError(
                f"{place} is a file but no Parquet file; data takes a folder, a Parquet file or toy://species."
            )
        return Listed(path, open_source) if is_manifest(path) else Parquet(path, label=label)
    return open_folder(path, label=label)


SOURCES: dict[str, Callable[[str, Options], Source]] = {
    "": _files,
    "toy": open_toy,
}
"""By scheme, the part of an address before ``://``."""


def open_source(address: str, split: str | None = None) -> Source:
    """The images at an address: a folder, a Parquet file, ``toy://species?images=…``; ``?split=`` keeps one split.

    Args:
        split: Keep only this split where the source has splits and the address names none.

    Raises:
        DataError: Nothing there, no image in it, or no such split.
        ConfigError: An unknown scheme or option.
    """
    place, _, query = address.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    scheme, slashes, rest = place.partition("://")
    if slashes and scheme not in SOURCES:
        raise unknown("kind of source", scheme, [name for name in SOURCES if name])
    asked = options.pop("split", None)
    if slashes and asked:
        options["split"] = asked  # a world that is drawn draws the split that is asked for
    source = SOURCES[scheme if slashes else ""](rest if slashes else place, options)
    source.address = address
    return source if slashes and asked else _only(source, asked, split)


def _only(source: Source, asked: str | None, wanted: str | None) -> Source:
    splits = source.columns.get("split")
    if splits is None:
        if asked:
            raise DataError(f"{source.address} asks for split {asked!r}, but the source has no splits.")
        return source
    name = asked or wanted
    if name is None:
        return source
    rows = np.flatnonzero(splits == name)
    if not len(rows):
        known = ", ".join(sorted(set(splits.tolist())))
        raise DataError(f"{source.address} has no split {name!r}; it has {known}.")
    return source.select(rows)


def has_split(source: Source, name: str) -> bool:
    """Whether a source has rows of that split."""
    return "split" in source.columns and bool((source.columns["split"] == name).any())
