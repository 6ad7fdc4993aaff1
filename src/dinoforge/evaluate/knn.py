"""k-nearest-neighbour classification on frozen features (Wu et al. 2018, sec. 3.4), in the setting of DINO, sec. 4.1.

Axes: N labelled images, Q queries, B queries at once, k neighbours, D channels, C classes, K counts of neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.evaluate.largest import largest
from dinoforge.evaluate.score import Score

_BANK_ROWS = 65_536
"""Of the bank, compared in one go; bounds memory, changes no result beyond the rounding of cosines."""


class KnnConfig(Config):
    """The vote."""

    neighbours: int = Field(default=20, gt=0)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's vote weighs ``exp(cosine / temperature)``."""
    rows_at_once: int = Field(default=256, gt=0)
    """Queries compared in one go; bounds memory, changes no result."""


def nearest_in(
    queries: Float[Tensor, "Q D"], bank: Float[Tensor, "N D"], *, count: int, rows_at_once: int
) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """Cosines and rows of the nearest rows of the bank, nearest first; as many as there are where there are fewer.

    Exact; of equally near ones the first in the bank. The bank is compared part by part, so neither it nor the cosines need be
    in memory at once.
    """
    asked = [F.normalize(rows.float(), dim=-1) for rows in queries.split(rows_at_once)]
    best = [(rows[:, :0], rows[:, :0].long()) for rows in asked]
    for start in range(0, len(bank), _BANK_ROWS):
        part = F.normalize(bank[start : start + _BANK_ROWS].to(queries.device).float(), dim=-1)
        for place, rows in enumerate(asked):
            similarity, index = largest(rows @ part.T, count=count)
            if start:  # of equal ones those of earlier parts stand first, as they do in the bank
                before, where = best[place]
                index = torch.cat([where, index + start], 1)
                similarity, chosen = largest(torch.cat([before, similarity], 1), count=count)
                index = index.gather(1, chosen)
            best[place] = similarity, index
    return torch.cat([similarity for similarity, _ in best]), torch.cat([index for _, index in best])


def knn_votes(
    queries: Float[Tensor, "Q D"], bank: Float[Tensor, "N D"], labels: Int[Tensor, " N"], *, classes: int,
    counts: Sequence[int], temperature: float, rows_at_once: int,
) -> Iterator[Float[Tensor, "K B C"]]:  # fmt: skip
    """What the nearest so many rows of the bank give to every class, for some queries after the others.

    Args:
        counts: Of neighbours that vote, rising; one vote a count.
    """
    similarity, index = nearest_in(queries, bank, count=counts[-1], rows_at_once=rows_at_once)
    # Relative to the nearest neighbour's weight: in proportion to a softmax over all, and no overflow at any temperature.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    for some, near in zip(weight.split(rows_at_once), labels.to(index.device)[index].split(rows_at_once), strict=True):
        yield torch.stack(
            [some.new_zeros(len(some), classes).scatter_add_(1, near[:, :k], some[:, :k]) for k in counts]
        )


def knn_classify(
    queries: Float[Tensor, "Q D"],
    bank: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    classes: int,
    config: KnnConfig,
) -> Int[Tensor, " Q"]:
    """Class of each query by the weighted vote of its nearest neighbours in the bank, by cosine."""
    votes = knn_votes(
        queries, bank, labels, classes=classes, counts=[config.neighbours], temperature=config.temperature,
        rows_at_once=config.rows_at_once,
    )  # fmt: skip
    return torch.cat([of[0].argmax(dim=-1) for of in votes])


def knn_scores(
    train: Float[Tensor, "N D"],
    train_labels: Int[Tensor, " N"],
    test: Float[Tensor, "Q D"],
    test_labels: Int[Tensor, " Q"],
    *,
    config: KnnConfig,
) -> list[Score]:
    """Top-1 accuracy of the vote."""
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    answers = knn_classify(test, train, train_labels, classes=classes, config=config)
    accuracy = (answers == test_labels).double().mean().item()
    protocol = f"k={config.neighbours}, temperature {config.temperature}, cosine, {len(train)} train rows"
    return [Score("knn", "accuracy", accuracy, "fraction", True, len(test), protocol)]
