"""How often answers are right.

Axes: N images, C classes, M labels an image, R samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinoforge.evaluate.score import Score, interval, mean_interval

_RECALLS = tuple(step / 10 for step in range(11))


def ranks(scores: Float[Tensor, "*heads N C"], labels: Int[Tensor, " N"]) -> Int[Tensor, "*heads N"]:
    """At which place, from 0 on, each image's own class stands among all by score; of equal ones the first class first.

    So an answer is among the best k where its rank is below k, and equal scores answer class 0 everywhere. What is no number
    stands before all, so that a head that diverged is never right.
    """
    own = scores.gather(-1, labels.expand(scores.shape[:-1]).unsqueeze(-1))
    before = torch.arange(scores.shape[-1], device=scores.device) < labels.unsqueeze(-1)
    return (~(scores <= own) | ((scores == own) & before)).sum(-1)


def mean_class_accuracy(right: Bool[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> float:
    """The mean of the accuracies of the classes that there are images of."""
    return float(_by_class(right, labels, np.arange(len(right))[None])[0])


def mean_class_interval(right: Bool[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> tuple[float, float]:
    """The 95 % bootstrap interval of ``mean_class_accuracy``; classes that a sample lacks do not count in it."""
    return interval(lambda rows: _by_class(right, labels, rows), len(right))


def _by_class(right: np.ndarray, labels: np.ndarray, rows: Int[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
    classes = int(labels.max()) + 1
    place = (labels[rows] + classes * np.arange(len(rows))[:, None]).ravel()
    counts, hits = (
        np.bincount(place, weights, minlength=classes * len(rows)).reshape(-1, classes)
        for weights in (None, right[rows].ravel())
    )
    return (hits / np.maximum(counts, 1)).sum(1) / (counts > 0).sum(1)


def real_right(answers: Int[Tensor, " N"], labels: Int[Tensor, "N M"]) -> Bool[Tensor, " n"]:
    """Whether each answer is one of the image's labels (Beyer et al. 2020); images without any are left out.

    Args:
        labels: As many as there are, then -1.
    """
    judged = (labels >= 0).any(1)
    return ((labels == answers[:, None]) & (labels >= 0)).any(1)[judged]


def average_precision(scores: Float[np.ndarray, " N"], there: Int[np.ndarray, " N"]) -> float:
    """Mean over the recalls 0, 0.1 … 1 of the best precision at that recall or a higher one (VOC 2007); NaN without a positive.

    Images of equal score are found together, so that their order does not count.

    Args:
        there: 1 where the image has the class, 0 where it has not, -1 where it is not judged ("difficult").
    """
    judged = there >= 0
    order = np.argsort(-scores[judged], kind="stable")
    found, falling = there[judged][order].cumsum(), scores[judged][order]
    if not len(found) or not found[-1]:
        return float("nan")
    last = np.append(falling[1:] != falling[:-1], True)  # of those of equal score
    precision, recall = (found / np.arange(1, len(found) + 1))[last], (found / found[-1])[last]
    return float(np.mean([precision[recall >= level].max(initial=0) for level in _RECALLS]))


def mean_average_precision(scores: Float[np.ndarray, "N C"], there: Int[np.ndarray, "N C"]) -> float:
    """The mean of the classes' 11-point average precisions (VOC 2007), for images that may have several classes.

    Classes without a positive are left out; NaN where all are.
    """
    each = np.asarray([average_precision(*column) for column in zip(scores.T, there.T, strict=True)])
    return float(np.nanmean(each)) if np.isfinite(each).any() else math.nan


def tops(classes: int) -> dict[str, int]:
    """Among how many first answers the right one may be, by the name of the score; five only where there are more classes."""
    return {"accuracy": 1} | ({"top5": 5} if classes > 5 else {})


def accuracy_scores(
    task: str, found: Int[Tensor, " N"], labels: Int[Tensor, " N"], *, classes: int, protocol: str
) -> list[Score]:
    """``accuracy``, ``top5`` where there are more than five classes, and ``mean_class_accuracy``, from ``ranks``."""
    place, own = found.cpu().numpy(), labels.cpu().numpy()
    per_class = Score(
        task, "mean_class_accuracy", mean_class_accuracy(place == 0, own), "fraction", True, len(own), protocol,
        interval=mean_class_interval(place == 0, own),
    )  # fmt: skip
    return [*top_scores(task, found, classes=classes, protocol=protocol), per_class]


def top_scores(task: str, found: Int[Tensor, " N"], *, classes: int, protocol: str, suffix: str = "") -> list[Score]:
    """``accuracy``, and ``top5`` where there are more than five classes, from ``ranks``."""
    place = found.cpu().numpy()
    return [
        Score(task, name + suffix, float((place < k).mean()), "fraction", True, len(place), protocol,
              interval=mean_interval((place < k).astype(float)))
        for name, k in tops(classes).items()
    ]  # fmt: skip
