"""``retrieval``: images of the same thing, found by the cosine of image features, without training.

Revisited Oxford and Paris (Radenovic et al. 2018, sec. 4): in *easy* the easy images are to be found and the hard ones do not
count, in *medium* both are to be found, in *hard* the hard ones and the easy ones do not count; junk never counts. Groups, as
of AmsterTime: all other images of the query's group are to be found. Queries with nothing to find are left out, and counted.

Axes: Q queries, S settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from pydantic import Field

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.gallery import EASY, HARD, JUNK, Grades, groups_of, is_revisited, looks, revisited, same
from dinoforge.evaluate.ranking import Places, rankings
from dinoforge.evaluate.recognition import RecognitionConfig, recognition_scores
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.eyes import Eyes, Look

_DEEP = 10
"""Images that mP at 10 looks at; the revisited sets report 1, 5 and 10."""


class RetrievalConfig(RecognitionConfig):
    """What is seen of a picture; and where some queries show nothing of the gallery (Met), how sure an answer is."""

    longest: int | None = Field(default=None, gt=0)
    """Whole pictures are seen, their long side so many pixels (DINOv3: 224 for Oxford and Paris); null: the usual middle."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be found, and what does not count."""

    name: str
    relevant: tuple[int, ...]
    ignored: tuple[int, ...]


GROUPS = (Setting("", (EASY,), (JUNK,)),)
REVISITED = (
    Setting("easy", (EASY,), (HARD, JUNK)),
    Setting("medium", (EASY, HARD), (JUNK,)),
    Setting("hard", (HARD,), (EASY, JUNK)),
)


def judged(
    known: Look, asked: Look, grades: Grades, settings: tuple[Setting, ...], *, trapezoid: bool,
    some: Bool[np.ndarray, " Q"],
) -> Float64[np.ndarray, "S 3 Q"]:  # fmt: skip
    """Of every setting and query the average precision, the precision at 10 and whether the first image is relevant.

    NaN where a query has nothing to find.

    Args:
        some: Queries that may have; the others are not ranked.
    """
    found = np.full((len(settings), 3, len(asked.rows)), np.nan)
    rows = np.flatnonzero(some)
    for part, order, _ in rankings(asked.values[torch.from_numpy(rows)], known.values):
        grade = grades(asked.rows[rows[part]], known.rows[order])
        for setting, measures in zip(settings, found, strict=True):
            places = Places.of(np.isin(grade, setting.relevant), ~np.isin(grade, setting.ignored))
            measures[0, rows[part]] = places.average_precision(trapezoid=trapezoid)
            measures[1, rows[part]] = places.precision_at(_DEEP)
            measures[2, rows[part]] = places.first()
    return found


def _wanted(sides: Sides, config: RetrievalConfig) -> tuple[Grades | None, tuple[np.ndarray, np.ndarray] | None, bool]:
    """What is to be found: by lists, or by groups; and whether some queries have nothing in the gallery.

    Raises:
        ConfigError: A setting is for such queries, and there are none.
        DataError: See ``groups_of`` and ``revisited``.
    """
    lists = revisited(sides) if is_revisited(sides.asked) else None
    groups = None
    if lists is None:
        groups = groups_of(sides, instead="its queries columns easy, hard and junk with gallery ids")
    distractors = groups is not None and not sides.itself and bool((groups[0] < 0).any())
    for name in RecognitionConfig.model_fields if not distractors else ():
        if (value := getattr(config, name)) != RecognitionConfig.model_fields[name].default:
            raise ConfigError(f"retrieval.{name}={value} has no effect: no query is a distractor, one with group -1.")
    return lists, groups, distractors


def _measure(eyes: Eyes, sides: Sides, config: RetrievalConfig) -> list[Score]:
    lists, groups, distractors = _wanted(sides, config)
    known, asked = looks(eyes, sides, long_side=config.longest)
    seen = f"cosine, {'the middle' if config.longest is None else f'long side {config.longest}'}"
    scores = []
    if lists is not None:
        scores = _revisited_scores(known, asked, lists, seen)
    elif groups is not None:
        scores = _group_scores(known, asked, groups, sides.itself, seen)
    if not scores:
        raise DataError(f"no usable query of {sides.asked.address} has a usable image to find; see those set aside.")
    if groups is not None and distractors:
        labels = groups[0][asked.rows], groups[1][known.rows]
        scores += recognition_scores(asked.values, known.values, *labels, config=config, seen=seen)
    return scores


def _revisited_scores(known: Look, asked: Look, grades: Grades, seen: str) -> list[Score]:
    found = judged(known, asked, grades, REVISITED, trapezoid=True, some=np.ones(len(asked.rows), bool))
    scores = []
    for setting, measures in zip(REVISITED, found, strict=True):
        how = f"{seen}, revisited {setting.name}, trapezoidal AP, {len(known.values)} images"
        scores += _mean(f"mAP_{setting.name}", measures[0], how) + _mean(
            f"mP_at_{_DEEP}_{setting.name}", measures[1], how
        )
    return scores


def _group_scores(
    known: Look, asked: Look, groups: tuple[np.ndarray, np.ndarray], itself: bool, seen: str
) -> list[Score]:
    grades = same(*groups, itself=itself)
    some = np.isin(groups[0][asked.rows], groups[1][groups[1] >= 0])
    found = judged(known, asked, grades, GROUPS, trapezoid=False, some=some)[0]
    how = f"{seen}, same group, {len(known.values)} images"
    return _mean("mAP", found[0], how) + _mean("recall_at_1", found[2], how)


def _mean(name: str, values: Float64[np.ndarray, " Q"], how: str) -> list[Score]:
    """The mean over the queries with something to find; nothing where there is none."""
    some = values[~np.isnan(values)]
    if not len(some):
        return []
    protocol = f"{how}, {len(values) - len(some)} queries with nothing to find left out"
    value, spread = float(some.mean()), mean_interval(some)
    return [Score("retrieval", name, value, "fraction", True, len(some), protocol, interval=spread)]


RETRIEVAL = Evaluation(RetrievalConfig, "gallery", _measure, check=_wanted)
