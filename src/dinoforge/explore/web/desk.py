"""What all pages share: the collection once it is there, what is being computed, what was uploaded, what was drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from dinoforge.base.errors import DataError, RunError, UserError
from dinoforge.explore.answers import Asked, Tell
from dinoforge.explore.collection import Collection
from dinoforge.explore.membership import Training
from dinoforge.explore.web.asks import AsksImage
from dinoforge.explore.web.jobs import Computing, Job, Jobs
from dinoforge.explore.web.names import Names
from dinoforge.explore.web.settings import WebConfig
from dinoforge.explore.web.uploads import Uploads

_BEGINS = 10.0
"""Seconds that a start waits for what is wrong with the collection to show itself."""


class Absent(DataError):
    """What was asked for is not there: 404."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands at the head of every page."""

    data: str
    """Address of the images, without credentials."""
    backbone: str
    """Address of the backbone."""


class Desk:
    """Safe to use from several threads.

    Args:
        opens: Gives the collection; it may take long, and tells how far it is.
        training: What is known of the images that the backbone was trained on, if anything.
    """

    def __init__(
        self, facts: Facts, opens: Callable[[Tell], Collection], uploads: Uploads, limits: WebConfig,
        training: Training | None = None,
    ) -> None:  # fmt: skip
        self.facts, self.uploads, self.limits, self.training, self.jobs = facts, uploads, limits, training, Jobs()
        self._opens, self._pictures = opens, lru_cache(limits.pictures_kept)(self._drawn)

    def begin(self) -> None:
        """Open the collection before anybody asks for it, until it is open or says how far it is.

        Raises:
            UserError: It cannot be opened.
        """
        with suppress(Computing):
            _ = self.collection
        job = self.jobs.begun("features")
        if job is not None and job.told.wait(_BEGINS) and job.error is not None:
            raise job.error

    def failed(self) -> UserError | None:
        """Why the collection cannot be opened now or later."""
        job = self.jobs.begun("features")
        error = None if job is None else job.error
        return error if isinstance(error, UserError) and not isinstance(error, RunError) else None

    def _opened(self, job: Job) -> tuple[Collection, Names]:
        found = self._opens(job.tick)
        return found, Names.of(found)

    @property
    def collection(self) -> Collection:
        """The collection.

        Raises:
            Computing: Its features are not there yet.
        """
        return self.jobs.need("features", "Opening the collection", self._opened)[0]

    @property
    def names(self) -> Names:
        """Ids and labels of the collection, to look for.

        Raises:
            Computing: They are not there yet.
        """
        return self.jobs.need("features", "Opening the collection", self._opened)[1]

    def row(self, number: int) -> int:
        """A row that is there.

        Raises:
            Absent: It is not.
        """
        if number >= len(self.collection):
            raise Absent(f"there is no row {number}; the last one is {len(self.collection) - 1}.")
        return number

    def asked(self, asks: AsksImage) -> Asked | None:
        """The image that is meant, None where none is.

        Raises:
            Absent: It is not there, or no longer.
        """
        if asks.upload is not None:
            return self.upload(asks.upload)
        return None if asks.row is None else self.row(asks.row)

    def upload(self, key: str) -> bytes:
        """The file that was uploaded.

        Raises:
            Absent: It is not there, or no longer.
        """
        found = self.uploads.get(key)
        if found is None:
            raise Absent("this upload is not there any more; choose the image again.")
        return found

    def picture(self, image: int | str, size: int) -> bytes:
        """The picture of a row or of an upload's key as a JPEG file whose long side has at most so many pixels.

        Raises:
            Absent: It is not there, or no longer.
            DataError: It cannot be read any more.
        """
        if isinstance(image, int):
            self.row(image)
        return self._pictures(image, size)

    def shape(self, image: int | str, size: int) -> tuple[int, int]:
        """Width and height of such a picture."""
        with Image.open(io.BytesIO(self.picture(image, size))) as found:
            width, height = found.size
        return width, height

    def _drawn(self, image: int | str, size: int) -> bytes:
        return self.collection.picture(self.upload(image) if isinstance(image, str) else image, size)
