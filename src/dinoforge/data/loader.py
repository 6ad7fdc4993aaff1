"""From a source to batches: every batch is a function of (seed, step), whoever makes it and wherever it is made.

The unit of work is a *group* of images; workers make groups, the main process joins them and applies the colours.

Axes: g images of a group, L local views, V views, C channels, Y by X and y by x pixels, N patches, P colour parameters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, replace
from itertools import islice
from typing import overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dinoforge.base.errors import ConfigError, DataError, UserError
from dinoforge.base.random import key, numpy_generator
from dinoforge.data.augment import GLOBAL_VIEWS, AugmentConfig, Views, draw_views
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.data.decode import RGB, Broken, Reading, damage
from dinoforge.data.masks import MaskConfig, draw_masks
from dinoforge.data.order import EVENLY, Order, SamplingConfig, weights_of
from dinoforge.data.photometric import recolour
from dinoforge.data.sources.source import Source
from dinoforge.data.workers import ship

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

    def pin_memory(self) -> Group:
        """The same in memory from which a GPU copies while it computes; torch's loader calls this."""
        return replace(self, globals=self.globals.pin_memory(), locals=self.locals.pin_memory())


class Groups(Dataset["Group | UserError"]):
    """All groups of a run by their number since its start.

    What a user can cause is returned, not raised: on its way out of a worker an exception would take a traceback along.

    Raises:
        ConfigError: ``sampling`` names a column that the source has not.
        DataError: Its weights are no numbers, or none is above 0.
    """

    def __init__(
        self, source: Source, augment: AugmentConfig, masks: MaskConfig, sampling: SamplingConfig = EVENLY,
        *, seed: int, group: int, patch: int, reading: Reading = RGB,
    ) -> None:  # fmt: skip
        self.source, self.augment, self.masks, self.seed, self.group = source, augment, masks, seed, group
        self.reading = reading
        self.grid = (augment.global_pixels // patch,) * 2
        self.order = Order(len(source), seed=seed, weights=weights_of(source.columns, sampling))
        self.aside: dict[int, str] = {}
        """Rows that are not read any more, with the reason: reading them killed or held up a worker."""
        self.watched: Int[Tensor, "W"] | None = None
        """Shared with the main process: the row that each worker is reading, or -1."""

    def __getitem__(self, number: int) -> Group | UserError:
        try:
            return self.made(number)
        except UserError as error:
            return error

    def made(self, number: int) -> Group:
        """The group of that number.

        Raises:
            DataError: Hardly an image can be used.
        """
        rows, draws = self.order.at(np.arange(number * self.group, (number + 1) * self.group))
        broken: list[tuple[str, str]] = []
        views = [self._views(int(row), int(draw), broken) for row, draw in zip(rows, draws, strict=True)]
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

    def _views(self, row: int, draw: int, broken: list[tuple[str, str]]) -> Views:
        """Views of an image; if it is broken, of one that is drawn in its place.

        Raises:
            DataError: So many in a row are broken that something else must be wrong.
        """
        for attempt in range(_REPLACEMENTS):
            now = row if attempt == 0 else self._another(row, draw, attempt)
            try:
                with damage():
                    return self._drawn(now, numpy_generator(self.seed, "views", now, draw, attempt))
            except Broken as error:
                broken.append((str(self.source.columns["id"][now]), str(error)))
        name, reason = broken[-1]
        raise DataError(
            f"{_REPLACEMENTS} images drawn from {self.source.address} could not be used; the last is {name}: {reason}."
        )

    def _another(self, row: int, draw: int, attempt: int) -> int:
        """A row in place of one that cannot be used, as often as its weight asks for."""
        place = key(self.seed, "replacement", row, draw, attempt) % len(self.source)
        return int(self.order.at(np.asarray([place]))[0][0])

    def _drawn(self, row: int, rng: np.random.Generator) -> Views:
        """The views of a row, made under the eyes of the main process.

        Raises:
            Broken: The image cannot be used, or was set aside.
        """
        if row in self.aside:
            raise Broken(self.aside[row])
        worker = get_worker_info()
        if self.watched is None or worker is None:
            return draw_views(self.reading.of(self.source.picture(row)), rng, self.augment)
        self.watched[worker.id] = row
        try:
            return draw_views(self.reading.of(self.source.picture(row)), rng, self.augment)
        finally:
            self.watched[worker.id] = -1


@dataclass(frozen=True, slots=True)
class _Numbers(Sequence[int]):
    """Group numbers of a rank from one on, step after step; computed, for a run may have a hundred million."""

    first: int
    length: int
    _: KW_ONLY
    share: int
    many: int
    skip: int = 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            done = index.start or 0
            return replace(self, length=self.length - done, skip=self.skip + done)
        if not 0 <= index < self.length:
            raise IndexError(index)
        step, place = divmod(self.skip + index, self.share)
        return self.first + step * self.many + place


class Loader:
    """Batches of a run, from any step on: all of each batch, or the share of one of several ranks.

    A rank's share is a run of whole groups, so the shares side by side are the batch, whatever ``world`` is; and so is each
    of the ``parts`` that a share comes in.

    Args:
        batch: Images of the whole batch, over all ranks.
        stall_seconds: How long one group may take before its worker is given up.
        on_broken: Told the id and the reason of every image that could not be used.

    Raises:
        ConfigError: The groups of a batch do not divide among so many ranks and parts.
    """

    def __init__(
        self, groups: Groups, *, batch: int, workers: int, device: torch.device, on_broken: Callable[[str, str], None],
        stall_seconds: float = 120.0, rank: int = 0, world: int = 1, parts: int = 1,
    ) -> None:  # fmt: skip
        self.groups, self.batch, self.workers, self.device, self.on_broken = groups, batch, workers, device, on_broken
        self.stall_seconds, self.rank, self.parts = stall_seconds, rank, parts
        self.share = share_of(batch, group=groups.group, world=world) // groups.group
        if self.share % parts:
            raise ConfigError(f"{self.share} groups a rank do not come in {parts} equal parts.")

    def batches(self, *, first: int, steps: int, before: int = 0) -> Iterator[Batch]:
        """The batches of steps ``first`` to ``steps``, part by part.

        Args:
            before: Groups that were seen before step 0, whose numbers are not used again.

        Raises:
            DataError: Hardly an image of the source can be used, or one worker after another dies or hangs.
        """
        many = self.batch // self.groups.group
        numbers = _Numbers(
            before + first * many + self.rank * self.share,
            (steps - first) * self.share,
            share=self.share,
            many=many,
        )
        shipped = ship(
            self.groups, numbers, workers=self.workers, ahead=2 * self.share, pin=self.device.type == "cuda",
            stall_seconds=self.stall_seconds,
        )  # fmt: skip
        with closing(shipped):  # an error ends the workers at once, not when it is forgotten
            while members := [self._checked(group) for group in islice(shipped, self.share // self.parts)]:
                yield self.join(members)

    def _checked(self, group: Group | UserError) -> Group:
        if isinstance(group, UserError):
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


def share_of(batch: int, *, group: int, world: int, setting: str = "plan.batch") -> int:
    """Images of a batch that each rank takes: whole groups, equally many.

    Raises:
        ConfigError: They do not divide so.
    """
    groups = batch // group
    if groups % world:
        fitting = [count for count in range(1, groups + 1) if groups % count == 0]
        near = [max(n for n in fitting if n < world), *[n for n in fitting if n > world][:1]]
        smaller = f", or objective.group={batch // world} (another run)" if batch % world == 0 else ""
        raise ConfigError(
            f"{setting}={batch} is {groups} groups of objective.group={group} images, which do not divide among {world} "
            f"ranks; {' or '.join(map(str, near))} would do{smaller}."
        )
    return batch // world
