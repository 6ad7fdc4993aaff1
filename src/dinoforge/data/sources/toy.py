"""``toy://species?images=1000&size=64&seed=0&split=train``: pictures drawn when they are asked for."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image
from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import unknown
from dinoforge.base.random import key, numpy_generator
from dinoforge.data.sources.source import Source
from dinoforge.data.toyworld import SPECIES, Scene, render


class ToyWorldConfig(Config):
    """What may stand after the question mark."""

    images: Count = Field(default=4_000, gt=0)
    """Pictures, of all splits together; one in five is for testing."""
    size: int = Field(default=64, ge=8, le=1024)
    """Side of a picture, in pixels."""
    seed: int = Field(default=0, ge=0)
    """Of the world: other seeds, other animals."""
    split: str | None = None
    """``train`` or ``test``; null has both."""


class Toy(Source):
    """Animals of ``SPECIES``. Test animals and their surroundings are drawn from numbers that no training picture uses."""

    def __init__(self, config: ToyWorldConfig) -> None:
        self.address, self._config = "toy://species", config
        numbers = np.arange(config.images)
        splits = np.where(numbers % 5 == 4, "test", "train")
        labels = np.asarray([key(config.seed, "species", int(n)) % len(SPECIES) for n in numbers], dtype=np.int64)
        kept = np.flatnonzero(splits == config.split) if config.split else numbers
        self._numbers = numbers[kept]
        self.columns = {
            "id": np.asarray([f"species/{config.seed}/{config.size}/{n}" for n in self._numbers], dtype=np.str_),
            "label": labels[kept],
            "label_name": np.asarray([SPECIES[label].name for label in labels[kept]], dtype=np.str_),
            "split": splits[kept],
        }

    def scene(self, row: int) -> Scene:
        """The picture of a row with its ground truth."""
        number = int(self._numbers[row])
        rng = numpy_generator(self._config.seed, f"{self.columns['split'][row]} scene", number)
        return render(SPECIES[int(self.columns["label"][row])], rng, size=self._config.size)

    def encoded(self, row: int) -> bytes:
        """The picture as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.pixels(row)).save(file, "PNG")
        return file.getvalue()

    def pixels(self, row: int) -> np.ndarray:
        """The picture itself, without the way through a file."""
        return self.scene(row).pixels

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """``mask``: 1 where the animal is seen."""
        return self.scene(row).mask.astype(np.uint8) if name == "mask" else None


def open_toy(world: str, options: Mapping[str, str]) -> Source:
    """The toy world of that name.

    Raises:
        ConfigError: No such world, option or value.
    """
    if world != "species":
        raise unknown("toy world", world, ["species"])
    unknown_option = next((name for name in options if name not in ToyWorldConfig.model_fields), None)
    if unknown_option:
        raise unknown("option of toy://species", unknown_option, ToyWorldConfig.model_fields)
    if options.get("split") not in {None, "train", "test"}:
        raise unknown("split of toy://species", options["split"], ["train", "test"])
    return Toy(ToyWorldConfig.build(options, prefix="toy://species?"))
