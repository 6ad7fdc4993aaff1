"""The Gram teacher: whom the student's patch similarities are held to, and from when on (DINOv3, sec. 4).

Axes: B images, C channels, Y by X pixels, P patches, E channels of the Gram teacher.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.base.schedule import share


class GramConfig(Config):
    """Gram anchoring: a backbone, or an earlier state of the run's own teacher, holds patch similarities in place."""

    not_science: ClassVar[frozenset[str]] = frozenset({"backbone"})

    weight: float = Field(default=2.0, gt=0)
    """Weight of the loss."""
    backbone: str | None = None
    """Gram teacher from a backbone of the same patch (its fingerprint counts, not its path); give this or ``from_share``."""
    from_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of the plan after which the teacher is copied as Gram teacher; give this or ``backbone``."""
    start: float | None = Field(default=None, ge=0, lt=1)
    """Share of the plan from which the loss applies; null: as soon as there is a Gram teacher."""
    every_share: float | None = Field(default=None, gt=0)
    """Copy the teacher anew whenever such a share of the plan has passed since ``start``; null: never."""
    refreshes: int = Field(default=0, ge=0)
    """Copy it anew so often at most (DINOv3: 3)."""
    pixels_factor: Literal[1, 2] = 1
    """2 shows the Gram teacher the same crops enlarged twofold, and scales its patches down to the student's grid."""

    @model_validator(mode="after")
    def _one_teacher(self) -> GramConfig:
        name = "objective.gram"
        if self.backbone is None and self.from_share is None:
            raise ValueError(
                f"{name} has no teacher: give {name}.backbone, or {name}.from_share for an earlier state of this run's own."
            )
        if self.backbone is not None and self.from_share is not None:
            raise ValueError(f"{name}.backbone and {name}.from_share={self.from_share} are two teachers; give one.")
        if self.start is not None and self.start < (self.from_share or 0):
            raise ValueError(
                f"{name}.start={self.start} comes before its teacher, {name}.from_share={self.from_share}; start later."
            )
        if (self.every_share is None) != (self.refreshes == 0):
            raise ValueError(
                f"{name}.every_share={self.every_share} and {name}.refreshes={self.refreshes} go together; give both."
            )
        if self.every_share is not None and self.backbone is not None:
            raise ValueError(
                f"{name}.every_share renews copies of the run's teacher; {name}.backbone stays what it is."
            )
        if self.begin + (self.every_share or 0) >= 1:
            raise ValueError(
                f"{name}.every_share={self.every_share} after the start at {self.begin} is no more within the plan."
            )
        return self

    @property
    def begin(self) -> float:
        """Share of the plan from which the loss applies."""
        return self.start if self.start is not None else self.from_share or 0.0

    def kept(self) -> GramConfig:
        """The same for a further part of a run: from its first step on, with the Gram teacher that the run has by then.

        (As in DINOv3's high-resolution stage: a copy of what the teacher has become would hold on to less.)
        """
        return self.model_copy(update={"from_share": None, "start": 0.0, "every_share": None, "refreshes": 0})

    def weight_at(self, step: int, *, steps: int) -> float:
        """Weight of the loss at ``step`` (from 0) of a plan of ``steps``."""
        return self.weight if step >= _step(self.begin, steps) else 0.0

    def copies(self, step: int, *, steps: int) -> bool:
        """Whether the teacher is copied before ``step`` (from 0) of a plan of ``steps``."""
        if self.from_share is None:
            return False
        since, every = step - _step(self.begin, steps), max(share(self.every_share or 1.0, steps), 1)
        renewed = since > 0 and since % every == 0 and since // every <= self.refreshes
        return renewed or step == _step(self.from_share, steps)


def _step(part: float, steps: int) -> int:
    """The step that a share of a plan leads to, the last one at most."""
    return min(share(part, steps), steps - 1)


class GramTeacher(nn.Module):
    """A frozen backbone. A copy of the run's own teacher is part of the run's state; one from elsewhere is read again."""

    def __init__(self, backbone: nn.Module, config: GramConfig) -> None:
        super().__init__()
        self.backbone, self.factor = backbone.requires_grad_(False).eval(), config.pixels_factor
        if config.backbone is not None:
            self.register_state_dict_post_hook(leave_out)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B P E"]:
        """Patch features on the student's grid, whatever the size at which they were taken.

        Enlarging a crop is simpler than cutting it out of the picture at twice the size, as DINOv3 does, and shows no finer
        detail. Both resamplings are bicubic.
        """
        if self.factor == 1:
            return self.backbone(images).patches.flatten(1, 2)
        seen = self.backbone(F.interpolate(images, scale_factor=self.factor, mode="bicubic")).patches
        grid = [side // self.factor for side in seen.shape[1:3]]
        small = F.interpolate(seen.float().permute(0, 3, 1, 2), grid, mode="bicubic")
        return small.flatten(2).mT


def leave_out(_module: nn.Module, state: dict[str, Tensor], prefix: str, _local: object) -> None:
    """Nothing of this module goes into a checkpoint."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
