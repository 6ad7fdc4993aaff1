"""Distillation: a student learns from a frozen teacher by the loss of pretraining (DINOv2, sec. 5; DINOv3, sec. 5.2).

Axes: G global views, B images, N patches, M patches that the patch loss is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.data.batch import Batch
from dinoforge.loss.matching import MatchingConfig
from dinoforge.loss.scores import Scores
from dinoforge.model.table import BackboneConfig
from dinoforge.train.gram import leave_out
from dinoforge.train.plan import Scheduled
from dinoforge.train.step import PLAIN, Compute, Networks, ObjectiveConfig, Pretrain


class DistilConfig(Config):
    """A frozen teacher in place of the moving average, which is kept beside the student and handed on."""

    not_science: ClassVar[frozenset[str]] = frozenset({"teacher"})
    later: ClassVar[frozenset[str]] = frozenset({"matching"})

    teacher: str | None = None
    """Folder of the run that trained the teacher and its heads; any backbone where features are matched (its fingerprint
    counts, not its path)."""
    patches: Literal["all", "drawn"] = "all"
    """Patches of the global views that the patch loss is about: every one (DINOv2), or those that ``data.masks`` draws
    (DINOv3). The student sees all of them either way."""
    matching: MatchingConfig | None = None
    """Class and patch tokens are to come to the teacher's, which needs no heads, by {} and what is to differ; null: the loss
    of pretraining against the teacher's heads."""


@dataclass(frozen=True, slots=True)
class Design:
    """What networks are made of."""

    backbone: BackboneConfig
    objective: ObjectiveConfig
    """For its heads, if it has any."""


class Shared:
    """What one teacher makes of a batch, for several students that see the same: asked for once, handed to each of them."""

    divided = False
    """Whether ranks that see the same have the teacher look at a part of it each (``train.exchange``)."""

    def __init__(self) -> None:
        self.teacher: Networks | None = None
        """The one that all of them have; null until the first has it."""
        self._key: object = None
        self._found: list[Any] = []

    def once(self, key: object, make: Callable[[], list[Any]]) -> list[Any]:
        """What was made for that key the last time, or else is made now."""
        if key != self._key:
            self._key, self._found = None, []  # two batches' targets are never alive together
            self._key, self._found = key, make()
        return self._found

    def mine(self, views: Tensor) -> Tensor:
        """The part of ``[V, B, ...]`` that the teacher is to look at here: all of it."""
        return views

    def whole(self, found: Tensor, images: int) -> Tensor:
        """What was found of so many images ``[V, B, ...]``, of which this is the part that was looked at here."""
        return found


class Distil(Pretrain):
    """Targets come from a teacher that stays as it is, which is no part of the state: it is read again.

    The student sees every patch. Its moving average with heads takes no part in the loss.

    Args:
        teacher: Of any width and depth, with as many prototypes as the student has, patches of the same size, and channels.
        spare: The moving average: a copy of the student that never receives gradients.
        shared: Where other students of the same teacher see the same batches; null: nobody else does.
    """

    def __init__(
        self, student: Networks, teacher: Networks, config: ObjectiveConfig, *, seed: int, how: DistilConfig,
        spare: Networks, gram: nn.Module | None = None, shared: Shared | None = None,
    ) -> None:  # fmt: skip
        teacher.requires_grad_(False).eval().register_state_dict_post_hook(leave_out)
        super().__init__(student, teacher, config, seed=seed, gram=gram)
        self.spare, self.how, self.shared = spare, how, shared
        self.looks = shared or Shared()

    @property
    def average(self) -> Networks:
        """The moving average of the student: what is probed, kept and handed on."""
        return self.spare

    def predicted(self, batch: Batch) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """Every patch, all alike, or those drawn, every view with any alike."""
        if self.how.patches == "drawn":
            return super().predicted(batch)
        patches, device = batch.masks.shape[-1], batch.globals.device
        index = torch.arange(batch.masks.numel(), device=device)
        return index, torch.full((len(index),), 1 / patches, device=device)

    def targets(self, parts: Sequence[Batch], at: Scheduled, compute: Compute = PLAIN) -> list[Any]:
        """As of any teacher; made once for all students that share it."""
        if self.shared is None:
            return self.made(parts, at, compute)
        key = [part.groups for part in parts], at.teacher_temperature, _dtype(compute, parts[0].globals.device)
        return self.shared.once(key, lambda: self.made(parts, at, compute))

    def made(self, parts: Sequence[Batch], at: Scheduled, compute: Compute = PLAIN) -> list[Any]:
        """What the teacher says of a batch."""
        return super().targets(parts, at, compute)

    def _seen(self, batch: Batch, compute: Compute) -> tuple[Scores, Scores]:
        """As of any teacher; of a part of the images, and all their patches, where others look at the rest."""
        if not self.looks.divided:
            return super()._seen(batch, compute)
        views, images, patches = batch.masks.shape
        with compute:
            seen = self.teacher.backbone(self.looks.mine(batch.globals).flatten(0, 1))
            image, patch = self.teacher.scores(seen.image, seen.patches.flatten(0, 2))
        every = self.looks.whole(image.vectors.unflatten(0, (views, -1)), images).flatten(0, 1)
        rows = self.looks.whole(patch.vectors.unflatten(0, (views, -1, patches)), images).flatten(0, 2)
        return replace(image, vectors=every), replace(patch, vectors=rows[self.predicted(batch)[0]])

    def hidden(self, batch: Batch) -> Bool[Tensor, "G B N"] | None:
        """None."""
        return None


def _dtype(compute: Compute, device: torch.device) -> torch.dtype:
    """What a teacher makes there in that context: it is of no use to who computes in another."""
    with compute:
        half = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if half else torch.get_default_dtype()
