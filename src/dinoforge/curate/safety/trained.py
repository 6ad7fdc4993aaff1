"""A filter that users train themselves: which images are like those that were put aside as bad, by embeddings.

It is a logistic regression, one weight a channel: with the embeddings of a good backbone some dozens of examples of each kind
are enough for much, and a file of some kilobytes holds it.

Axes: N images, D channels of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinoforge.base.config import Config
from dinoforge.base.errors import DataError, WeightsError
from dinoforge.base.files import new_folder, write_json, write_tensors
from dinoforge.base.home import at_home
from dinoforge.base.random import numpy_generator
from dinoforge.curate.safety.filter import Asked, File, Filter, Judged, Kind, Need

WEIGHTS, FACTS = "filter.safetensors", "filter.json"
FOLDS = 5
_FORMAT = 1
_PENALTY = 1e-3
"""Of the squared length of the weights, beside a mean cost an image; embeddings have length 1 there."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A direction of embeddings of length 1, and where it begins to be bad."""

    weight: Float[np.ndarray, " D"]
    bias: float

    def scores(self, vectors: Float[np.ndarray, "N D"]) -> Float32[np.ndarray, " N"]:
        """How surely images are of the bad kind, 0 to 1; NaN for an embedding that is no number."""
        from scipy.special import expit

        return expit(_unit(vectors) @ self.weight + self.bias).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Measured:
    """How well images are told apart by filters that were trained without them."""

    accuracy: float
    """Share that is told right."""
    precision: float
    """Of the images that are dropped, the share that is to be; NaN where none is dropped."""
    recall: float
    """Of the images that are to be dropped, the share that is."""


def fit(vectors: Float[np.ndarray, "N D"], bad: Bool[np.ndarray, " N"]) -> Linear:
    """The logistic regression of the bad ones; both kinds weigh the same in sum, however many there are of each."""
    from scipy.optimize import minimize  # a tenth of a second, which commands that train no filter do not wait
    from scipy.special import expit

    x = _unit(vectors)
    mean = x.mean(axis=0)
    spread = np.sqrt(((x - mean) ** 2).sum(axis=1).mean())  # one number: all channels keep their say
    spread = spread if spread > 1e-9 else 1.0
    x = (x - mean) / spread
    weigh = np.where(bad, 0.5 / bad.sum(), 0.5 / (~bad).sum())
    sign = np.where(bad, 1.0, -1.0)

    def cost(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w[:-1] + w[-1])
        slope = -weigh * sign * expit(-margin)
        value = (weigh * np.logaddexp(0, -margin)).sum() + _PENALTY / 2 * (w[:-1] ** 2).sum()
        return float(value), np.append(x.T @ slope + _PENALTY * w[:-1], slope.sum())

    w = minimize(cost, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-7}).x
    weight = w[:-1] / spread
    return Linear(weight, float(w[-1] - mean @ weight))


def _unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    wide = vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def held_out(
    vectors: Float[np.ndarray, "N D"], bad: Bool[np.ndarray, " N"], *, seed: int = 0
) -> Float32[np.ndarray, " N"]:
    """The score of every image by a filter that was trained on four fifths of each kind without it.

    Raises:
        DataError: There are fewer than ``FOLDS`` images of a kind.
    """
    fold = np.zeros(len(bad), np.int64)
    for kind, word in ((True, "drop"), (False, "keep")):
        rows = np.flatnonzero(bad == kind)
        if len(rows) < FOLDS:
            raise DataError(f"A filter takes at least {FOLDS} images to {word}; there are {len(rows)}.")
        fold[numpy_generator(seed, "folds of a filter", int(kind)).permutation(rows)] = np.arange(len(rows)) % FOLDS
    scores = np.zeros(len(bad), np.float32)
    for number in range(FOLDS):
        scores[fold == number] = fit(vectors[fold != number], bad[fold != number]).scores(vectors[fold == number])
    return scores


def measured(scores: Float[np.ndarray, " N"], bad: Bool[np.ndarray, " N"], *, threshold: float) -> Measured:
    """What comes of dropping all from a score on."""
    gone = ~(scores < threshold)
    right = int((gone & bad).sum())
    precision = right / int(gone.sum()) if gone.any() else float("nan")
    return Measured(float((gone == bad).mean()), precision, right / int(bad.sum()))


def write_filter(path: Path, found: Linear, facts: Mapping[str, Any]) -> None:
    """Write a filter's folder, whole or not at all.

    Raises:
        RunError: It cannot be written.
    """
    with new_folder(path) as folder:
        tensors = {
            "weight": torch.from_numpy(found.weight.copy()),
            "bias": torch.tensor([found.bias], dtype=torch.float64),
        }
        write_tensors(folder / WEIGHTS, tensors)
        write_json(folder / FACTS, {"format": _FORMAT, "width": len(found.weight), **facts})


class TrainedConfig(Config):
    """A filter that you trained yourself, with curate train_filter=."""

    folder: str
    """Where it lies: the out= of curate train_filter=. It judges by this curation's embeddings, so backbone= must be the one
    that it was trained with."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Images with a score of at least this are dropped: lower drops more; null takes the filter's own, for which its accuracy
    was measured."""
    licence: str | None = None
    """Of the filter, as it is to stand in summary and manifest."""


@dataclass(frozen=True, kw_only=True)
class Trained(Filter):
    """Drops images whose embedding lies on the bad side."""

    linear: Linear
    threshold: float
    needs: Need = "embedding"

    def judge(self, asked: Asked) -> Judged:
        """Judge by the embeddings.

        Raises:
            WeightsError: They have another width.
        """
        assert asked.embeddings is not None
        if asked.embeddings.shape[1] != len(self.linear.weight):
            raise WeightsError(
                f"The filter {self.files[0].name} takes embeddings of {len(self.linear.weight)} channels; these have "
                f"{asked.embeddings.shape[1]}."
            )
        scores = self.linear.scores(asked.embeddings)
        return Judged.of(scores < self.threshold, "like what a trained filter drops", scores)


def _make(config: TrainedConfig) -> Trained:
    folder = at_home(config.folder)
    files = tuple(File.read(str(folder / name), "safety.trained.folder", config.licence) for name in (WEIGHTS, FACTS))
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        held = load_file(folder / WEIGHTS)
        linear = Linear(held["weight"].double().numpy(), float(held["bias"][0]))
        embedder, threshold, form = str(facts["embedder"]), float(facts["threshold"]), facts["format"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise WeightsError(
            f"safety.trained.folder={config.folder} is no filter of curate train_filter=: {str(error).splitlines()[0][:120]}."
        ) from None
    if form != _FORMAT or linear.weight.ndim != 1 or not np.isfinite([*linear.weight, linear.bias]).all():
        raise WeightsError(f"safety.trained.folder={config.folder} is damaged, or of another version: train it anew.")
    return Trained(
        linear=linear, threshold=config.threshold or threshold, files=files, embedder=embedder,
    )  # fmt: skip


TRAINED = Kind("what is like the images that a filter of yours was trained to drop", TrainedConfig, _make)
