"""k-nearest-neighbour classification on frozen features (Wu et al. 2018, sec. 3.4), in the setting of DINO, sec. 4.1.

Axes: N labelled images, Q queries, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.evaluate.score import Score


class KnnConfig(Config):
    """The vote."""

    neighbours: int = Field(default=20, gt=0)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's vote weighs ``exp(cosine / temperature)``."""
    rows_at_once: int = Field(default=256, gt=0)
    """Queries compared in one go; bounds memory, changes no result."""


def knn_classify(
    queries: Float[Tensor, "Q D"],
    bank: Float[Tensor, "N D"],
    labels: Int[Tensor, " N"],
    *,
    classes: int,
    config: KnnConfig,
) -> Int[Tensor, " Q"]:
    """Class of each query by the weighted vote of its nearest neighbours in the bank, by cosine."""
    bank = F.normalize(bank.float(), dim=-1)
    answers = []
    for rows in queries.split(config.rows_at_once):
        similarity = F.normalize(rows.float(), dim=-1) @ bank.T
        nearest, index = similarity.topk(min(config.neighbours, len(bank)), dim=-1)
        votes = torch.zeros(len(rows), classes, device=rows.device)
        # Weights relative to the nearest neighbour's: the same winner, and no overflow at any temperature.
        weight = ((nearest - nearest[:, :1]) / config.temperature).exp()
        votes.scatter_add_(1, labels[index], weight)
        answers.append(votes.argmax(dim=-1))
    return torch.cat(answers)


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
