"""Which networks and which step a run is made of, by what it is taught."""

from __future__ import annotations

from typing import Any

from torch import nn

from dinoforge.train.distil import Distil, DistilConfig, Shared
from dinoforge.train.matching import Mapped, Match
from dinoforge.train.step import Networks, ObjectiveConfig, Pretrain, networks


def student_of(
    backbone: Any, config: ObjectiveConfig, *, seed: int, how: DistilConfig | None = None, width: int | None = None
) -> Networks:
    """A backbone with freshly drawn heads, or with maps to the features that it is to match.

    Args:
        width: Channels of the teacher, where its features are matched.
    """
    if how is None or how.matching is None:
        return networks(backbone, config, seed=seed)
    assert width is not None
    return Mapped(backbone, width, seed=seed)


def frozen_of(backbone: Any, config: ObjectiveConfig, *, how: DistilConfig | None = None) -> Networks:
    """A frozen teacher with memory for its heads, or without any where its features are matched."""
    return networks(backbone, config, seed=0) if how is None or how.matching is None else Mapped(backbone, None)


def assembled(
    student: Networks, average: Networks, config: ObjectiveConfig, *, seed: int, teacher: Networks | None = None,
    how: DistilConfig | None = None, gram: nn.Module | None = None, shared: Shared | None = None,
) -> Pretrain:  # fmt: skip
    """The step of a run: a distillation where there is a frozen teacher, else plain pretraining, whose average teaches.

    Args:
        average: A copy of the student that never receives gradients.
        shared: Where other students have the same teacher.
    """
    if teacher is None:
        return Pretrain(student, average, config, seed=seed, gram=gram)
    assert how is not None
    kind = Distil if how.matching is None else Match
    return kind(student, teacher, config, seed=seed, how=how, spare=average, gram=gram, shared=shared)
