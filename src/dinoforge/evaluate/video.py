"""``video``: what linear heads, or a vote of neighbours, make of evenly spaced frames of clips (Oquab et al. 2023, sec. 7.2).

A frozen backbone sees each frame alone. The frames' features are averaged (the paper on UCF-101 and Kinetics-400) or stand one
after the other, in the order of time (on Something-Something v2, where the order is what matters).

Axes: N clips, K frames of each, T tokens (see ``kinds.py``), D channels, E channels of a clip: D, or K D.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.base.log import say
from dinoforge.data.sources.clips import Clips
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.linear import LINEAR, LinearConfig
from dinoforge.evaluate.neighbours import KNN, VoteConfig
from dinoforge.evaluate.score import Score
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.views import View

Join = Literal["average", "concatenate"]


class VideoConfig(LinearConfig):
    """What is seen of a clip, and what learns from it: the heads of ``linear`` with its settings, or a vote."""

    frames: int = Field(default=8, gt=0)
    """Frames of a clip, those at the centres of as many equal parts."""
    join: Join = "average"
    """How features of frames become those of the clip; ``concatenate`` keeps their order."""
    head: Literal["linear", "knn"] = "linear"
    """``knn`` votes with the defaults of that task."""

    @model_validator(mode="after")
    def _has_effect(self) -> VideoConfig:
        fields = LinearConfig.model_fields
        odd = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if self.head == "knn" and odd:
            raise ValueError(f"head=knn excludes {odd[0]}, which is of linear heads.")
        if self.augment != "none":
            raise ValueError("augment=crops would cut every frame of a clip elsewhere; it takes none.")
        return self


def joined(frames: Float[Tensor, "N K *T D"], join: Join) -> Float[Tensor, "N *T E"]:
    """Features of clips from those of their frames."""
    if join == "average":
        return frames.mean(1)
    return frames.movedim(1, -2).flatten(-2)


class ClipEyes(Eyes):
    """Eyes for sources of clips: the frames of each are looked at by others, which remember, and their features joined."""

    def __init__(self, eyes: Eyes, *, frames: int, join: Join) -> None:
        self.backbone, self.how, self.on_broken = eyes.backbone, eyes.how, eyes.on_broken
        self._eyes, self._frames, self._join = eyes, frames, join
        self._clips = dict[tuple[int, str, str | None], Look]()

    def look(self, source: Source, kind: str = "image", *, view: View | None = None, remember: bool = True) -> Look:
        """The features of clips: ``image`` [N E], ``blocks`` [N T E]. A clip of which a frame cannot be used is left out.

        Raises:
            DataError: There is no clip of which all frames can be used.
        """
        key = (id(source), kind, view.name if view else None)
        if key not in self._clips:
            self._clips[key] = self._looked(cast(Clips, source), kind, view=view, remember=remember)
        return self._clips[key]

    def _looked(self, source: Clips, kind: str, *, view: View | None, remember: bool) -> Look:
        found = self._eyes.look(source.frames(self._frames), kind, view=view, remember=remember)
        clips, first, count = np.unique(found.rows // self._frames, return_index=True, return_counts=True)
        whole = count == self._frames
        if not whole.any():
            raise DataError(f"{source.address} has no clip of which all {self._frames} frames can be used.")
        if len(source) > whole.sum():
            say(f"{source.address}: {len(source) - int(whole.sum()):,} of {len(source):,} clips are left out.")
        values, rows = found.values, clips[whole]
        if len(rows) < len(clips):
            values = values[(first[whole][:, None] + np.arange(self._frames)).ravel()]
        values = values.view(len(rows), self._frames, *values.shape[1:])
        return Look(joined(values, self._join), rows, source if len(rows) == len(source) else source.select(rows))


def _measure(eyes: Eyes, sides: Sides, config: VideoConfig) -> list[Score]:
    seen = ClipEyes(eyes, frames=config.frames, join=config.join)
    scores = KNN.measure(seen, sides, VoteConfig()) if config.head == "knn" else LINEAR.measure(seen, sides, config)
    how = "averaged" if config.join == "average" else "one after the other"
    about = f"{config.frames} evenly spaced frames of a clip, {how}"
    return [replace(score, task="video", protocol=f"{about}; {score.protocol}") for score in scores]


VIDEO = Evaluation(VideoConfig, "clips", _measure, draws=lambda config: config.head == "linear")
