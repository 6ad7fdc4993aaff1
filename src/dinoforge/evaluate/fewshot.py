"""``fewshot``: the vote of the nearest of only a few labelled images a class, drawn several times.

Axes: N labelled images, Q queries, n images drawn, K counts of neighbours, T tries.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.base.random import numpy_generator
from dinoforge.evaluate.classes import Classes, classes_of
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.metrics import tops
from dinoforge.evaluate.neighbours import Counts, VoteConfig, best, best_of, vote_ranks
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.eyes import Eyes


class FewshotConfig(VoteConfig):
    """Who votes, and how. Numbers of neighbours above the images of a class give way to that number itself."""

    shots: Counts = (1, 5, 10)
    """Images of every class that vote; several numbers are measured one by one. Of the default, those that every class has."""
    tries: int = Field(default=5, gt=0)
    """How often they are drawn; scores are the mean."""
    seed: int = Field(default=0, ge=0)
    """Of the draws."""


def chosen(labels: Int[np.ndarray, " N"], shots: int, *, seed: int, number: int) -> Int[np.ndarray, " n"]:
    """Rows of so many random images of every class; fewer shots are the first ones of more.

    Args:
        number: Of the try.
    """
    rows = []
    for label in np.unique(labels):
        rng = numpy_generator(seed, "few shots", number, int(label))
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:shots])
    return np.concatenate(rows)


def _shots(config: FewshotConfig, labels: Tensor, classes: Classes, address: str) -> tuple[int, ...]:
    """The numbers of images a class that are measured."""
    images = labels.bincount(minlength=len(classes))
    fewest = int(images.min())
    if config.shots == FewshotConfig.model_fields["shots"].default:
        return tuple(shots for shots in config.shots if shots <= fewest)
    if config.shots[-1] > fewest:
        raise DataError(
            f"fewshot.shots must be at most {fewest}, the images of class {classes.names[int(images.argmin())]} of {address}; "
            f"got {list(config.shots)}."
        )
    return config.shots


def _measure(eyes: Eyes, sides: Sides, config: FewshotConfig) -> list[Score]:
    known, asked = eyes.look(sides.known), eyes.look(sides.asked)
    classes = classes_of(known.source, asked.source)
    labels, own = classes.of(known.source), classes.of(asked.source).to(eyes.how.device)
    scores = []
    for shots in _shots(config, labels, classes, known.source.address):
        counts = sorted({*(count for count in config.neighbours if count < shots), shots})
        draws = [chosen(labels.numpy(), shots, seed=config.seed, number=number) for number in range(config.tries)]
        found = torch.stack([
            vote_ranks((known.values[rows], labels[rows]), (asked.values.to(own.device), own), classes=len(classes),
                       counts=counts, config=config)
            for rows in draws
        ])  # fmt: skip
        place = best(found)
        how = f"k={counts[place]}{best_of(counts)}, temperature {config.temperature:g}, cosine"
        protocol = f"{shots} images a class, {config.tries} tries, {how}"
        scores += _scores(found[:, place], len(classes), protocol, shots)
    return scores


def _scores(found: Int[Tensor, "T Q"], classes: int, protocol: str, shots: int) -> list[Score]:
    """Means over the tries; the interval is over the images, the spread over the tries."""
    scores = []
    for name, k in tops(classes).items():
        right = (found < k).double().cpu().numpy()
        spread = float(right.mean(1).std(ddof=1)) if len(right) > 1 else None
        scores.append(
            Score("fewshot", f"{name}_shots{shots}", float(right.mean()), "fraction", True, right.shape[1], protocol,
                  interval=mean_interval(right.mean(0)), spread=spread)
        )  # fmt: skip
    return scores


FEWSHOT = Evaluation(FewshotConfig, "classes", _measure)
