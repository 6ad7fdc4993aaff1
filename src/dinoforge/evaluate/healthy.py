"""``health``: how healthy features are, without labels.

Axes: N images, D channels, H by W patches.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config, Count
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.evaluate.card import DENSE
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.health import effective_rank, smoothness, uniformity
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.eyes import Eyes
from dinoforge.features.kinds import shows_blocks
from dinoforge.features.views import cropped

_TASK = "health"
_SPREAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_DEVIATIONS = 6.0


class HealthConfig(Config):
    """How much is looked at, and what is judged an outlier."""

    images: Count = Field(default=10_000, ge=2)
    """First so many images, strewn over a source sorted by class; the cost of uniformity grows with their square."""
    dense: int = Field(default=DENSE, gt=0)
    """First so many images whose patch features are kept; they take memory."""
    seed: int = Field(default=0, ge=0)
    """Of the crops whose features are compared."""
    outlier: float = Field(default=3.0, gt=1)
    """A patch is an outlier where its norm exceeds the median this many times: Darcet et al. 2024 draw the line at 150 where
    most norms of DINOv2-g are below 50; and where it is no mere tail, six robust deviations above the median."""


def alignment(one: Float[Tensor, "N D"], other: Float[Tensor, "N D"]) -> Float[np.ndarray, " N"]:
    """Squared distance of the features of two views of each image, of length 1 (Wang & Isola 2020, eq. 1, with alpha = 2).

    0 where the views make no difference, 2 where they have nothing in common, 4 where they are opposed.
    """
    apart = F.normalize(one.double(), dim=-1) - F.normalize(other.double(), dim=-1)
    found: np.ndarray = apart.square().sum(-1).numpy()
    return found


def outliers(norms: Float[np.ndarray, "N H W"], *, factor: float) -> tuple[Float[np.ndarray, " N"], float]:
    """Share of each image's patches whose norm is an outlier, and the norm above which one is (Darcet et al. 2024, sec. 2).

    Outliers are above both ``factor`` times the median of the set and six robust standard deviations (1.4826 times the
    median absolute deviation) more than it.
    """
    median = np.median(norms)
    spread = _SPREAD * np.median(np.abs(norms - median))
    threshold = float(max(factor * median, median + _DEVIATIONS * spread))
    return (norms > threshold).mean((1, 2)), threshold


def peak(norms: Float[np.ndarray, "N H W"]) -> tuple[float, float]:
    """How many times the median the largest norm is, and that median.

    Where more than half of the norms are 0 (empty margins, a backbone that is silent on plain ground), the median is that
    of the others; 1 where all are 0, as where all are equal.
    """
    median = float(np.median(norms))
    if median == 0 and norms.any():
        median = float(np.median(norms[norms > 0]))
    return (float(norms.max()) / median if median else 1.0), median


def _measure(eyes: Eyes, sides: Sides, config: HealthConfig) -> list[Score]:
    source = first_rows(sides.known, config.images)
    return [*_image_scores(eyes, source, config), *_patch_scores(eyes, source, config)]


def _image_scores(eyes: Eyes, source: Source, config: HealthConfig) -> list[Score]:
    """Of the image features."""
    values = eyes.look(source).values
    count = len(values)
    how = f"image features of {count} images"
    crops = [
        eyes.look(source, view=cropped(eyes.backbone.preprocessing, seed=config.seed, number=number)).values
        for number in range(2)
    ]
    apart = alignment(*crops)
    return [
        Score(_TASK, "effective_rank", effective_rank(values), "dimensions", True, count,
              f"exp of the entropy of the singular values, centred, of {values.shape[1]} dimensions, {how}"),
        Score(_TASK, "uniformity", uniformity(values), "nats", False, count,
              f"log of the mean of exp(-2 squared distance) of all pairs, on the unit sphere, {how}"),
        Score(_TASK, "alignment", float(apart.mean()), "squared distance", False, count,
              f"mean squared distance of the features of two crops of 8 to 100 % of an image, each mirrored half of the time, "
              f"on the unit sphere, seed {config.seed}, {how}", interval=mean_interval(apart)),
    ]  # fmt: skip


def _patch_scores(eyes: Eyes, source: Source, config: HealthConfig) -> list[Score]:
    """Of the patch features and their lengths."""
    norms = eyes.look(source, "norms").values.numpy()
    dense = eyes.look(first_rows(source, config.dense), "patches").values
    shares, threshold = outliers(norms, factor=config.outlier)
    count, (largest, median) = len(norms), peak(norms)
    where = "before the last norm" if shows_blocks(eyes.backbone.module) else "as the network gives them"
    whose = " of those above 0" if np.median(norms) == 0 else ""
    how = f"norms of {norms.size} patches of {count} images {where}"
    return [
        Score(_TASK, "norm_outliers", float(shares.mean()), "fraction", False, count,
              f"share above {threshold:.4g}: the larger of {config.outlier:g} times the median and six robust deviations more "
              f"than it, {how}", interval=mean_interval(shares)),
        Score(_TASK, "norm_peak", largest, "ratio", False, count, f"largest over median {median:.4g}{whose}, {how}"),
        Score(_TASK, "smoothness", smoothness(dense), "cosine", True, len(dense),
              f"mean cosine of neighbouring patches less that of any two of an image, first {len(dense)} images"),
    ]  # fmt: skip


HEALTH = Evaluation(HealthConfig, "images", _measure)
