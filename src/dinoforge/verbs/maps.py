"""What ``predict`` writes of one picture: its class, the class of every pixel, or the depth of every pixel.

Axes: K classes, Y by X pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from PIL import Image
from torch import Tensor

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.files import explained, write_atomic
from dinoforge.evaluate.dense.pieces import Viewing, pieces
from dinoforge.evaluate.dense.trunk import Trunk
from dinoforge.features.views import middle
from dinoforge.model.head_files import Head, HeadFacts
from dinoforge.report.maps import classes_picture, depth_picture, palette
from dinoforge.report.tiles import write_png
from dinoforge.verbs.predicted import Folder

_MILLIMETRES, _MOST = 1000, 65_535
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Maker:
    """What makes predictions of a picture; one of ``KINDS`` writes them."""

    head: Head
    trunk: Trunk
    viewing: Viewing
    format: str
    """Of maps: png or npy."""
    scores: bool
    """Whether the scores of every class are written."""

    def __call__(self, folder: Folder, name: str, pixels: UInt8[np.ndarray, "Y X C"]) -> dict[str, Any]:
        """Write the files of a picture; what is told of it in its line.

        Raises:
            Broken: It cannot be seen in this way.
        """
        return KINDS[self.head.facts.kind](self, folder, name, pixels)


def format_of(facts: HeadFacts, given: str | None) -> str:
    """The format of maps: the given one, else PNG where it can hold them.

    Raises:
        ConfigError: A PNG cannot.
    """
    if facts.range is None:
        lowest, highest, why = (
            float(min(facts.numbers)),
            float(max(facts.numbers)),
            f"class numbers from 0 to {_MOST:,}",
        )
    else:
        lowest, highest, why = 0.0, facts.range[1] * _MILLIMETRES, f"depth up to {_MOST / _MILLIMETRES:g} metres"
    fits = lowest >= 0 and highest <= _MOST and facts.unit == "metres"
    if given == "png" and not fits:
        raise ConfigError(f"format=png holds {why}, which is not enough for this head; take format=npy.")
    return given or ("png" if fits else "npy")


def colours_of(facts: HeadFacts) -> list[tuple[int, int, int]]:
    """A colour for each of its classes."""
    return list(facts.palette) or palette(len(facts.classes))


def _class(maker: Maker, _folder: Folder, name: str, pixels: UInt8[np.ndarray, "Y X C"]) -> dict[str, Any]:
    """The likeliest class of the middle of a picture."""
    image = middle(maker.trunk.preprocessing).of(pixels, 0)
    with torch.no_grad():
        shares = _finite(maker.head(maker.trunk(image[None]))[0].float().softmax(0), name)
    best, facts = int(shares.argmax()), maker.head.facts
    return {"label": facts.numbers[best], "name": facts.classes[best], "probability": shares[best].item()}


def _classes(maker: Maker, folder: Folder, name: str, pixels: UInt8[np.ndarray, "Y X C"]) -> dict[str, Any]:
    """The class of every pixel."""
    facts, (height, width) = maker.head.facts, pixels.shape[:2]
    found, sure = np.empty((height, width), np.int32), 0.0
    with _scores(maker, folder, name, (len(facts.classes), height, width)) as (kept, files):
        for rows, columns, scores in _pieces(maker, name, pixels, **_as_shares(facts)):
            shares = scores / scores.sum(0).clamp(min=_LEAST) if facts.sums else scores
            best = shares.max(0)
            found[rows, columns] = best.indices.cpu().numpy()
            sure += float(best.values.sum())
            if kept is not None:
                kept[:, rows, columns] = shares.half().cpu().numpy()
    colours = colours_of(facts)
    numbers = np.asarray(facts.numbers, np.int32)[found]
    files |= {"map": _write(maker, folder, name, numbers, colours)}
    picture = classes_picture(pixels, found, names=facts.classes, colours=colours)
    files |= {"picture": _picture(folder, name, picture)}
    counts = np.bincount(found.ravel(), minlength=len(facts.classes))
    parts = {facts.classes[number]: counts[number] / found.size for number in np.argsort(-counts, kind="stable")}
    return {
        "files": files,
        "classes": {one: share for one, share in parts.items() if share},
        "confidence": sure / found.size,
    }


def _depth(maker: Maker, folder: Folder, name: str, pixels: UInt8[np.ndarray, "Y X C"]) -> dict[str, Any]:
    """The depth of every pixel."""
    found = np.empty(pixels.shape[:2], np.float32)
    for rows, columns, depth in _pieces(maker, name, pixels):
        found[rows, columns] = depth[0].cpu().numpy()
    stored = (found * _MILLIMETRES).round().clip(1, _MOST).astype(np.uint16) if maker.format == "png" else found
    files = {"map": _write(maker, folder, name, stored, None)}
    files |= {"picture": _picture(folder, name, depth_picture(pixels, found, unit=maker.head.facts.unit))}
    told = {"least": found.min(), "median": np.median(found), "largest": found.max()}
    return {"files": files, **{what: float(value) for what, value in told.items()}}


KINDS: dict[str, Callable[[Maker, Folder, str, np.ndarray], dict[str, Any]]] = {
    "classification": _class,
    "segmentation": _classes,
    "depth": _depth,
}
"""What is written of a picture, by the kind of head."""


def _pieces(
    maker: Maker, name: str, pixels: UInt8[np.ndarray, "Y X C"], **answer: Any
) -> Iterator[tuple[slice, slice, Float[Tensor, "K y x"]]]:
    """The map rectangle by rectangle.

    Raises:
        DataError: A number that is not finite.
    """
    for rows, columns, part in pieces(maker.trunk, maker.head, pixels, maker.viewing, **answer):
        yield rows, columns, _finite(part, name)


def _as_shares(facts: HeadFacts) -> dict[str, Any]:
    """What is made of scores before they are averaged, for ``pieces``."""
    return {} if facts.sums else {"answer": partial(torch.softmax, dim=0)}


def _finite(found: Tensor, name: str) -> Tensor:
    if not found.isfinite().all():
        raise DataError(f"the predictions of {name} are not finite; a head or a backbone that gives such is broken.")
    return found


def _write(
    maker: Maker, folder: Folder, name: str, values: Num[np.ndarray, "Y X"], colours: list[tuple[int, int, int]] | None
) -> str:
    """The name of the map's file: a PNG of numbers, in colours where these are few, or an array."""
    path = folder.place("maps", name, f".{maker.format}")
    if maker.format == "npy":
        whole = values if values.dtype.kind == "f" else values.astype(np.int32)
        write_atomic(path, lambda file: np.save(file, whole, allow_pickle=False))
    elif colours is None or max(maker.head.facts.numbers) > 255:
        write_png(path, Image.fromarray(values.astype(np.uint16)))
    else:
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette(_colour_table(maker.head.facts.numbers, colours))
        write_png(path, picture)
    return str(path.relative_to(folder.path))


def _colour_table(numbers: tuple[int, ...], colours: list[tuple[int, int, int]]) -> bytes:
    """Red, green and blue of every number from 0 to 255; black where there is no class."""
    table: Int[np.ndarray, "256 3"] = np.zeros((256, 3), np.uint8)
    table[list(numbers)] = colours
    return table.tobytes()


def _picture(folder: Folder, name: str, picture: Image.Image) -> str:
    path = folder.place("pictures", name, ".png")
    write_png(path, picture)
    return str(path.relative_to(folder.path))


@contextmanager
def _scores(
    maker: Maker, folder: Folder, name: str, shape: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray | None, dict[str, str]]]:
    """An array on the disk for the scores, where they are wanted; it has its name once it is full."""
    if not maker.scores:
        yield None, {}
        return
    path = folder.place("scores", name, ".npy")
    part = path.with_name(f".{path.name}.part")
    with explained(path):
        try:
            kept = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape)
            # A page of a mapped file for which the disk has no room would end the process.
            if hasattr(os, "posix_fallocate"):
                with part.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            yield kept, {"scores": str(path.relative_to(folder.path))}
            kept.flush()
            part.replace(path)
        finally:
            Path(part).unlink(missing_ok=True)
