"""How well classes of pixels are told: intersection over union, from counts of each picture.

Axes: N pictures, K classes, Y by X pixels, R sets of pictures.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Num

from dinoforge.evaluate.dense.labels import MaskClasses
from dinoforge.evaluate.score import Score, interval

Counts = Num[np.ndarray, "R 3 K"]
"""Pixels of every class in some sets of pictures: rightly told, truly there, told. Only pixels that are known count."""


def counted(
    answers: Int[np.ndarray, "Y X"], truth: Num[np.ndarray, "Y X"], classes: MaskClasses
) -> Int[np.ndarray, "3 K"]:
    """The counts of one picture."""
    known = truth != classes.ignore
    true, told = truth[known].astype(np.int64), answers[known]
    return np.stack([np.bincount(of, minlength=len(classes)) for of in (true[true == told], true, told)])


def class_ious(counts: Counts) -> Float[np.ndarray, "R K"]:
    """Of every class the pixels rightly told among those that are or are told to be of it; NaN where truth has none."""
    right, true, told = (counts[..., part, :].astype(float) for part in range(3))
    return np.divide(right, true + told - right, out=np.full_like(right, np.nan), where=true > 0)


def mean_iou(counts: Counts) -> Float[np.ndarray, " R"]:
    """The mean over the classes that truth has, ``mIoU``."""
    return _mean(class_ious(counts))


def mean_class_accuracy(counts: Counts) -> Float[np.ndarray, " R"]:
    """The mean over the classes that truth has of the share of their pixels that is rightly told."""
    right, true = counts[..., 0, :].astype(float), counts[..., 1, :]
    return _mean(np.divide(right, true, out=np.full_like(right, np.nan), where=true > 0))


def pixel_accuracy(counts: Counts) -> Float[np.ndarray, " R"]:
    """The share of pixels rightly told."""
    return counts[..., 0, :].sum(-1) / np.maximum(counts[..., 1, :].sum(-1), 1)


def _mean(values: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
    there = np.isfinite(values)
    return np.where(there, values, 0).sum(-1) / np.maximum(there.sum(-1), 1)


_MEASURES = {"miou": mean_iou, "pixel_accuracy": pixel_accuracy, "mean_class_accuracy": mean_class_accuracy}


def overlap_scores(task: str, counts: Int[np.ndarray, "N 3 K"], classes: MaskClasses, *, protocol: str) -> list[Score]:
    """``miou``, ``pixel_accuracy``, ``mean_class_accuracy``, each with the interval over pictures, and the IoU of every class.

    Classes that are nowhere in the truth of the test pictures are left out of the means and have no score of their own; in a
    bootstrap sample, those that the sample lacks.
    """
    whole, pictures, found = counts.sum(0)[None], len(counts), list[Score]()
    flat = counts.reshape(pictures, -1).astype(float)
    how = f"over all pixels of the test pictures but those that are {classes.ignore}; {protocol}"
    for name, measure in _MEASURES.items():

        def sampled(rows: np.ndarray, measure=measure) -> np.ndarray:  # type: ignore[no-untyped-def]
            # How often each picture is in a sample: sums of millions of counts by one product.
            often = np.stack([np.bincount(sample, minlength=pictures) for sample in rows])
            return np.asarray(measure((often @ flat).reshape(len(rows), 3, -1)))

        within = interval(sampled, pictures)
        value = float(measure(whole)[0])
        found.append(Score(task, name, value, "fraction", True, pictures, how, interval=within))
    for number, value in enumerate(class_ious(whole)[0].tolist()):
        if np.isfinite(value):
            there = int((counts[:, 1, number] > 0).sum())
            found.append(Score(task, f"iou_{classes.names[number]}", value, "fraction", True, there, how))
    return found
