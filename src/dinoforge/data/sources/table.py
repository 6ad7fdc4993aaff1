"""Every kind of source by what its address looks like. A new one is a file and a line here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from dinoforge.base.errors import ConfigError, DataError, unknown
from dinoforge.base.given import as_text
from dinoforge.data.depth_units import COLUMN, known_unit
from dinoforge.data.sources.clips import Clips, Stills
from dinoforge.data.sources.columns import SPLITS
from dinoforge.data.sources.files import open_files
from dinoforge.data.sources.huggingface import open_huggingface
from dinoforge.data.sources.options import options_of, scheme_of, shown, split_address
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import is_text
from dinoforge.data.sources.toy import open_toy

Opening = Callable[[str, Mapping[str, str]], Source]


def _files(place: str, given: Mapping[str, str], *, clips: bool = False) -> Source:
    """Files on the disk, in object storage or on the web; a manifest among them opens what it names."""
    return open_files(place, given, open_source, clips=clips)


SOURCES: dict[str, Opening] = {
    "": _files,
    "s3": _files,
    "gs": _files,
    "az": _files,
    "http": _files,
    "https": _files,
    "hf": open_huggingface,
    "toy": open_toy,
}
"""By scheme, the part of an address before ``://``."""


def open_source(address: str | os.PathLike[str], split: str | None = None) -> Source:
    """The images at an address; ``?split=`` keeps one split.

    A folder, a Parquet file, a tar, a list, a manifest, ``s3://…``, ``https://…``, ``hf://…``, ``toy://species?images=…``.

    Args:
        split: Keep only this split where the source has splits and the address names none.

    Raises:
        DataError: Nothing there, no image in it but videos perhaps, it cannot be read, or no such split.
        ConfigError: An unknown scheme or option, or no address at all.
    """
    found = _opened(address, split)
    if isinstance(found, Clips):
        raise DataError(
            f"{found.address} holds {len(found):,} videos and no image; ?frames=8 behind it takes so many frames of each as "
            "images, tasks=video takes clips."
        )
    return found


def open_clips(address: str | os.PathLike[str]) -> Clips:
    """The clips at an address: video files, also among images, or images that are frames by columns ``clip`` and ``frame``.

    Raises:
        DataError: As ``open_source``, or there are no clips.
        ConfigError: An unknown scheme or option.
    """
    found = _opened(address, None, clips=True)
    return found if isinstance(found, Clips) else Stills(found)


def _opened(given: str | os.PathLike[str], split: str | None, *, clips: bool = False) -> Source:
    address = as_text(given, "data")
    if "\0" in address:
        raise DataError(f"data={shown(address)!r} holds a zero byte; no path does.")
    scheme = scheme_of(address)
    if scheme not in SOURCES:
        raise unknown("kind of source", scheme, [name for name in SOURCES if name])
    if not is_text(address):
        raise DataError(f"data={shown(address)!r} is not valid UTF-8; rename it.")
    place, options = split_address(address)
    own = place.partition("://")[2] if scheme else place
    if not own:
        raise ConfigError(f"data={shown(address)!r} names no place; it takes a folder, a file, or toy://species.")
    asked = options.pop("split", None)
    if asked == "":
        raise ConfigError(
            f"data={shown(address)!r} names no split; ?split= takes train, val, test or another of the source."
        )
    if scheme == "toy" and asked:
        options["split"] = asked  # a world that is drawn draws the split that is asked for
    unit = None if scheme == "toy" else _unit(options)
    opening = partial(_files, clips=clips) if SOURCES[scheme] is _files else SOURCES[scheme]
    source = opening(own if scheme in {"toy", "hf"} else place, options)
    source.address = shown(address)
    if unit is not None:
        source.columns = {**source.columns, COLUMN: np.full(len(source), unit)}
    return source if scheme == "toy" and asked else _only(source, asked, split)


def _unit(options: Mapping[str, str]) -> str | None:
    """The unit of depth, which is for every source with depth alike.

    Raises:
        ConfigError: It is none.
    """
    unit = options_of({COLUMN: options[COLUMN]} if COLUMN in options else {}).depth_unit
    return None if unit is None else known_unit(unit, name=f"?{COLUMN}")


def _only(source: Source, asked: str | None, wanted: str | None) -> Source:
    splits = source.columns.get("split")
    if splits is None:
        if asked:
            raise DataError(f"{source.address} asks for split {asked!r}, but the source has no splits.")
        return source
    name = SPLITS.get(asked.lower(), asked) if asked else wanted
    if name is None:
        return source
    rows = np.flatnonzero(splits == name)
    if not len(rows):
        known = ", ".join(sorted(set(splits.tolist()) - {""})) or "none"
        raise DataError(f"{source.address} has no split {name!r}; it has {known}.")
    return source.select(rows)


def has_split(source: Source, name: str) -> bool:
    """Whether a source has rows of that split."""
    return "split" in source.columns and bool((source.columns["split"] == name).any())
