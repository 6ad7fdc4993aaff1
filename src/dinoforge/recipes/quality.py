"""What the backbone of a stage is judged by while it is trained: k-NN where there are labels, the score card always."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dinoforge.base import dist
from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.evaluate.card import DENSE, Neighbours, card
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.features.extract import Extraction, Seen, shared_features
from dinoforge.model.weights import Preprocessing
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.stages import Stage
from dinoforge.train.checkpoint import Saved
from dinoforge.train.parallel import gathered

LABEL_FREE = ("rank", "uniformity", "smoothness", "stability")
"""Scores that need no labels."""


class Quality:
    """How a stage's backbone is judged.

    Args:
        source: Images that are trained on.
        probed: Labelled images that vote and that are asked; null: some images to train on are judged without labels.
        latest: The checkpoint that the stage goes on from: what its last look left is compared with.
        on_broken: Told the id and the reason of every image that could not be used.
    """

    def __init__(
        self, stage: Stage, source: Source, probed: tuple[Source, Source] | None, how: Extraction, *,
        latest: Saved | None, on_broken: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.how, self.on_broken = how, on_broken
        self.preprocessing = preprocessing(stage)
        config = stage.recipe.probe
        self.vote = KnnConfig(neighbours=config.neighbours)
        counts = (config.rank_rows,) if probed is None else (config.train_rows, config.test_rows)
        self.rows = [first_rows(rows, count) for rows, count in zip(probed or (source,), counts, strict=True)]
        # That of the plan itself says no size: it is the run's, and runs from before there were stages keep theirs.
        size = [stage.pixels] if stage.before else []
        self.protocol = fingerprint([config.neighbours, *(rows.fingerprint for rows in self.rows), *size])
        """What is measured, in 16 hexadecimal digits: two scores compare where these are the same."""
        self.neighbours = neighbours_of(latest, self.protocol)
        """What the last look leaves for the next."""

    def measure(self, module: nn.Module) -> dict[str, float]:
        """Judge a backbone now. All ranks together; the first one's judgement is everyone's."""
        *voting, asked = self.rows
        with gathered(module):
            banks = [self._seen(module, rows) for rows in voting]
            seen = self._seen(module, asked, DENSE)

        def judged() -> tuple[dict[str, float], Neighbours | None]:
            scores: dict[str, float] = {}
            for rows, bank in zip(voting, banks, strict=True):
                known, wanted = _labels(rows, bank), _labels(asked, seen)
                scores["knn"] = knn_scores(bank.image, known, seen.image, wanted, config=self.vote)[0].value
            label_free, neighbours = card(seen, self.neighbours)
            return scores | label_free, neighbours

        # Judged once: whether a backbone is kept must be the same everywhere.
        scores, self.neighbours = dist.leading(judged)
        return scores

    def _seen(self, module: nn.Module, rows: Source, dense: int = 0) -> Seen:
        return shared_features(module, rows, self.preprocessing, self.how, on_broken=self.on_broken, dense=dense)


def preprocessing(stage: Stage) -> Preprocessing:
    """What an image goes through before the backbone of a stage, when features are taken."""
    data = stage.recipe.data
    return Preprocessing(
        channels=stage.recipe.backbone.channels, range=data.range, max_pixels=data.max_pixels,
        short_side=data.short_side, side=stage.pixels, mean=data.augment.colour.mean, std=data.augment.colour.std,
    )  # fmt: skip


def same_eyes(recipe: Recipe, seen: Preprocessing, setting: str) -> None:
    """Refuse a backbone that is shown pictures which are normalised as it never saw them.

    Args:
        seen: What its pictures went through.
        setting: Which one it is, as ``init=FOLDER``.

    Raises:
        ConfigError: They are.
    """
    colour = recipe.data.augment.colour
    pairs = {
        "data.augment.colour.mean": (seen.mean, colour.mean), "data.augment.colour.std": (seen.std, colour.std),
        "data.range": (seen.range, recipe.data.range),
    }  # fmt: skip
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            want = "null" if theirs is None else list(theirs)
            raise ConfigError(f"{setting} sees pictures with {name}={want}; set it, else its features mean nothing.")


def neighbours_of(latest: Saved | None, protocol: str) -> Neighbours | None:
    """What the last look left, if it was at the same images; checkpoints of earlier versions hold none."""
    there = latest.facts.get("neighbours", {}) if latest else {}
    return there.get("rows") if there.get("protocol") == protocol else None


def _labels(rows: Source, seen: Seen) -> torch.Tensor:
    return torch.from_numpy(rows.columns["label"][seen.rows])
