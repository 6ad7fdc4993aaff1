"""The loop: read this first.

Everything that happens between two steps is an observer, given as a list by whoever assembles the run, so the order of what
happens is visible in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dinoforge.data.batch import Batch
from dinoforge.train.follow import follow
from dinoforge.train.optim import clip, set_rates
from dinoforge.train.plan import PlanConfig, Scheduled
from dinoforge.train.step import PLAIN, Compute, Losses, Pretrain


@dataclass(frozen=True, slots=True)
class Done:
    """What one finished step leaves behind for the observers; tensors are still on the device."""

    step: int
    """Steps done, this one included."""
    losses: Losses
    norms: dict[str, Tensor]
    """Gradient norm of each sub-module before clipping."""
    at: Scheduled
    facts: dict[str, float] = field(default_factory=dict)
    """What an observer found out and a later one is to write down (k-NN, rank)."""


@runtime_checkable
class Observer(Protocol):
    """Something that looks at a finished step: metrics, probe, checkpoint."""

    def __call__(self, done: Done) -> None:
        """Called after every step, in the order of the list."""


def fit(
    step: Pretrain,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    plan: PlanConfig,
    steps: int,
    first: int = 0,
    compute: Compute = PLAIN,
    observers: Sequence[Observer] = (),
) -> None:
    """Train from step ``first`` to ``steps``; ``batches`` must begin at step ``first`` too."""
    step.student.train()
    for index, batch in zip(range(first, steps), batches, strict=False):
        at = plan.at(index, steps=steps)
        set_rates(optimizer, at)

        losses = step(batch, at, compute)
        losses.total.backward()
        norms = clip(step.student, plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        follow(step.teacher, step.student, at.teacher_momentum)

        done = Done(step=index + 1, losses=losses, norms=norms, at=at)
        for observer in observers:
            observer(done)
