"""Images that are asked about, described as those that are stored: what ``contains`` and the leak check begin with.

Axes: N rows of a source, n of them that are images, D numbers of a descriptor.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import cores
from dinoforge.base.log import progress
from dinoforge.data.decode import Picture
from dinoforge.data.look import Seen, look, looked
from dinoforge.data.sources.source import Source
from dinoforge.features.copies import NAME, SIDE, describe, in_bytes, thumbnail
from dinoforge.features.descriptors import Descriptors, Match, matches
from dinoforge.features.pairs import LayoutConfig

Embed = Callable[[Source], tuple[Float[np.ndarray, "n D"], Int[np.ndarray, " n"]]]
"""Descriptors by a network of the rows of a source that can be used, and those rows."""


def described(
    source: Source, *, like: Descriptors, embed: Embed | None = None, workers: int = 1
) -> tuple[Descriptors, Int[np.ndarray, " n"]]:
    """The images of a source as the stored ones are described, and their rows; what cannot be read is left out.

    Args:
        embed: What described the stored ones, where that was a network; an image that it cannot take has zeros.
        workers: Processes that read; 0: threads of this one do, where threads forbid to fork it.

    Raises:
        ConfigError: The stored ones were described by a network, and it is not there.
        DataError: It can take no image of the source.
    """
    if like.name != NAME and embed is None:
        raise ConfigError(
            f"the stored images were described by {like.name!r}; give its weights to compare others with them."
        )
    seen = _seen(source, workers)
    rows = np.asarray([row for row, one in enumerate(seen) if one.broken is None], np.int64)
    thumbnails = np.stack([np.zeros((SIDE, SIDE, 3), np.uint8), *(seen[row].more for row in rows.tolist())])[1:]
    values = np.zeros((len(rows), like.values.shape[1]), np.float16)
    if like.name == NAME and values.shape[1]:
        values = describe(thumbnails).astype(np.float16)
    elif embed is not None and len(rows):
        found, usable = embed(source.select(rows))
        values = np.zeros((len(rows), found.shape[1]), np.float16)
        values[usable] = found
    keys = np.asarray([seen[row].sha256 for row in rows.tolist()], np.str_)
    return Descriptors(source.columns["id"][rows], keys, thumbnails, values, like.name), rows


def stored_copies(
    source: Source, stored: Descriptors, *, threshold: float, embed: Embed | None = None, workers: int = 1
) -> tuple[list[Match], Bool[np.ndarray, " N"]]:
    """What of the stored images those of a source are copies of, by rows of the source, and which of them are images.

    Args:
        threshold: Similarity above which two are copies; see ``pairs.py`` for those of each descriptor.
        embed: See ``described``.

    Raises:
        ConfigError, DataError: See ``described`` and ``matches``.
    """
    asked, rows = described(source, like=stored, embed=embed, workers=workers)
    found = matches(asked, stored, threshold=threshold, config=LayoutConfig(), workers=workers)
    whole = np.zeros(len(source), bool)
    whole[rows] = True
    return [Match(int(rows[one.image]), one.id, one.similarity, one.kind) for one in found], whole


def _seen(source: Source, workers: int) -> list[Seen]:
    if not workers:
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            return [*pool.map(lambda row: look(source, row, _small), range(len(source)))]
    cv2.setNumThreads(1)  # processes that are forked while it has threads would wait for them for ever
    seen = list[Seen]()
    with progress("read images", len(source)) as tick:
        for some in looked(source, np.arange(len(source)), workers=workers, also=_small):
            seen += some
            tick(len(seen))
    return seen


def _small(picture: Picture, pixels: Shaped[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "32 32 3"]:
    return thumbnail(in_bytes(picture, pixels))
