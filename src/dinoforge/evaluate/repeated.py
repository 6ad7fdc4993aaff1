"""An evaluation measured with several seeds: the mean of every score, and how far seeds lie apart."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from dinoforge.base.config import Config
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.score import Score
from dinoforge.features.eyes import Eyes


def seeded(evaluation: Evaluation, config: Config) -> bool:
    """Whether anything is drawn in it with that config."""
    return "seed" in evaluation.config.model_fields and (evaluation.draws is None or evaluation.draws(config))


def measured(
    evaluation: Evaluation, eyes: Eyes, sides: Sides, config: Config, *, seeds: int, save: Path | None = None
) -> list[Score]:
    """The scores of an evaluation; where something is drawn in it, those of so many seeds together.

    Args:
        seeds: How many, from the seed of the config on. One where nothing is drawn.
        save: Folder that the head of the first seed is written to.
    """
    kept = {} if save is None else {"save": save}
    if seeds == 1 or not seeded(evaluation, config):
        return evaluation.measure(eyes, sides, config, **kept)
    first = int(config.model_dump()["seed"])
    numbers = range(first, first + seeds)
    found = [
        evaluation.measure(eyes, sides, config.model_copy(update={"seed": number}), **(kept if number == first else {}))
        for number in numbers
    ]
    by_name = [{score.name: score for score in scores} for scores in found]
    return [_together([scores[name] for scores in by_name if name in scores], numbers) for name in by_name[0]]


def _together(scores: Sequence[Score], seeds: range) -> Score:
    """One score of one score a seed.

    The interval stays about the images: its ends are the means of the seeds' ends. The spread is that of the seeds. Where a
    seed's score is not finite (nothing could be judged), the mean is NaN and neither of the two is given.
    """
    values, within = [score.value for score in scores], [score.interval for score in scores if score.interval]
    fine, interval = all(map(math.isfinite, values)), None
    if fine and len(within) == len(scores):
        interval = statistics.fmean(low for low, _ in within), statistics.fmean(high for _, high in within)
    protocols = list(dict.fromkeys(score.protocol for score in scores))
    apart = "" if len(protocols) == 1 else f"; of seed {seeds[0]}"
    return dataclasses.replace(
        scores[0], value=statistics.fmean(values) if fine else math.nan,
        spread=statistics.stdev(values) if fine else None, interval=interval,
        protocol=f"mean of seeds {seeds[0]} to {seeds[-1]}{apart}: {protocols[0]}",
    )  # fmt: skip
