"""From a source and a backbone to features: decode, centre, normalise, compute; broken images are set aside.

Axes: N images, B images at once, D channels, H by W patches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinoforge.base import dist
from dinoforge.base.allocator import keep_freed_memory
from dinoforge.base.errors import DataError
from dinoforge.base.hardware import Precision, compute_context, cores
from dinoforge.data.decode import Broken, Reading, damage
from dinoforge.data.sources.source import Source
from dinoforge.features.views import View, middle, squeezed_whole
from dinoforge.model.features import Features
from dinoforge.model.weights import Preprocessing

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Extraction:
    """How features are computed; nothing here changes them beyond rounding."""

    device: torch.device
    precision: Precision = "fp32"
    rows_at_once: int = 0
    """Images a forward pass; 0: as many as suit the device."""

    def __post_init__(self) -> None:
        if not self.rows_at_once:
            # On a processor more are no faster (8 to 256 images, two ViTs, one thread: within a tenth), and take more memory.
            object.__setattr__(self, "rows_at_once", 16 if self.device.type == "cpu" else 256)


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


class NoneUsable(DataError):
    """Not one image of a source could be used."""

    @classmethod
    def of(cls, source: Source, broken: Sequence[tuple[int, str]]) -> NoneUsable:
        """The error, with the last of the rows that could not and why."""
        last = [f"; the last is {source.columns['id'][row]}: {reason.rstrip('.')}" for row, reason in broken[-1:]]
        return cls(f"No image of {source.address} could be used{''.join(last)}.")


def pictures(
    source: Source, preprocessing: Preprocessing, *, on_broken: Callable[[str, str], None], rows_at_once: int,
    decoders: int = 1, view: View | None = None,
) -> Iterator[tuple[Int[np.ndarray, " B"], UInt8[Tensor, "B C Y X"]]]:  # fmt: skip
    """Every usable image of a source, in order, at most so many at once; the next ones are decoded meanwhile.

    Args:
        decoders: Threads that decode; no result depends on it.
        view: What of a picture is seen, by default the middle that the preprocessing cuts out. Where views differ in size,
            those at once are as many as follow one another in one size.

    Raises:
        NoneUsable: Not one image could be used.
    """

    how, seen = reading(preprocessing), view or middle(preprocessing)

    def one(row: int) -> Tensor | Broken:
        try:
            with damage():
                whole = source.pixels(row, how)
            return seen.of(whole, row)
        except Broken as error:
            return error

    usable, last = 0, list[tuple[int, str]]()
    with ThreadPoolExecutor(max_workers=decoders) as ahead:
        try:
            starts = range(0, len(source), rows_at_once)
            waiting = [ahead.submit(one, row) for row in range(min(rows_at_once, len(source)))]
            for start in starts:
                found = [picture.result() for picture in waiting]
                following = range(start + rows_at_once, min(start + 2 * rows_at_once, len(source)))
                waiting = [ahead.submit(one, row) for row in following]
                for row, picture in enumerate(found, start):
                    if isinstance(picture, Broken):
                        last = [(row, str(picture))]
                        on_broken(str(source.columns["id"][row]), str(picture))
                good = [(row, picture) for row, picture in enumerate(found, start) if isinstance(picture, Tensor)]
                usable += len(good)
                for _, alike in groupby(good, key=lambda one: one[1].shape):
                    some = list(alike)
                    yield np.asarray([row for row, _ in some]), torch.stack([picture for _, picture in some])
        finally:
            ahead.shutdown(cancel_futures=True)  # whoever stops asking is not kept waiting
    if not usable:
        raise NoneUsable.of(source, last)


@contextmanager
def _threads(device: torch.device) -> Iterator[int]:
    """Threads that decode, and the C library and torch set up for it, while the block lasts.

    On a processor the networks take all cores, and one thread beside them decodes many times what they use up. Beside an
    accelerator all cores decode; what torch computes there for one picture is not worth threads of its own.
    """
    if device.type == "cpu":
        keep_freed_memory()
        yield 1
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():  # decoders silence theirs, which several at once do not undo in order
            yield cores()
    finally:
        torch.set_num_threads(before)


def forward(module: Any, images: Float[Tensor, "B C Y X"], how: Extraction) -> Features:
    """Features of normalised images, without gradients, where the images are."""
    with torch.no_grad(), compute_context(how.precision, how.device):
        found: Features = module(images)
    return found


def computed(
    module: Any, source: Source, preprocessing: Preprocessing, how: Extraction, *,
    of: Callable[[Any, Tensor], Result], on_broken: Callable[[str, str], None], view: View | None = None,
) -> Iterator[tuple[Int[np.ndarray, " B"], Result]]:  # fmt: skip
    """What a function of a network and normalised images gives of every usable image, with their rows, where it is computed."""
    was_training = module.training
    module.eval()
    try:
        with _threads(how.device) as decoders:
            for rows, images in pictures(
                source, preprocessing, on_broken=on_broken, rows_at_once=how.rows_at_once, decoders=decoders, view=view
            ):
                x = normalised(images.to(how.device, non_blocking=True), preprocessing)
                with torch.no_grad(), compute_context(how.precision, how.device):
                    found = of(module, x)
                yield rows, found
    finally:
        module.train(was_training)


def extract(
    module: Any,
    source: Source,
    preprocessing: Preprocessing,
    how: Extraction,
    *,
    on_broken: Callable[[str, str], None],
) -> Iterator[Part]:
    """Features of every usable image, part by part, on the CPU in float32."""
    for rows, found in computed(module, source, preprocessing, how, of=_all, on_broken=on_broken):
        yield Part(rows, Features(*(t.float().cpu() for t in (found.image, found.registers, found.patches))))


def _all(module: Any, images: Tensor) -> Features:
    found: Features = module(images)
    return found


def image_features(
    module: Any, source: Source, preprocessing: Preprocessing, how: Extraction, *, on_broken: Callable[[str, str], None]
) -> tuple[Float[Tensor, "N D"], Int[np.ndarray, " N"]]:
    """The image tokens of all usable rows, and those rows."""
    found = _seen(extract(module, source, preprocessing, how, on_broken=on_broken), dense=0)
    return found.image, found.rows


def vectors(
    module: Any, source: Source, preprocessing: Preprocessing, how: Extraction, *, on_broken: Callable[[str, str], None]
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, " N"]]:
    """What a network gives of whole pictures, one vector each: of all usable rows, and those rows.

    Raises:
        NoneUsable: Not one image could be used.
    """
    rows, found = list[np.ndarray](), list[np.ndarray]()
    for some, values in computed(
        module, source, preprocessing, how, of=lambda network, images: network(images), on_broken=on_broken,
        view=squeezed_whole(preprocessing),
    ):  # fmt: skip
        rows.append(some)
        found.append(values.float().cpu().numpy())
    return np.concatenate(found), np.concatenate(rows)


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
