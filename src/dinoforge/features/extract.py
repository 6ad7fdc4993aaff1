"""From a source and a backbone to features: decode, centre, normalise, compute; broken images are set aside.

Axes: N images, B images at once, D channels, H by W patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinoforge.base import dist
from dinoforge.base.errors import DataError
from dinoforge.base.hardware import Precision, compute_context
from dinoforge.data.augment import centre
from dinoforge.data.decode import Broken, Reading
from dinoforge.data.sources.source import Source
from dinoforge.model.features import Features
from dinoforge.model.weights import Preprocessing


@dataclass(frozen=True, slots=True)
class Extraction:
    """How features are computed; nothing here changes them beyond rounding."""

    device: torch.device
    precision: Precision = "fp32"
    rows_at_once: int = 256
    """Images a forward pass."""


@dataclass(frozen=True, slots=True)
class Part:
    """Features of some rows of a source."""

    rows: Int[np.ndarray, " B"]
    features: Features


@dataclass(frozen=True, slots=True)
class Seen:
    """Features of a whole source: every image's, and the patches of its first few."""

    rows: Int[np.ndarray, " N"]
    """Of the source, those that could be used, in order."""
    image: Float[Tensor, "N D"]
    patches: Float[Tensor, "n H W D"]
    """Of the images among ``rows`` that come before a given row."""


def reading(preprocessing: Preprocessing) -> Reading:
    """How the pictures of a backbone are read."""
    return Reading(preprocessing.channels, preprocessing.range, preprocessing.max_pixels)


def normalised(images: UInt8[Tensor, "B C Y X"], preprocessing: Preprocessing) -> Float[Tensor, "B C Y X"]:
    """Images as the backbone takes them."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (images.float() / 255 - mean) / std


def pictures(
    source: Source, preprocessing: Preprocessing, *, on_broken: Callable[[str, str], None], rows_at_once: int
) -> Iterator[tuple[Int[np.ndarray, " B"], UInt8[Tensor, "B C Y X"]]]:
    """Every usable image of a source, in order, centred, so many at once; the next ones are decoded meanwhile.

    Raises:
        DataError: Not one image could be used.
    """

    how = reading(preprocessing)

    def one(row: int) -> Tensor | Broken:
        try:
            return centre(source.pixels(row, how), short_side=preprocessing.short_side, side=preprocessing.side)
        except Broken as error:
            return error

    def some(start: int) -> list[tuple[int, Tensor | Broken]]:
        return [(row, one(row)) for row in range(start, min(start + rows_at_once, len(source)))]

    usable, last = 0, ""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        starts = range(0, len(source), rows_at_once)
        waiting = ahead.submit(some, 0)
        for start in starts:
            found = waiting.result()
            if start + rows_at_once < len(source):
                waiting = ahead.submit(some, start + rows_at_once)
            for row, picture in found:
                if isinstance(picture, Broken):
                    last = f"; the last is {source.columns['id'][row]}: {str(picture).rstrip('.')}"
                    on_broken(str(source.columns["id"][row]), str(picture))
            good = [(row, picture) for row, picture in found if isinstance(picture, Tensor)]
            if good:
                usable += len(good)
                yield np.asarray([row for row, _ in good]), torch.stack([picture for _, picture in good])
    if not usable:
        raise DataError(f"No image of {source.address} could be used{last}.")


def extract(
    module: Any,
    source: Source,
    preprocessing: Preprocessing,
    how: Extraction,
    *,
    on_broken: Callable[[str, str], None],
) -> Iterator[Part]:
    """Features of every usable image, part by part, on the CPU in float32."""
    was_training = module.training
    module.eval()
    try:
        for rows, images in pictures(source, preprocessing, on_broken=on_broken, rows_at_once=how.rows_at_once):
            x = normalised(images.to(how.device, non_blocking=True), preprocessing)
            with torch.no_grad(), compute_context(how.precision, how.device):
                found = module(x)
            yield Part(rows, Features(*(t.float().cpu() for t in (found.image, found.registers, found.patches))))
    finally:
        module.train(was_training)


def image_features(
    module: Any, source: Source, preprocessing: Preprocessing, how: Extraction, *, on_broken: Callable[[str, str], None]
) -> tuple[Float[Tensor, "N D"], Int[np.ndarray, " N"]]:
    """The image tokens of all usable rows, and those rows."""
    found = _seen(extract(module, source, preprocessing, how, on_broken=on_broken), dense=0)
    return found.image, found.rows


def shared_features(
    module: Any,
    source: Source,
    preprocessing: Preprocessing,
    how: Extraction,
    *,
    on_broken: Callable[[str, str], None],
    dense: int = 0,
) -> Seen:
    """Features of all usable rows, on every rank; each computes those of its share.

    Args:
        dense: Patches are kept of the usable ones among the first so many rows.

    Raises:
        DataError: Not one image could be used.
    """
    share = np.arange(dist.rank(), len(source), dist.world())
    found: Seen | None = None
    failed: DataError | None = None
    if len(share):
        mine = source.select(share) if dist.active() else source
        try:
            parts = extract(module, mine, preprocessing, how, on_broken=on_broken)
            found = _seen(parts, dense=int((share < dense).sum()))
        except DataError as error:  # others may have usable ones
            failed = error
    gathered = [(rank, part) for rank, part in enumerate(dist.gather(found)) if part is not None]
    if not gathered:
        raise next(error for error in dist.gather(failed) if error is not None)
    rows = np.concatenate([part.rows * dist.world() + rank for rank, part in gathered])
    order = rows.argsort()
    early = rows[rows < dense].argsort()  # as the patches lie
    return Seen(
        rows[order],
        torch.cat([part.image for _, part in gathered])[torch.from_numpy(order)],
        torch.cat([part.patches for _, part in gathered])[torch.from_numpy(early)],
    )


def _seen(parts: Iterator[Part], *, dense: int) -> Seen:
    """All parts together; of the patches, which are most of them, only those of rows below ``dense`` stay in memory."""
    rows: list[np.ndarray] = []
    image: list[Tensor] = []
    patches: list[Tensor] = []
    for part in parts:
        rows.append(part.rows)
        image.append(part.features.image.clone())  # no view, which would keep the patches
        early = int((part.rows < dense).sum())
        if early or not patches:
            patches.append(part.features.patches[:early].clone())
    return Seen(np.concatenate(rows), torch.cat(image), torch.cat(patches))
