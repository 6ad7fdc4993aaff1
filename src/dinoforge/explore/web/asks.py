"""What a page is asked: the words in its address, each checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dinoforge.base.config import Config
from dinoforge.explore.search import MOST

Row = Annotated[int, Field(ge=0, lt=2**31)]
Key = Annotated[str, Field(pattern="^[0-9a-f]{24}$")]
MOST_OUTLIERS = 500
Share = Annotated[float, Field(ge=0, le=1)]


class Asks(Config):
    """Base of what pages are asked. A field of a form that was left empty is one that was not sent."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value != ""} if isinstance(values, Mapping) else values


class AsksList(Asks):
    """Which part of the collection."""

    page: int = Field(default=1, ge=1, lt=2**31)
    """Number of the page, from 1."""
    label: str | None = Field(default=None, max_length=500)
    """Only images of this label: its name, or its number where it has no name."""
    find: str | None = Field(default=None, max_length=500)
    """Only images whose id holds this text."""


class AsksImage(Asks):
    """One image: a row of the collection, or an upload."""

    row: Row | None = None
    """Row of the collection, from 0."""
    upload: Key | None = None
    """What an upload was answered with."""

    @model_validator(mode="after")
    def _one(self) -> AsksImage:
        if self.row is not None and self.upload is not None:
            raise ValueError("give row or upload, not both")
        return self


class AsksSearch(AsksImage):
    """The images most like one."""

    count: int = Field(default=24, ge=1, le=MOST)
    """Answers at most."""


class AsksRegion(AsksSearch):
    """The places most like one: edges of a box in shares of the image's width and height, from the left and from the top."""

    left: Share | None = None
    """Left edge."""
    top: Share | None = None
    """Upper edge."""
    right: Share | None = None
    """Right edge."""
    bottom: Share | None = None
    """Lower edge."""

    @model_validator(mode="after")
    def _whole_box(self) -> AsksRegion:
        edges = [self.left, self.top, self.right, self.bottom]
        if None in edges:
            if any(edge is not None for edge in edges):
                raise ValueError("a box takes left, top, right and bottom")
            return self
        if not (edges[0] < edges[2] and edges[1] < edges[3]):  # type: ignore[operator]
            raise ValueError("a box has left below right and top below bottom")
        return self

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom; None where no box was given."""
        if self.left is None or self.top is None or self.right is None or self.bottom is None:
            return None
        return self.left, self.top, self.right, self.bottom


class AsksParts(Asks):
    """Several images whose parts are coloured together."""

    rows: str | None = Field(default=None, pattern=r"^\d{1,9}(,\d{1,9}){0,23}$")
    """Rows of the collection joined by commas, 24 at most."""
    upload: Key | None = None
    """An upload to colour along with them."""

    @property
    def numbers(self) -> list[int]:
        """The rows, each once."""
        return [int(row) for row in dict.fromkeys((self.rows or "").split(",")) if row]


class AsksMatch(AsksImage):
    """Two images."""

    other: Row | None = None
    """The second one: a row of the collection."""
    lines: int = Field(default=16, ge=1, le=64)
    """Pairs of patches at most."""


class AsksGroups(Asks):
    """Near copies."""

    page: int = Field(default=1, ge=1, lt=2**31)
    """Number of the page, from 1."""


class AsksOutliers(Asks):
    """Images like no other."""

    count: int = Field(default=48, ge=1, le=MOST_OUTLIERS)
    """Images at most."""


class AsksMap(Asks):
    """The map of the collection."""

    colour: Literal["cluster", "label", "reason"] = "cluster"
    """What the colours mean."""
    points: int = Field(default=2000, ge=1, le=10_000)
    """Points at most; of more images an even sample is shown."""
