"""What a head learns from: windows whose features are computed once, or random crops whose features are computed as they come.

Axes: B crops at once, N windows, Y by X pixels of one, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Num, UInt8
from pydantic import model_validator
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.base.hardware import cores
from dinoforge.base.memory import free_memory_bytes
from dinoforge.base.random import numpy_generator, torch_generator
from dinoforge.data.decode import Broken
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.dense.cut import CropsConfig, Cut, Size, draw_crop, resized_to
from dinoforge.evaluate.dense.infer import windows
from dinoforge.evaluate.dense.learn import LearnConfig
from dinoforge.evaluate.dense.trunk import Trunk
from dinoforge.evaluate.dense.truth import read_pair, usable_pairs
from dinoforge.features.extract import reading
from dinoforge.model.features import Features

_MEMORY = 0.5
"""Share of the free memory that features may take."""


class LessonsConfig(LearnConfig, CropsConfig):
    """What a head learns from, and how."""

    augment: Literal["none", "crops"] = "none"
    """What is learnt from: the windows that pictures are tested by, whose features are computed once, or random crops whose
    features are computed anew in every update (the published protocol)."""

    @model_validator(mode="after")
    def _crops_are_taken(self) -> LessonsConfig:
        for name in CropsConfig.model_fields:
            if self.augment == "none" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}={getattr(self, name)} has no effect with augment=none; take augment=crops.")
        return self


@dataclass(frozen=True, slots=True)
class Lesson:
    """Some crops: the features of the blocks, and what is true of every pixel; on the device."""

    step: int
    """The update, from 0."""
    layers: list[Features]
    truth: Num[Tensor, "B Y X"]


@dataclass(frozen=True, slots=True)
class Truths:
    """Which ground truth a head learns, and how pictures are cut for it."""

    name: str
    """Of the map, see ``Source.extra``."""
    ignore: float
    """What it says where nothing is known."""
    short_side: int
    """Of a picture, in pixels."""
    window: Size
    """Rows and columns of a crop."""
    dtype: torch.dtype = torch.int64
    """Of the truth of a lesson."""


def rows_of(step: int, *, count: int, batch: int, seed: int) -> Int[np.ndarray, " B"]:
    """Which of so many are learnt from in an update: pass after pass, each in a new order, an unfilled batch going on in the
    next."""
    places = np.arange(step * batch, (step + 1) * batch)
    return np.asarray([_order(seed, int(place // count), count)[place % count] for place in places])


@lru_cache(4)
def _order(seed: int, number: int, count: int) -> np.ndarray:
    return torch.randperm(count, generator=torch_generator(seed, "dense order", number)).numpy()


class Windows:
    """The windows that pictures of a source are seen by, with features that are computed once.

    Raises:
        DataError: Nothing usable, sizes that differ, or more features than there is memory for.
    """

    def __init__(self, trunk: Trunk, source: Source, truths: Truths, *, on_broken: Callable[[str, str], None]) -> None:
        self._device, self._dtype = trunk.how.device, truths.dtype
        self._layers, self._truth, self._count = list[Features](), torch.empty(0), 0
        how, title, most = reading(trunk.preprocessing), f"features of {source.address}", _windows_in(source, truths)
        for pair in usable_pairs(source, truths.name, how, on_broken=on_broken, title=title):
            cuts = _cuts(pair.truth.shape[0], pair.truth.shape[1], truths)
            for first in range(0, len(cuts), trunk.how.rows_at_once):
                some = cuts[first : first + trunk.how.rows_at_once]
                found = trunk(torch.stack([cut.picture(pair.pixels, trunk.fill) for cut in some]))
                maps = torch.from_numpy(np.stack([cut.truth(pair.truth, truths.ignore) for cut in some]))
                if not self._layers:
                    self._make_room(found, maps, windows=most, address=source.address)
                self._keep(found, maps)

    def _make_room(self, found: list[Features], maps: Num[Tensor, "B Y X"], *, windows: int, address: str) -> None:
        """Tensors for all windows, so that nothing is ever there twice."""
        needed = windows * sum(part[0].nbytes for part in [maps, *(part for one in found for part in _kept(one))])
        free = free_memory_bytes(torch.device("cpu"))
        if needed > _MEMORY * free:
            raise DataError(
                f"the features and maps of {address} would take {needed / 2**30:.1f} GiB of the {free / 2**30:.1f} that are "
                "free; learn from crops (augment=crops), which keeps none, or from fewer images (train_rows=)."
            )
        self._truth = maps.new_empty(windows, *maps.shape[1:])
        self._layers = [Features(*(torch.empty(windows, *part.shape[1:]) for part in _kept(one))) for one in found]

    def _keep(self, found: list[Features], maps: Num[Tensor, "B Y X"]) -> None:
        places = slice(self._count, self._count + len(maps))
        self._truth[places] = maps
        for room, one in zip(self._layers, found, strict=True):
            for own, part in zip(_kept(room), _kept(one), strict=True):
                own[places] = part
        self._count += len(maps)

    def __len__(self) -> int:
        return self._count

    def lessons(self, config: LearnConfig) -> Iterator[Lesson]:
        """One for each update."""
        for step in range(config.iterations):
            rows = torch.from_numpy(rows_of(step, count=len(self), batch=config.batch, seed=config.seed))
            layers = [Features(*(part[rows].to(self._device) for part in _kept(one))) for one in self._layers]
            yield Lesson(step, layers, self._truth[rows].to(self._device, self._dtype))


def _kept(one: Features) -> tuple[Tensor, Tensor, Tensor]:
    """What heads look at: all but the registers."""
    return one.image, one.registers[:, :0], one.patches


def _cuts(height: int, width: int, truths: Truths) -> list[Cut]:
    size = resized_to((height, width), truths.short_side)
    return [Cut(size, truths.window, corner) for corner in windows(size, truths.window)]


def _windows_in(source: Source, truths: Truths) -> int:
    """How many there are at most, by what the pictures say of their sizes."""
    count = 0
    for row in range(len(source)):
        with suppress(Broken):
            picture = source.picture(row)
            count += len(_cuts(picture.height, picture.width, truths))
    return count


def lessons_of(
    trunk: Trunk, source: Source, truths: Truths, config: LessonsConfig, *, on_broken: Callable[[str, str], None]
) -> Iterator[Lesson]:
    """One for each update, from windows or from crops.

    Raises:
        DataError: See ``Windows`` and ``Crops``.
    """
    if config.augment == "none":
        return Windows(trunk, source, truths, on_broken=on_broken).lessons(config)
    return Crops(trunk, source, truths, config, on_broken=on_broken).lessons(config)


class Crops:
    """Random crops of the pictures of a source; those of the next update are read while this one is computed.

    Args:
        source: Of pictures that have a map (``with_truth``).
    """

    def __init__(
        self, trunk: Trunk, source: Source, truths: Truths, config: CropsConfig, *,
        on_broken: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._trunk, self._source, self._truths, self._config = trunk, source, truths, config
        self._on_broken, self._told = on_broken, set[int]()

    def pictures(self, config: LearnConfig) -> Iterator[tuple[UInt8[Tensor, "B C Y X"], Num[Tensor, "B Y X"]]]:
        """Crops and their maps, on the processor, one batch for each update."""
        with ThreadPoolExecutor(1 if self._trunk.how.device.type == "cpu" else cores()) as pool:
            try:
                waiting = [pool.submit(self._crop, *draw) for draw in self._draws(0, config)]
                for step in range(config.iterations):
                    found = [one.result() for one in waiting]
                    following = self._draws(step + 1, config) if step + 1 < config.iterations else []
                    waiting = [pool.submit(self._crop, *draw) for draw in following]
                    pictures, maps = zip(*found, strict=True)
                    yield torch.stack(pictures), torch.from_numpy(np.stack(maps))
            finally:
                pool.shutdown(cancel_futures=True)

    def lessons(self, config: LearnConfig) -> Iterator[Lesson]:
        """One for each update."""
        for step, (pictures, maps) in enumerate(self.pictures(config)):
            yield Lesson(step, self._trunk(pictures), maps.to(self._trunk.how.device, self._truths.dtype))

    def _draws(self, step: int, config: LearnConfig) -> list[tuple[int, np.random.Generator]]:
        places = rows_of(step, count=len(self._source), batch=config.batch, seed=config.seed)
        return [
            (int(place), numpy_generator(config.seed, "dense crop", step, number))
            for number, place in enumerate(places)
        ]

    def _crop(self, place: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """A crop of that picture, or of the next one that can be read.

        Raises:
            DataError: None can be read.
        """
        truths, how = self._truths, reading(self._trunk.preprocessing)
        for beyond in range(len(self._source)):
            row = (place + beyond) % len(self._source)
            try:
                pair = read_pair(self._source, row, truths.name, how)
            except Broken as error:
                if row not in self._told:
                    self._told.add(row)
                    self._on_broken(str(self._source.columns["id"][row]), str(error))
                continue
            return draw_crop(
                rng, pair, self._config, short_side=truths.short_side, window=truths.window, ignore=truths.ignore,
                fill=self._trunk.fill,
            )  # fmt: skip
        raise DataError(f"{self._source.address} has no {truths.name} that can be read together with its picture.")
