"""From a source to batches: every batch is a function of (seed, step), whoever makes it and wherever it is made.

The unit of work is a *group* of images; workers make groups, the main process joins them and applies the colours.

Axes: g images of a group, L local views, V views, C channels, Y by X and y by x pixels, N patches, P colour parameters.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinoforge.base.errors import DataError
from dinoforge.base.random import key, numpy_generator
from dinoforge.data.augment import GLOBAL_VIEWS, AugmentConfig, Views, draw_views
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.data.decode import Broken
from dinoforge.data.masks import MaskConfig, draw_masks
from dinoforge.data.order import rows_at
from dinoforge.data.photometric import recolour
from dinoforge.data.sources.source import Source

_REPLACEMENTS = 32
"""Broken images in a row before a source is given up."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group as a worker ships it: bytes, not floats."""

    number: int
    globals: UInt8[Tensor, "2 g C Y X"]
    locals: UInt8[Tensor, "L g C y x"]
    colours: Float[Tensor, "V g P"]
    masks: Bool[Tensor, "2 g N"]
    broken: list[tuple[str, str]]
    """Id and reason of every image that could not be used; another took its place."""


class Groups(Dataset["Group | DataError"]):
    """All groups of a run by their number since its start.

    What a user can cause is returned, not raised: on its way out of a worker an exception would take a traceback along.
    """

    def __init__(
        self, source: Source, augment: AugmentConfig, masks: MaskConfig, *, seed: int, group: int, patch: int
    ) -> None:
        self.source, self.augment, self.masks, self.seed, self.group = source, augment, masks, seed, group
        self.grid = (augment.global_pixels // patch,) * 2

    def __getitem__(self, number: int) -> Group | DataError:
        try:
            return self.made(number)
        except DataError as error:
            return error

    def made(self, number: int) -> Group:
        """The group of that number.

        Raises:
            DataError: Hardly an image can be used.
        """
        positions = np.arange(number * self.group, (number + 1) * self.group)
        rows, passes = rows_at(positions, images=len(self.source), seed=self.seed)
        broken: list[tuple[str, str]] = []
        views = [self._views(int(row), int(turn), broken) for row, turn in zip(rows, passes, strict=True)]
        rng = random.Random(key(self.seed, "masks", number))
        masks = draw_masks(rng, views=GLOBAL_VIEWS * self.group, grid=self.grid, config=self.masks)
        return Group(
            number=number,
            globals=torch.stack([view.globals for view in views], dim=1),
            locals=torch.stack([view.locals for view in views], dim=1),
            colours=torch.from_numpy(np.stack([view.colours for view in views], axis=1)),
            masks=masks.unflatten(0, (GLOBAL_VIEWS, self.group)),
            broken=broken,
        )

    def _views(self, row: int, turn: int, broken: list[tuple[str, str]]) -> Views:
        """Views of an image; if it is broken, of one that is drawn in its place.

        Raises:
            DataError: So many in a row are broken that something else must be wrong.
        """
        for attempt in range(_REPLACEMENTS):
            now = row if attempt == 0 else key(self.seed, "replacement", row, turn, attempt) % len(self.source)
            try:
                rng = numpy_generator(self.seed, "views", now, turn, attempt)
                return draw_views(self.source.picture(now), rng, self.augment)
            except Broken as error:
                broken.append((str(self.source.columns["id"][now]), str(error)))
        name, reason = broken[-1]
        raise DataError(
            f"{_REPLACEMENTS} images drawn from {self.source.address} could not be used; the last is {name}: {reason}."
        )


class Loader:
    """Batches of a run, from any step on.

    Args:
        on_broken: Told the id and the reason of every image that could not be used.
    """

    def __init__(
        self, groups: Groups, *, batch: int, workers: int, device: torch.device, on_broken: Callable[[str, str], None]
    ) -> None:
        self.groups, self.batch, self.workers, self.device, self.on_broken = groups, batch, workers, device, on_broken

    def batches(self, *, first: int, steps: int) -> Iterator[Batch]:
        """The batches of steps ``first`` to ``steps``.

        Raises:
            DataError: Hardly an image of the source can be used.
        """
        many = self.batch // self.groups.group
        loader: DataLoader[Group | DataError] = DataLoader(
            self.groups,
            batch_size=None,
            sampler=range(first * many, steps * many),
            num_workers=self.workers,
            prefetch_factor=max(2, 2 * many // self.workers) if self.workers else None,
            worker_init_fn=_quiet if self.workers else None,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
        )
        shipped = iter(loader)
        while members := [self._checked(group) for group in islice(shipped, many)]:
            yield self.join(members)

    def _checked(self, group: Group | DataError) -> Group:
        if isinstance(group, DataError):
            raise group
        for name, reason in group.broken:
            self.on_broken(name, reason)
        return group

    def join(self, groups: list[Group]) -> Batch:
        """Groups side by side, moved to the device and coloured there."""
        masks = torch.cat([group.masks for group in groups], dim=1)
        index, weight = masked_positions(masks)
        colours = torch.cat([group.colours for group in groups], dim=1)
        wide = torch.cat([group.globals for group in groups], dim=1).to(self.device, non_blocking=True)
        near = torch.cat([group.locals for group in groups], dim=1).to(self.device, non_blocking=True)
        batch = Batch(
            globals=self._coloured(wide, colours[:GLOBAL_VIEWS]),
            locals=self._coloured(near, colours[GLOBAL_VIEWS:]) if len(near) else near.float(),
            masks=masks,
            masked_index=index,
            mask_weight=weight,
            groups=tuple(group.number for group in groups),
        )
        return batch.to(self.device)

    def _coloured(
        self, views: UInt8[Tensor, "W B C Y X"], colours: Float[Tensor, "W B P"]
    ) -> Float[Tensor, "W B C Y X"]:
        flat = recolour(views.flatten(0, 1), colours.flatten(0, 1), self.groups.augment.colour)
        return flat.unflatten(0, views.shape[:2])


def _as_it_is(group: Any) -> Any:
    return group


def _quiet(_worker: int) -> None:
    """A worker leaves threads and signals to the main process.

    Ctrl-C, and a scheduler's SIGTERM, reach the whole process group; the main process still needs batches to finish its step.
    Workers end when it tells them to, or within seconds of its death: torch's workers watch for that.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
