"""``knn``: what the vote of the nearest labelled images says of others, for several numbers of neighbours.

As in the released evaluation: the best number is taken, and it is chosen on the very images that it is reported for.

Axes: N labelled images, Q queries, D channels, K counts of neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.classes import classes_of
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.knn import knn_votes
from dinoforge.evaluate.lists import listed, rising
from dinoforge.evaluate.metrics import accuracy_scores, ranks, top_scores
from dinoforge.evaluate.score import Score
from dinoforge.features.eyes import Eyes


def _counted(counts: tuple[int, ...]) -> tuple[int, ...]:
    if not counts or min(counts) < 1:
        raise ValueError(f"takes a whole number above 0, or a list of them; got {list(counts)}.")
    return rising(counts)


Counts = Annotated[
    tuple[int, ...],
    BeforeValidator(listed),
    AfterValidator(_counted),
]
"""One number, or several of which each is tried: 20, [10, 20]."""


class VoteConfig(Config):
    """Who votes, and how."""

    neighbours: Counts = (10, 20, 100, 200)
    """Neighbours that vote; of several numbers the best on the test images counts. Of the default, more than there are images
    to learn from means all."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's vote weighs exp(cosine / temperature)."""
    rows_at_once: int = Field(default=256, gt=0)
    """Queries compared in one go; bounds memory, changes no result."""


def vote_ranks(
    known: tuple[Float[Tensor, "N D"], Int[Tensor, " N"]], asked: tuple[Float[Tensor, "Q D"], Int[Tensor, " Q"]], *,
    classes: int, counts: Sequence[int], config: VoteConfig,
) -> Int[Tensor, "K Q"]:  # fmt: skip
    """At which place each query's own class is among all, by the vote of so many neighbours (``metrics.ranks``).

    Args:
        known: Features and classes of the images that vote.
        asked: Features and classes of the queries.
        counts: Of neighbours, rising.
    """
    values, own = asked
    votes = knn_votes(
        values, *known, classes=classes, counts=counts, temperature=config.temperature, rows_at_once=config.rows_at_once
    )
    return torch.cat(
        [ranks(some, here) for some, here in zip(votes, own.split(config.rows_at_once), strict=True)], dim=1
    )


def best(found: Int[Tensor, "T K Q"]) -> int:
    """Which count of neighbours is right most often over all tries; of equal ones the first."""
    return int((found == 0).sum((0, 2)).argmax())


def best_of(counts: Sequence[int]) -> str:
    """How the count was found, in words for a protocol."""
    return f" (best on the test images of {', '.join(map(str, counts))})" if len(counts) > 1 else ""


def _counts(config: VoteConfig, known: Source, images: int) -> list[int]:
    """The numbers of neighbours that are tried, of so many images."""
    if config.neighbours == VoteConfig.model_fields["neighbours"].default:
        return sorted({min(count, images) for count in config.neighbours})
    if config.neighbours[-1] > images:
        raise ConfigError(
            f"knn.neighbours must be at most {images}, the images of {known.address}; got {list(config.neighbours)}."
        )
    return list(config.neighbours)


def _measure(eyes: Eyes, sides: Sides, config: VoteConfig) -> list[Score]:
    known, asked = eyes.look(sides.known), eyes.look(sides.asked)
    classes, counts = classes_of(known.source, asked.source), _counts(config, known.source, len(known.rows))
    own = classes.of(asked.source).to(eyes.how.device)
    found = vote_ranks(
        (known.values, classes.of(known.source)), (asked.values.to(own.device), own), classes=len(classes), counts=counts,
        config=config,
    )  # fmt: skip
    chosen, how = best(found[None]), f"temperature {config.temperature:g}, cosine, {len(known.rows)} train rows"
    protocol = f"k={counts[chosen]}{best_of(counts)}, {how}"
    scores = accuracy_scores("knn", found[chosen], own, classes=len(classes), protocol=protocol)
    for count, some in zip(counts, found, strict=True) if len(counts) > 1 else ():
        scores += top_scores("knn", some, classes=len(classes), protocol=f"k={count}, {how}", suffix=f"_k{count}")
    return scores


KNN = Evaluation(
    VoteConfig, "classes", _measure, check=lambda sides, config: _counts(config, sides.known, len(sides.known))
)
