"""The loop: read this first.

Everything that happens between two steps is an observer, given as a list by whoever assembles the run, so the order of what
happens is visible in one place.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dinoforge.base import dist
from dinoforge.data.batch import Batch
from dinoforge.train.follow import follow
from dinoforge.train.guard import UNGUARDED, Guard
from dinoforge.train.optim import clip, set_rates, update
from dinoforge.train.plan import PlanConfig, Scheduled
from dinoforge.train.step import PLAIN, Compute, Pretrain
from dinoforge.train.vitals import EVERY


@dataclass(frozen=True, slots=True)
class Done:
    """What one finished step leaves behind for the observers; tensors are still on the device."""

    step: int
    """Steps done, this one included."""
    losses: dict[str, Tensor]
    """Terms of the loss, over the whole logical batch."""
    norms: dict[str, Tensor]
    """Gradient norm of each sub-module before clipping."""
    at: Scheduled
    skipped: Tensor
    """1 where the student was not updated (``train.guard.unfit``), else 0."""
    vitals: dict[str, Tensor] = field(default_factory=dict)
    """Signs of life (``train.vitals``), every tenth step."""
    waited: float = 0.0
    """Seconds that the host waited for images."""
    facts: dict[str, float] = field(default_factory=dict)
    """What an observer found out and a later one is to write down (k-NN, rank)."""


@runtime_checkable
class Observer(Protocol):
    """Something that looks at a finished step: metrics, probe, checkpoint."""

    def __call__(self, done: Done) -> None:
        """Called after every step, in the order of the list."""


def fit(step: Pretrain, optimizer: torch.optim.Optimizer, batches: Iterable[Batch], **how: Any) -> None:
    """Train from one step to another: ``steps_of`` without a stop between them."""
    for _ in steps_of(step, optimizer, batches, **how):
        pass


def steps_of(
    step: Pretrain,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    plan: PlanConfig,
    steps: int,
    first: int = 0,
    parts: int = 1,
    compute: Compute = PLAIN,
    guard: Guard = UNGUARDED,
    observers: Sequence[Observer] = (),
) -> Iterator[int]:
    """Train from step ``first`` to ``steps``; gives the number of each step that is done, so that others may do theirs.

    Args:
        batches: From step ``first`` on, this rank's share of the logical batches, each in so many ``parts``.
        guard: Says which gradients the student is spared, and by how much the learning rate is lowered.
    """
    step.student.train()
    stream = iter(batches)
    for index in range(first, steps):
        since = time.perf_counter()
        share = list(islice(stream, parts))
        waited = time.perf_counter() - since
        if not share:
            return
        at = plan.at(index, steps=steps, gram=step.config.gram)
        set_rates(optimizer, at, factor=guard.rate)
        if step.gram is not None and at.gram_copy:
            follow(step.gram.backbone, step.teacher.backbone, momentum=0.0)

        losses, vitals = descend(step, share, at, compute, look=index % EVERY == 0)
        norms = clip(step.student, plan.clip)
        skipped = guard.unfit(losses, norms)
        update(optimizer, unless=skipped)
        optimizer.zero_grad(set_to_none=True)
        follow(step.average, step.student, at.teacher_momentum)

        done = Done(step=index + 1, losses=losses, norms=norms, at=at, skipped=skipped, vitals=vitals, waited=waited)
        for observer in observers:
            observer(done)
        yield index + 1


def descend(
    step: Pretrain, share: Sequence[Batch], at: Scheduled, compute: Compute = PLAIN, *, look: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leave the gradient of a logical batch on the student, and return its loss terms and, if asked to look, its vitals.

    Targets know the whole batch; the student sees one part after another, so that activations of one part are alive at a time.
    Parts are equally many whole groups on every rank, so the batch's loss is the mean of theirs, whatever the split.
    """
    terms = []
    wanted = step.targets(share, at, compute)
    vitals = step.vitals(share, wanted) if look else {}
    for part, targets in zip(share, wanted, strict=True):
        losses = step.losses(part, targets, compute, at.gram_weight)
        (losses.total / len(share)).backward()
        terms.append(torch.stack(list(losses.terms.values())))
    means = dist.all_mean(torch.stack(terms).mean(0)).unbind()
    return dict(zip(losses.terms, means, strict=True)), vitals
