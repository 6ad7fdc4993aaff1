"""``knn``: what the vote of the nearest labelled images says of others."""

from __future__ import annotations

import torch

from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.evaluate.score import Score
from dinoforge.features.eyes import Eyes


def _measure(eyes: Eyes, sides: Sides, config: KnnConfig) -> list[Score]:
    known, asked = eyes.look(sides.known), eyes.look(sides.asked)
    labels = [torch.from_numpy(look.source.columns["label"]) for look in (known, asked)]
    return knn_scores(known.values, labels[0], asked.values, labels[1], config=config)


KNN = Evaluation(KnnConfig, "classes", _measure)
