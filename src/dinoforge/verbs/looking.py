"""What the verbs that draw a few images begin with: which images, at which size, and what the backbone sees in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.hardware import device
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, pictures
from dinoforge.model.weights import Preprocessing
from dinoforge.report.film import looked_at, visible
from dinoforge.verbs.opening import opened, told
from dinoforge.verbs.places import lies_within

_MOST_PATCHES = 256
"""Patches along a side at most: attention costs the fourth power of it."""
_MOST_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Looked:
    """A few images and what a backbone sees in them."""

    images: UInt8[Tensor, "B 3 Y X"]
    patches: Float[Tensor, "B H W D"]
    attention: Float[Tensor, "B heads H W"]
    ids: list[str]
    patch: int
    """Side of a patch, in pixels of the images."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The picture that was written."""

    path: str
    images: list[str]
    """Ids of what it shows."""


def look(backbone: str, images: str, rows: list[str] | int, *, side: str | int | None, out: str) -> Looked:
    """Open backbone and images and compute.

    Args:
        rows: Ids or numbers of the images, or how many from the first on.
        side: Input side in pixels instead of the backbone's own.
        out: Where the picture will be written: its name is judged before anything is computed.

    Raises:
        ConfigError: A name, number or size that does not fit.
        DataError: No such image, or it cannot be used.
    """
    if Path(out).is_dir():
        raise ConfigError(f"out={out} is a folder; give the name of a picture file.")
    if lies_within(out, images):
        raise ConfigError(f"out={out} lies within images={images} and would be one of them; give a place beside it.")
    source = open_source(images)
    chosen = source.select(np.arange(min(rows, len(source))) if isinstance(rows, int) else _found(source, rows))
    found = opened(backbone)
    preprocessing = at_side(found.preprocessing, side, patch=found.module.patch)
    parts = list(pictures(chosen, preprocessing, on_broken=told, rows_at_once=_MOST_IMAGES))
    usable = np.concatenate([place for place, _ in parts])
    where = device("auto")
    pixels = torch.cat([part for _, part in parts])
    patches, attention = looked_at(found.module.to(where), pixels, preprocessing, Extraction(where))
    ids = [str(name) for name in chosen.columns["id"][usable]]
    return Looked(visible(pixels).contiguous(), patches, attention, ids, found.module.patch)


def wanted(count: str | int, row: str | None) -> list[str] | int:
    """The rows named by ``row``, else how many.

    Raises:
        ConfigError: ``count`` is no whole number or out of range, or too many are named.
    """
    if row is not None:
        names = [name.strip() for name in row.split(",") if name.strip()]
        if not 1 <= len(names) <= _MOST_IMAGES:
            raise ConfigError(f"row takes 1 to {_MOST_IMAGES} ids or numbers joined by commas; got {row!r}.")
        return names
    number = whole("count", count)
    if not 1 <= number <= _MOST_IMAGES:
        raise ConfigError(f"count must be 1 to {_MOST_IMAGES}; got {count}.")
    return number


def whole(name: str, value: Any) -> int:
    """A whole number as typed, or as Python hands it over.

    Raises:
        ConfigError: It is none.
    """
    try:
        number = int(value)
        fits = not isinstance(value, (bool, np.bool_)) and (isinstance(value, str) or number == value)
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise ConfigError(f"{name} takes a whole number; got {value!r}.")
    return number


def picture_name(out: str, suffixes: tuple[str, ...]) -> Path:
    """The file to write.

    Raises:
        ConfigError: Its name ends otherwise.
    """
    path = Path(out)
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"out={out} must end in {' or '.join(suffixes)}.")
    return path


def at_side(preprocessing: Preprocessing, side: str | int | None, *, patch: int) -> Preprocessing:
    """The preprocessing at another input side, the margin around it kept in proportion.

    Raises:
        ConfigError: No multiple of the patch, or too large.
    """
    if side is None:
        return preprocessing
    pixels = whole("side", side)
    if pixels < patch or pixels % patch:
        below, above = max(pixels // patch, 1) * patch, (max(pixels // patch, 0) + 1) * patch
        near = f"{below} or {above}" if below < above else str(above)
        raise ConfigError(f"side={side} is no multiple of the patch, {patch}; {near} would be.")
    if pixels > _MOST_PATCHES * patch:
        raise ConfigError(f"side={side} is too large; at most {_MOST_PATCHES * patch} ({_MOST_PATCHES} patches).")
    short = round(preprocessing.short_side * pixels / preprocessing.side)
    return preprocessing.model_copy(update={"short_side": short, "side": pixels})


def _found(source: Source, names: list[str]) -> np.ndarray:
    """Rows by id, else by number from 0.

    Raises:
        DataError: No such row.
    """
    ids = {str(name): number for number, name in enumerate(source.columns["id"])}
    rows = []
    for name in names:
        if name in ids:
            rows.append(ids[name])
        elif name.isdecimal() and int(name) < len(source):
            rows.append(int(name))
        else:
            raise DataError(
                f"{source.address} has no image {name!r}; give an id, or a number from 0 to {len(source) - 1}."
            )
    return np.asarray(rows)
