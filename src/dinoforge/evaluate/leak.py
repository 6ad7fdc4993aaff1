"""Which images of an evaluation were seen in training, exactly or nearly, by descriptors that were stored of what was.

A score on images that a backbone was trained on says little of others. DINOv2 (app. A) takes near copies of evaluation
images out of the pool; where that was not done, or with other images, the score is given without the leaked ones too.

Axes: N images that are asked.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from dinoforge.base.errors import DataError
from dinoforge.data.sources.clips import Clips
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.features.copies import NAME
from dinoforge.features.described import Embed, stored_copies
from dinoforge.features.descriptors import Descriptors
from dinoforge.features.pairs import LAYOUT_LEAK, LEAK

_FRAMES = 8


def leaked(
    asked: Source, against: Descriptors, *, threshold: float | None = None, embed: Embed | None = None, workers: int = 1
) -> Bool[np.ndarray, " N"]:
    """Which images of a source have a copy among the stored ones; an image that cannot be read has none.

    A clip has one where one of eight evenly spaced frames has.

    Args:
        against: What is stored of the training images, see ``stored_beside``. Without descriptors only the same bytes count.
        threshold: Similarity above which two are copies. None: that of curation against evaluation images, 0.89 of the
            descriptor that needs no weights, cosine 0.45 of a learnt one.
        embed: What described the stored images, where that was a network.
        workers: Processes that read and compare.

    Raises:
        ConfigError: The stored images were described by a network, and ``embed`` is None.
        DataError: Descriptors that were not made by one and the same.
    """
    if isinstance(asked, Clips):
        frames = leaked(asked.frames(_FRAMES), against, threshold=threshold, embed=embed, workers=workers)
        return np.asarray(frames.reshape(len(asked), _FRAMES).any(axis=1))
    if threshold is None:
        threshold = LAYOUT_LEAK if against.name == NAME else LEAK
    found, _ = stored_copies(asked, against, threshold=threshold, embed=embed, workers=workers)
    mask = np.zeros(len(asked), bool)
    mask[[one.image for one in found]] = True
    return mask


def spared(sides: Sides, leaks: Bool[np.ndarray, " N"]) -> Sides:
    """The same evaluation without the leaked images among those that are asked; where each is sought among all others, they
    are sought among the rest.

    Raises:
        DataError: Nothing is left.
    """
    if leaks.all():
        raise DataError(
            f"every image of {sides.asked.address} is in the training data, or nearly; test images must be others."
        )
    rest = sides.asked.select(np.flatnonzero(~leaks))
    return Sides(rest if sides.itself else sides.known, rest, sides.itself)
