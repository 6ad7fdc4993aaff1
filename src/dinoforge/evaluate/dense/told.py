"""What a head tells of test pictures, as scores.

Axes: Y by X pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from dinoforge.base.log import say
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.dense.infer import MapHead, ViewingConfig
from dinoforge.evaluate.dense.labels import MaskClasses
from dinoforge.evaluate.dense.overlap import counted, overlap_scores
from dinoforge.evaluate.dense.pieces import Viewing, joined
from dinoforge.evaluate.dense.trunk import Trunk
from dinoforge.evaluate.dense.truth import usable_pairs
from dinoforge.evaluate.score import Score
from dinoforge.features.extract import reading


def measured(
    trunk: Trunk, head: MapHead, asked: Source, classes: MaskClasses, config: ViewingConfig, *,
    task: str, short_side: int, window: int, protocol: str,
    answer: Callable[[Tensor], Tensor] = lambda scores: scores,
) -> list[Score]:  # fmt: skip
    """The scores of a head that gives every class a number on any grid of cells.

    Raises:
        DataError: No picture can be read, or one is too large to be seen at once.
    """
    counts, viewing = list[np.ndarray](), Viewing.of(config, short_side=short_side, window=window)
    for pair in usable_pairs(
        asked, "mask", reading(trunk.preprocessing), on_broken=_told, title=f"{task} of {asked.address}"
    ):
        found = joined(trunk, head, pair.pixels, viewing, made=_likeliest, answer=answer)
        counts.append(counted(found, pair.truth, classes))
    return overlap_scores(task, np.stack(counts), classes, protocol=protocol)


def _likeliest(scores: Float[Tensor, "K Y X"]) -> Int[Tensor, "Y X"]:
    return scores.argmax(0)


def _told(name: str, reason: str) -> None:
    """Say that a picture was set aside, which was whole as far as its size."""
    say(f"Set aside {name}: {reason}")
