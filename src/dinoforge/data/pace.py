"""What it costs to make the views of an image, stage by stage, in one thread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from dinoforge.base.hardware import wait_for
from dinoforge.base.random import numpy_generator
from dinoforge.data.augment import AugmentConfig, Views, draw_views
from dinoforge.data.decode import RGB, Broken, Reading, open_picture
from dinoforge.data.photometric import recolour
from dinoforge.data.sources.source import Source

_GROUP = 16
"""Images that are coloured together."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds an image."""

    read: float
    """Getting the bytes of the file; of a toy world, drawing the picture."""
    decode: float
    """Making pixels of them, as small as the views allow."""
    geometry: float
    """Crops, resizes, mirror images of all views."""
    photometric: float
    """Colours, blur, normalisation of all views, on the device."""

    @property
    def worker(self) -> float:
        """Seconds of a worker process: all but the colours, which the device does."""
        return self.read + self.decode + self.geometry

    def rates(self) -> dict[str, float]:
        """Images a second of each stage, were it alone."""
        return {name: 1 / max(seconds, 1e-9) for name, seconds in zip(self.__slots__, astuple(self), strict=True)}


def stages(
    source: Source,
    rows: Iterable[int],
    augment: AugmentConfig,
    *,
    device: torch.device,
    reading: Reading = RGB,
    seconds: float = 1.0,
) -> Stages:
    """Measured on the first usable ones of these rows, for about so many seconds.

    Raises:
        DataError: Not one of them can be used.
    """
    spent, coloured = [0.0] * 3, 0.0
    waiting: list[Views] = []
    images, began, trouble = 0, time.perf_counter(), None
    for row in rows:
        if images and time.perf_counter() - began > seconds:
            break
        try:
            once, views = _stages(source, row, augment, reading)
        except Broken as error:
            trouble = error
            continue
        images += 1
        spent = [a + b for a, b in zip(spent, once, strict=True)]
        waiting.append(views)
        if len(waiting) == _GROUP:
            coloured += _coloured(waiting, augment, device)
            waiting = []
    if not images:
        raise trouble or Broken(f"{source.address} has no row to measure")
    if waiting:
        coloured += _coloured(waiting, augment, device)
    return Stages(*(total / images for total in (*spent, coloured)))


def _stages(
    source: Source, row: int, augment: AugmentConfig, reading: Reading
) -> tuple[tuple[float, float, float], Views]:
    """Seconds of reading, decoding and geometry, and what came of them."""
    begun = time.perf_counter()
    # A toy world draws its pictures straight, without a file.
    picture = source.picture(row) if source.address.startswith("toy://") else open_picture(source.encoded(row))
    was_read = time.perf_counter()
    inside = 0.0

    def decoded(reduction: int) -> np.ndarray:
        nonlocal inside
        begun = time.perf_counter()
        pixels = reading.of(picture).pixels(reduction)
        inside += time.perf_counter() - begun
        return pixels

    views = draw_views(replace(reading.of(picture), decoded=decoded), numpy_generator(0, "pace", row), augment)
    return (was_read - begun, inside, time.perf_counter() - was_read - inside), views


def _coloured(many: list[Views], augment: AugmentConfig, device: torch.device) -> float:
    """Seconds of colouring the views of several images together, as in training."""
    begun = time.perf_counter()
    colours = torch.from_numpy(np.stack([views.colours for views in many], axis=1))
    wide = torch.stack([views.globals for views in many], dim=1)
    near = torch.stack([views.locals for views in many], dim=1)
    for part, own in ((wide, colours[: len(wide)]), (near, colours[len(wide) :])):
        if len(part):
            recolour(part.flatten(0, 1).to(device), own.flatten(0, 1), augment.colour)
    wait_for(device)
    return time.perf_counter() - begun
