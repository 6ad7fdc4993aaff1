"""Images of the old kind, and how much of its old skill on them a backbone has kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.log import say
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.drift import drift, turn
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.features.extract import Extraction, Seen, shared_features
from dinoforge.model.weights import Preprocessing
from dinoforge.recipes.opened import labelled
from dinoforge.recipes.quality import Quality
from dinoforge.recipes.recipe import Recipe
from dinoforge.train.continuation import ContinueConfig, RetentionConfig
from dinoforge.train.diary import Diary
from dinoforge.train.guard import Guard
from dinoforge.train.loop import Done
from dinoforge.train.parallel import gathered
from dinoforge.train.retention import DRIFT, KNN, Retention, blend_back
from dinoforge.train.step import Pretrain


def reference(how: ContinueConfig | None) -> tuple[Source, ...] | None:
    """The old images: rows that vote and rows that are asked, or, where there are no labels, those that are compared; None
    where nothing is to be watched.

    Raises:
        ConfigError: Labels decide whether too much was lost, and there are none.
        DataError: Nothing there, or too little to measure drift on.
    """
    if how is None or how.retention is None:
        if how is not None and how.warmup < 1:
            say("Nothing watches what the backbone forgets; retention=IMAGES of the old kind would.")
        return None
    config, name = how.retention, "continuation.retention"
    whole = open_source(config.source)
    try:
        voting, asked = labelled(config.source)
    except DataError:
        if config.points != RetentionConfig.model_fields["points"].default and config.points is not None:
            raise ConfigError(
                f"{name}.points={config.points:g} needs labels, and {whole.address} has none; give {name}.drift instead."
            ) from None
        if config.drift is None and config.points is not None:
            raise ConfigError(
                f"retention={whole.address} has no labels, so loss is measured as drift; give {name}.drift, such as 0.1, or "
                f"{name}.points=null to watch only."
            ) from None
        rows: tuple[Source, ...] = (first_rows(whole, config.test_rows),)
    else:
        rows = first_rows(voting, config.train_rows), first_rows(asked, config.test_rows)
    _enough(config, rows[-1], len(rows[-1]))
    return rows


def _enough(config: RetentionConfig, asked: Source, usable: int) -> None:
    """Refuse to watch drift where it cannot be seen: how images lie to one another takes two.

    Raises:
        DataError: There are fewer.
    """
    if config.drift is not None and usable < 2:
        raise DataError(
            f"continuation.retention.drift={config.drift:g} is measured between images, and {asked.address} has {usable} that "
            "can be asked; give 2 or more."
        )


class Kept:
    """Compares backbones with the one that a run began from.

    Args:
        rows: As ``reference`` gave them.
        start: The backbone that the run began from.

    Raises:
        DataError: Too few can be used to measure drift on.
    """

    def __init__(
        self, config: RetentionConfig, rows: tuple[Source, ...], start: nn.Module, preprocessing: Preprocessing,
        how: Extraction, *, on_broken: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.rows, self.preprocessing, self.how, self.on_broken = rows, preprocessing, how, on_broken
        self.vote = KnnConfig(neighbours=config.neighbours)
        self.before = self._seen(copy.deepcopy(start).to(how.device), rows[-1])
        _enough(config, rows[-1], len(self.before.rows))  # some may be broken

    def measure(self, module: Any) -> dict[str, float]:
        """Accuracy where there are labels, drift, and turn of the features, as of now. All ranks together."""
        *voting, asked = self.rows
        with gathered(module):
            banks = [self._seen(module, rows) for rows in voting]
            seen = self._seen(module, asked)

        def judged() -> dict[str, float]:
            scores: dict[str, float] = {}
            for rows, bank in zip(voting, banks, strict=True):
                known, wanted = (torch.from_numpy(r.columns["label"][s.rows]) for r, s in ((rows, bank), (asked, seen)))
                scores[KNN] = knn_scores(bank.image, known, seen.image, wanted, config=self.vote)[0].value
            # A file may have broken since the start was looked at.
            _, now, before = np.intersect1d(seen.rows, self.before.rows, return_indices=True)
            pair = seen.image[torch.from_numpy(now)], self.before.image[torch.from_numpy(before)]
            return scores | {DRIFT: drift(*pair), "retention_turn": turn(*pair)}

        return dist.leading(judged)

    def _seen(self, module: Any, rows: Source) -> Seen:
        return shared_features(module, rows, self.preprocessing, self.how, on_broken=self.on_broken)


def watch(
    recipe: Recipe, rows: tuple[Source, ...], start: nn.Module, quality: Quality, step: Pretrain, *, diary: Diary,
    guard: Guard, record: Callable[[Done], None], steps: int, memory: Mapping[str, Any] | None,
) -> Retention:  # fmt: skip
    """What watches over old skill in a run that goes on from ``start``; the rest as of ``Retention``."""
    how = recipe.continuation
    assert how is not None
    assert how.retention is not None
    kept = Kept(how.retention, rows, start, quality.preprocessing, quality.how, on_broken=quality.on_broken)

    def blend(weight: float) -> None:
        for role in (step.student, step.average):
            blend_back(role.backbone, start, weight)

    return Retention(
        how, diary, measure=lambda: kept.measure(step.average.backbone), blend=blend, guard=guard, record=record,
        steps=steps, memory=memory,
    )  # fmt: skip
