"""What a filter for safety is: the seam between the stage ``safety`` and all that looks for what must not be learned from.

A new filter is a file and a line in ``table.py``. One of another package is a line in that package's own ``pyproject.toml``,

    [project.entry-points."dinoforge.safety"]
    watermarks = "their_package.watermarks:WATERMARKS"

where ``WATERMARKS`` is a ``Kind``; its settings are then ``safety.watermarks.…`` of ``curate``.

Axes: n images that are judged together, D channels of an embedding; images and boxes of each are of any number (_).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError
from dinoforge.base.files import sha256
from dinoforge.base.home import at_home

Need = Literal["url", "embedding", "bytes", "image"]
"""What a filter looks at. The cheaper runs first: ``url`` costs nothing, ``image`` decodes every picture once more."""
NEEDS: tuple[Need, ...] = ("url", "embedding", "bytes", "image")
LONGEST = 1024
"""Pixels of the longer side of the images that a filter sees: larger ones are reduced."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Some images, as much of them as a filter needs. Address and hash are known of every one, whatever it needs."""

    url: Shaped[np.ndarray, " n"]
    """Addresses where the source knows them, else ids."""
    sha256: Shaped[np.ndarray, " n"]
    """Of the files, 64 hexadecimal digits."""
    embeddings: Float32[np.ndarray, "n D"] | None = None
    """By what embeds in this curation (``backbone=``); for ``embedding``."""
    files: Sequence[bytes] = ()
    """The image files as they are; for ``bytes``."""
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]] = ()
    """Red, green, blue, each of its own size, turned upright; for ``image``."""

    def __len__(self) -> int:
        return len(self.sha256)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a filter says of the images that it was asked about, in their order."""

    keep: Bool[np.ndarray, " n"]
    reason: Shaped[np.ndarray, " n"]
    """Why an image goes, from a short list of the filter's; not read where it stays."""
    scores: Float32[np.ndarray, " n"]
    """The higher, the surer that it must go; NaN where the filter has no number."""
    boxes: Sequence[Float32[np.ndarray, "_ 4"]] | None = None
    """Places in each image: left, top, right, bottom, in shares of its width and height, 0 to 1. None for a filter that finds
    no places. What is made of them is said by ``Filter.blurs``."""

    @classmethod
    def of(
        cls, keep: Bool[np.ndarray, " n"], reason: str, scores: Float32[np.ndarray, " n"] | None = None,
        boxes: Sequence[Float32[np.ndarray, "_ 4"]] | None = None,
    ) -> Judged:  # fmt: skip
        """With one reason for all that go."""
        none = np.full(len(keep), np.nan, np.float32)
        return cls(keep, np.full(len(keep), reason), none if scores is None else scores, boxes)


@dataclass(frozen=True, slots=True)
class File:
    """A file that a filter is made of, as it goes into summary and manifest."""

    name: str
    sha256: str
    licence: str | None
    """As the user gave it; None where nobody said."""

    @classmethod
    def read(cls, path: str, setting: str, licence: str | None = None) -> File:
        """What is known of a file that a setting names.

        Raises:
            ConfigError: There is none, or it cannot be read.
        """
        place = at_home(path)
        if not place.is_file():
            raise ConfigError(f"{setting}={path} {'is no file' if place.exists() else 'does not exist'}.")
        try:
            return cls(place.name, sha256(place), licence)
        except OSError as error:
            raise ConfigError(f"{setting}={path} cannot be read: {error.strerror}.") from None


@dataclass(frozen=True, kw_only=True)
class Filter(ABC):
    """A filter, ready to judge."""

    needs: Need
    """What it looks at."""
    files: Sequence[File] = ()
    """What it is made of: lists, models."""
    blurs: bool = False
    """Whether the boxes that it finds are made unrecognisable wherever the manifest's images are read."""
    embedder: str | None = None
    """What must have embedded the images (``Embedder.known_as``); None where it does not matter."""

    @abstractmethod
    def judge(self, asked: Asked) -> Judged:
        """Judge some images; the same for the same, whichever others stand beside them.

        Raises:
            UserError: The filter cannot judge these images at all.
        """


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of filter: its settings, and how it is made of them."""

    about: str
    """What it looks for, for the help."""
    config: type[Config]
    """With at least one setting that is required: the filter runs where its settings are given."""
    make: Callable[[Any], Filter]
    """From the settings. Raises a ``UserError`` of one line where they name what is not there or not fit."""


def about(one: Filter) -> dict[str, Any]:
    """A filter's own facts, for summary and manifest."""
    return {"needs": one.needs, "files": [asdict(file) for file in one.files]}
