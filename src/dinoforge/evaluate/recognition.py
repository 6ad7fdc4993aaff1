"""Which of many things a query shows, or none of them: k-NN classification with a confidence, judged by GAP.

The protocol of the Met dataset (Ypsilantis et al. 2021, sec. 4): a thing is as similar as the most similar of its images among
the k nearest, the others have similarity 0, and a softmax over all things gives the answer and its confidence. Queries that
show none of them, distractors, have no right answer: every confident answer to one costs precision.

Axes: Q queries, q of them at once, N gallery images, D channels, K neighbours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.base.errors import DataError
from dinoforge.evaluate.decisions import Decisions
from dinoforge.evaluate.ranking import rankings
from dinoforge.evaluate.score import Score, mean_interval


class RecognitionConfig(Config):
    """How sure an answer is. Both were tuned on the validation split of Met; no one value is published."""

    neighbours: int = Field(default=10, gt=0)
    """Nearest images that are looked at. The answer is always the nearest one's; they change its confidence alone."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the softmax over similarities."""


def recognised(
    queries: Float[Tensor, "Q D"],
    gallery: Float[Tensor, "N D"],
    labels: Int[np.ndarray, " N"],
    *,
    config: RecognitionConfig,
) -> tuple[Int[np.ndarray, " Q"], Float64[np.ndarray, " Q"]]:
    """The label of each query, and the log-odds of its probability p, ``log(p / (1 - p))``: many a p itself rounds to 1."""
    from scipy.special import logsumexp

    things, answers, confidence = len(np.unique(labels)), list[np.ndarray](), list[np.ndarray]()
    for _, order, near in rankings(queries, gallery, count=config.neighbours):
        label = labels[order]
        best = _firsts(label)  # the nearest image of each thing
        scores = np.maximum(near.astype(np.float64), 0) / config.temperature
        rest = things - best.sum(axis=1)
        with np.errstate(divide="ignore"):  # without any other thing, the odds are infinite
            others = np.concatenate([np.where(best, scores, -np.inf)[:, 1:], np.log(rest)[:, None]], axis=1)
            confidence.append(scores[:, 0] - logsumexp(others, axis=1))
        answers.append(label[:, 0])
    return np.concatenate(answers), np.concatenate(confidence)


def _firsts(labels: Int[np.ndarray, "q K"]) -> Bool[np.ndarray, "q K"]:
    """Which labels no earlier one of their row equals; by sorting, for a table of all pairs of a row would outgrow memory."""
    order = labels.argsort(axis=1, kind="stable")
    ranked = np.take_along_axis(labels, order, axis=1)
    new = np.ones(labels.shape, bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    found = np.empty_like(new)
    np.put_along_axis(found, order, new, axis=1)
    return found


def recognition_scores(
    queries: Float[Tensor, "Q D"], gallery: Float[Tensor, "N D"], query_labels: Int[np.ndarray, " Q"],
    labels: Int[np.ndarray, " N"], *, config: RecognitionConfig, seen: str,
) -> list[Score]:  # fmt: skip
    """GAP over all queries, GAP and accuracy over those that show something of the gallery.

    Args:
        query_labels: -1, or a label that no gallery image has, for a distractor.
        labels: -1 for gallery images that cannot be an answer.
        seen: What of a picture, for the protocol.

    Raises:
        DataError: All queries are distractors.
    """
    named = np.flatnonzero(labels >= 0)
    known = np.isin(query_labels, labels[named])
    if not known.any():
        raise DataError("every query is a distractor; some must show what a gallery image shows.")
    answers, confidence = recognised(queries, gallery[named], labels[named], config=config)
    right = answers == query_labels
    how = f"{seen}, k={config.neighbours}, temperature {config.temperature}, {len(named)} images"
    protocol = f"{how}, {int((~known).sum())} distractors"
    scores = []
    for name, some in (("GAP", np.ones_like(known)), ("GAP_without_distractors", known)):
        wanted = known[some].astype(np.int64)
        decisions = Decisions(confidence[some], right[some], np.arange(len(wanted)), wanted)
        scores.append(
            Score("retrieval", name, decisions.average_precision(), "fraction", True, len(wanted), protocol,
                  interval=decisions.interval())
        )  # fmt: skip
    hits = right[known].astype(float)
    spread = mean_interval(hits)
    return [
        *scores,
        Score("retrieval", "accuracy", float(hits.mean()), "fraction", True, len(hits), protocol, interval=spread),
    ]
