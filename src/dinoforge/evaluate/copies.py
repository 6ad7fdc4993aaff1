"""``copies``: copies of images, found among many by image features alone.

The measures of the image similarity challenge (Douze et al. 2021, sec. 4; DISC21) and of Copydays: all pairs of a query and a
gallery image are ranked together, so similarities must mean the same for every query. Queries that are a copy of nothing have
no right pair, and what is near to them costs precision. Where each image is sought among all others, every pair stands in
the ranking twice, once from either side.

Whose copy a query is, by what columns there are: ``copy_of`` with the id of the original; else ``group`` on both sides; else
``group_name`` of the queries with the id of the original.

Axes: Q queries, N gallery images, B background images, D numbers of a descriptor, K of them that are compared.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from pydantic import Field, model_validator
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.base.errors import DataError
from dinoforge.data.sources.numbers import numbered
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.decisions import Decisions
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.gallery import JUNK, Grades, groups_of, looks, same, view_of
from dinoforge.evaluate.ranking import Places, rankings
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.copies import unit
from dinoforge.features.eyes import Eyes
from dinoforge.features.learnt import RANKS, Measure
from dinoforge.features.search import SearchConfig
from dinoforge.features.whiten import fit_whitening

_PRECISION = 0.9


class CopiesConfig(Config):
    """What is compared, and how."""

    descriptor: Literal["class", "class+gem"] = "class"
    """The class token; or beside it the generalised mean of the patches with p = 4, as DINO's own protocol for copies."""
    longest: int | None = Field(default=None, gt=0)
    """Whole pictures are seen, their long side so many pixels; null: the middle that the preprocessing cuts out."""
    background: str | None = None
    """Images that are copies of nothing asked for here, such as training images; any source."""
    whiten: bool = False
    """Descriptors are whitened by the principal directions of the background (DINO and SSCD; after it length 1 again)."""
    normalise: bool = False
    """The mean similarity of a query to its 3 nearest background images is taken off (SSCD's score normalisation)."""
    pairs: int = Field(default=1000, gt=0)
    """Nearest gallery images of each query that are ranked together with those of all others; the rest counts as not found."""

    @model_validator(mode="after")
    def _background_is_used(self) -> CopiesConfig:
        if (self.background is not None) != (self.whiten or self.normalise):
            raise ValueError(
                "background= goes with whiten=true or normalise=true, or both; "
                f"got {self.background}, {str(self.whiten).lower()}, {str(self.normalise).lower()}."
            )
        return self


def originals(sides: Sides) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " N"]]:
    """Numbers that are equal where one image is a copy of the other, or both of a third; -1 for a copy of nothing.

    Raises:
        DataError: No column says so, or no query is a copy of a gallery image.
    """
    asked, known = (source.columns for source in (sides.asked, sides.known))
    if (asked.get("copy_of", np.asarray("")) != "").any():
        own = known["id"]
        names = [
            np.where(asked["copy_of"] != "", asked["copy_of"], asked["id"] if sides.itself else ""),
            np.where(known["copy_of"] != "", known["copy_of"], own) if "copy_of" in known else own,
        ]
    elif "group" in known or "group_name" not in asked:
        return groups_of(sides, instead="its queries a column copy_of with the id of the original")
    else:
        names = [asked["group_name"], known["id"]]
    both = numbered(np.concatenate(names))
    found = both[: len(sides.asked)], both[len(sides.asked) :]
    if not sides.itself and not np.isin(found[0][found[0] >= 0], found[1]).any():
        raise DataError(f"no image of {sides.asked.address} is a copy of one of {sides.known.address}, by its columns.")
    return found


def compared(
    queries: Float[Tensor, "Q D"], gallery: Float[Tensor, "N D"], background: Float[Tensor, "B D"] | None, *,
    config: CopiesConfig,
) -> tuple[Float[Tensor, "Q K"], Float[Tensor, "N K"], Float32[np.ndarray, " Q"]]:  # fmt: skip
    """Descriptors whose cosines count, and what is taken off those of each query.

    Raises:
        DataError: Too few background images.
    """
    if background is None:
        return queries, gallery, np.zeros(len(queries), np.float32)
    away = background.float().numpy()
    fewest = away.shape[1] + 1 if config.whiten else RANKS
    if len(away) < fewest:
        raise DataError(f"copies.background holds {len(away)} usable images; it takes {fewest} or more.")
    measure = Measure(fit_whitening(unit(away), width=away.shape[1]) if config.whiten else None)
    if config.normalise:
        measure = Measure(measure.whitening, measure.placed(away))
    x, y = (measure.placed(side.float().numpy()) for side in (queries, gallery))
    return torch.from_numpy(x), torch.from_numpy(y), measure.bias(x, SearchConfig())


def _measure(eyes: Eyes, sides: Sides, config: CopiesConfig) -> list[Score]:
    numbers, kind = originals(sides), "gem" if config.descriptor == "class+gem" else "image"
    known, asked = looks(eyes, sides, long_side=config.longest, kind=kind)
    background = None
    if config.background is not None:
        background = eyes.look(open_source(config.background), kind, view=view_of(eyes, config.longest)).values
    grades = same(*(side[look.rows] for side, look in zip(numbers, (asked, known), strict=True)), itself=sides.itself)
    queries, gallery, bias = compared(asked.values, known.values, background, config=config)
    decisions, precision = judged(queries, gallery, bias, grades, most=config.pairs)
    if not decisions.wanted.any():
        raise DataError(f"no usable image of {sides.asked.address} is a copy of another one that is usable.")
    return _scores(decisions, precision, _protocol(config, len(gallery)))


def judged(
    queries: Float[Tensor, "Q K"], gallery: Float[Tensor, "N K"], bias: Float32[np.ndarray, " Q"], grades: Grades, *,
    most: int,
) -> tuple[Decisions, np.ndarray]:  # fmt: skip
    """The nearest pairs of all queries, and the average precision of each query's own ranking, NaN where it has no original.

    Args:
        most: Pairs of each query.
    """
    parts, precision, wanted = [], [], []
    for part, order, near in rankings(queries, gallery):
        grade = grades(part, order)
        counted, right = grade != JUNK, (grade != JUNK) & (grade > 0)
        places = Places.of(right, counted)
        precision.append(places.average_precision())
        wanted.append(places.count)
        query, at = np.nonzero(counted & (np.cumsum(counted, axis=1, dtype=np.int32) <= most))
        parts.append((near[query, at] - bias[part[query]], right[query, at], part[query]))
    confidence, hit, query = (np.concatenate(some) for some in zip(*parts, strict=True))
    return Decisions(confidence, hit, query, np.concatenate(wanted)), np.concatenate(precision)


def _protocol(config: CopiesConfig, images: int) -> str:
    done = [name for name, used in (("whitened", config.whiten), ("score normalised", config.normalise)) if used]
    seen = "the middle" if config.longest is None else f"long side {config.longest}"
    against = [f"background {config.background}"] if config.background else []
    return ", ".join(["cosine", config.descriptor, seen, *done, *against, f"{images} images"])


def _scores(decisions: Decisions, precision: np.ndarray, protocol: str) -> list[Score]:
    own = precision[~np.isnan(precision)]
    together = f"{protocol}, all pairs ranked together, {len(precision) - len(own)} queries with no original"
    everything = len(precision)
    return [
        Score("copies", "micro_AP", decisions.average_precision(), "fraction", True, everything, together,
              interval=decisions.interval()),
        Score("copies", f"recall_at_precision_{_PRECISION:.2f}", decisions.recall_at(_PRECISION), "fraction", True, everything,
              together),
        Score("copies", "mAP", float(own.mean()), "fraction", True, len(own), protocol, interval=mean_interval(own)),
    ]  # fmt: skip


COPIES = Evaluation(CopiesConfig, "gallery", _measure, check=lambda sides, _: originals(sides), images=("background",))
