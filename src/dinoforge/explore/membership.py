"""Is this picture, or a near copy of it, among those that the backbone was trained on? As the verb ``contains`` says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.sources.source import Source
from dinoforge.explore.answers import Asked, Shown
from dinoforge.explore.collection import DECODING, Collection
from dinoforge.features.copies import NAME
from dinoforge.features.described import Embed, stored_copies
from dinoforge.features.descriptors import Descriptors
from dinoforge.features.pairs import DUPLICATE, LAYOUT_DUPLICATE


@dataclass(frozen=True, slots=True)
class Training:
    """What is stored of the images that a backbone was trained on."""

    stored: Descriptors
    threshold: float
    """Similarity above which two images are near copies."""
    embed: Embed | None = None
    """The network that described the stored ones, where it was one."""
    one_at_a_time: Lock = field(default_factory=Lock, repr=False, compare=False)
    """Held while a picture is compared with all of them, which takes all cores and much memory."""


@dataclass(frozen=True, slots=True)
class TrainingMatch:
    """An image of the training set."""

    id: str
    similarity: float
    """Aligned similarity, or cosine of learnt descriptors; 1 for the same bytes."""
    kind: str
    """``exact`` or ``near``."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What of the training set a picture is a copy of."""

    image: Shown
    contained: bool
    near: bool
    """Whether near copies were looked for: only where descriptors are stored."""
    matches: tuple[TrainingMatch, ...]
    """Exact ones first, then the most similar."""


class _Brought(Source):
    """One picture that was brought along."""

    def __init__(self, encoded: bytes) -> None:
        self.address, self._encoded = "a picture that was brought", encoded
        self.columns = {"id": np.asarray(["the picture that was brought"])}

    def encoded(self, row: int) -> bytes:
        return self._encoded


def training_of(stored: Descriptors, *, embed: Embed | None = None) -> Training:
    """What ``curate`` stored of the images of a manifest, see ``stored_beside``; without descriptors only the same bytes match.

    Args:
        embed: The network that described them, if it was one; see ``verbs/describing.py``.
    """
    return Training(stored, LAYOUT_DUPLICATE if stored.name == NAME else DUPLICATE, embed)


def membership(collection: Collection, asked: Asked, training: Training) -> Membership:
    """Whether a picture, or a near copy of it, is in the training set.

    Raises:
        ConfigError: No such row, or the stored ones were described by a network that is not there.
        DataError: The picture cannot be read.
    """
    with collection.decoded(asked, long_side=1):
        pass  # what cannot be read, or is too large, is told here in one line
    source = collection.source.select(np.asarray([asked])) if isinstance(asked, int) else _Brought(asked)
    with training.one_at_a_time, DECODING:
        found, whole = stored_copies(
            source, training.stored, threshold=training.threshold, embed=training.embed, workers=0
        )
    if not whole[0]:
        raise DataError(f"{collection.about(asked).id} cannot be read.")
    matches = tuple(TrainingMatch(one.id, one.similarity, one.kind) for one in found)
    return Membership(collection.about(asked), bool(matches), training.stored.values.shape[1] > 0, matches)
