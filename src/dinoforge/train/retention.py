"""What keeps a run that goes on from a backbone from losing what that one could do.

Now and then the backbone is compared with the one that the run began from, on images of the old kind. Where it has lost more
than is allowed, one thing is done, and said in one sentence: the learning rate is lowered; when that is spent, the weights are
moved back towards the start, as little as will do; when that is spent too, the run stops. While it has not, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dinoforge.base import dist
from dinoforge.base.errors import SentinelStop
from dinoforge.base.schedule import share
from dinoforge.train.continuation import ContinueConfig
from dinoforge.train.diary import Act, Diary, Kind
from dinoforge.train.guard import Guard
from dinoforge.train.loop import Done
from dinoforge.train.observe import Scores, due

KNN, DRIFT, LOST = "retention_knn", "retention_drift", "retention_lost"
"""What is measured: accuracy on the old images, how far their features drifted, whether more was lost than is allowed (1)."""


@torch.no_grad()
def blend_back(module: nn.Module, start: nn.Module, weight: float) -> None:
    """``module = (1 - weight) * module + weight * start``, for every parameter, in place.

    Args:
        start: Whole on every rank, on any device; of ``module`` each rank moves its own part.
    """
    for mine, theirs in zip(module.parameters(), start.parameters(), strict=True):
        dist.local(mine).lerp_(dist.part_of(theirs.to(mine.device), mine), weight)


class Retention:
    """Looks at the old skill, before anything of a step is kept. All that it acts on is the same on every rank.

    Args:
        measure: The scores of the backbone that would be handed on.
        blend: Moves every copy of the backbone that learns or follows so far towards the start.
        guard: Whose rate is lowered.
        record: Writes down the step that a run ends with, since no later observer sees it.
        steps: Of the plan.
        memory: What ``memory`` of an earlier start gave; else ``measure`` is now of the start.
    """

    def __init__(
        self, config: ContinueConfig, diary: Diary, *, measure: Callable[[], Scores], blend: Callable[[float], None],
        guard: Guard, record: Callable[[Done], None], steps: int, memory: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        assert config.retention is not None
        self.config, self.diary, self.guard, self.record, self.steps = config.retention, diary, guard, record, steps
        self._measured, self._blend = measure, blend
        self._still, self._every = share(config.warmup, steps), max(1, share(self.config.every, steps))
        self._fresh: Scores | None = None
        memory = memory or {"first": self._measured().get(KNN)}
        self._first: float | None = memory["first"]
        """Accuracy of the start; None without labels."""
        self._times = {kind: int(memory.get(kind, 0)) for kind in ("slow", "blend", "warn")}
        guard.rate *= self.config.rate_factor ** self._times["slow"]

    def memory(self) -> dict[str, Any]:
        """What it has seen and done so far; a run that goes on from it does as one that was never interrupted."""
        return {"first": self._first, **self._times}

    def due(self, step: int) -> bool:
        """Whether it looks after that step."""
        return step > self._still and due(step, every=self._every, steps=self.steps)

    def __call__(self, done: Done) -> None:
        """Look when due, and act where it must be.

        Raises:
            SentinelStop: More was lost than is allowed, and all that may be done about it is spent.
        """
        self._fresh = None
        if not self.due(done.step):
            return
        scores = self.scores()
        done.facts.update(scores)
        why = self._lost(scores)
        if why is not None:
            self._act(done, why)

    def scores(self) -> Scores:
        """Of the backbone as it is now, with whether it has lost more than is allowed."""
        if self._fresh is None:
            found = dict(self._measured())
            self._fresh = found | {LOST: float(self._lost(found) is not None)}
        return self._fresh

    def _lost(self, scores: Scores) -> str | None:
        """What was lost beyond what is allowed, in words; None where it is not."""
        points, drift = self.config.points, self.config.drift
        if self._first is not None and points is not None:
            lost = 100 * (self._first - scores[KNN])
            if lost > points:
                return (
                    f"k-NN on the old images fell from {self._first:.1%} to {scores[KNN]:.1%}, by {lost:.1f} points where "
                    f"{points:g} are allowed"
                )
        if drift is not None and scores[DRIFT] > drift:
            return f"features of the old images drifted by {scores[DRIFT]:.3f} where {drift:g} is allowed"
        return None

    def _act(self, done: Done, why: str) -> None:
        config, step = self.config, done.step
        if self._times["slow"] < config.slowdowns and step < self.steps:  # after the last step no rate would help
            self.guard.rate *= config.rate_factor
            self._note(step, "slow", f"{why}. On at {self.guard.rate:.3g} of the planned learning rate.")
        elif self._times["blend"] < config.blends:
            share = self._back()
            self._note(step, "blend", f"{why}. The backbone goes {share:.0%} of the way back to the one it began from.")
        elif config.stop:
            sentence = (
                f"Stopped at step {step}, forgetting: {why}. The learning rate had been lowered {self._times['slow']} times, "
                f"the backbone moved back {self._times['blend']} times. What was kept before stays: the last checkpoint, and "
                "the best backbone that had not lost more than is allowed. Raise continuation.retention.points, lower "
                "plan.learning_rate.peak or continuation.backbone_rate, or allow more blends (another run, with a new out)."
            )
            self.record(done)
            self.diary.note(Act(step, "stop", "forgetting", sentence))
            raise SentinelStop(sentence)
        elif not self._times["warn"]:
            self._note(step, "warn", f"{why}, and all that may be done about it is spent. The run goes on.")

    def _back(self) -> float:
        """Move the backbone towards the start, no further than is needed; how far it went."""
        gone = 0.0
        for way in (self.config.blend * part for part in (0.125, 0.25, 0.5, 1)):
            self._blend((way - gone) / (1 - gone))
            gone, self._fresh = way, None
            if not self.scores()[LOST]:
                break
        return gone

    def _note(self, step: int, kind: Kind, what: str) -> None:
        self._times[kind] += 1
        self.diary.note(Act(step, kind, "forgetting", f"Step {step}, forgetting: {what}"))
