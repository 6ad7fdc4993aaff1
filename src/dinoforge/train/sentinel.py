"""The sentinel: sees that a run is ill, says so in one sentence, and does the least that may help.

What it can do, in this order: leave a step out; go back to the last good checkpoint and on from there at a lower learning rate;
stop. A healthy run it leaves as it is, to the last bit.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator

from dinoforge.base import dist
from dinoforge.base.config import Config
from dinoforge.base.errors import SentinelStop
from dinoforge.base.hardware import Precision
from dinoforge.train.diary import Act, Diary
from dinoforge.train.guard import Guard
from dinoforge.train.loop import Done
from dinoforge.train.vitals import Pulse


class SentinelConfig(Config):
    """What the sentinel may do before it stops a run. It reads the same signs whatever its budgets."""

    skips: int = Field(default=5, ge=0)
    """Steps that may be left out among any ``within``; one more is trouble."""
    within: int = Field(default=100, gt=0)
    """Length of the stretch, in steps, in which left-out steps are counted."""
    rollbacks: int = Field(default=3, ge=0)
    """Times that the run may go back to a checkpoint."""
    rate_factor: float = Field(default=0.5, gt=0, lt=1)
    """Factor on the learning rate for each time it went back."""
    failed_writes: int = Field(default=3, ge=0)
    """Times in a row that a checkpoint may fail to be written before the run stops."""

    @model_validator(mode="after")
    def _agree(self) -> SentinelConfig:
        if self.skips > self.within:
            raise ValueError(
                f"sentinel.skips={self.skips} of sentinel.within={self.within} steps would never be too many; "
                f"{self.within} at most."
            )
        if self.rollbacks == 0 and self.rate_factor != type(self).model_fields["rate_factor"].default:
            raise ValueError(
                f"sentinel.rate_factor={self.rate_factor} has no effect with sentinel.rollbacks=0; leave it out."
            )
        return self


class RollBack(Exception):
    """The run is to go on from an earlier state.

    Args:
        step: At which that was seen.
        good: The last step after which nothing was wrong.
        rate: Factor on the learning rate from then on.
    """

    def __init__(self, step: int, good: int, cause: str, evidence: str, rate: float) -> None:
        super().__init__(evidence)
        self.step, self.good, self.cause, self.evidence, self.rate = step, good, cause, evidence, rate

    def act(self, back_to: int) -> Act:
        """What to note once it is known which checkpoint is the last good one; 0 where there is none."""
        where = f"the checkpoint of step {back_to}" if back_to else "the beginning"
        return Act(
            self.step, "roll back", self.cause,
            f"Step {self.step}, {self.cause}: {self.evidence}. Back to {where}, and on at {self.rate:.3g} of the planned "
            "learning rate.",
            back_to,
        )  # fmt: skip


# The figures below were set on vit_micro.toy (CPU, fp32, 2026-11-28): see docs/log.md.
_KNOWN = 32
"""Steps that a sub-module's gradient norm must have been seen before there is a law of it."""
_LAW = 256
"""Steps that the law is made from."""
_RENEWED = 50
"""Steps for which a law is in force: after every fiftieth it is renewed, from all until then. So it depends on the step, not
on when the device was last waited for: for a probe, a checkpoint or a request to stop."""
_FAR = 30.0
"""Times the median norm from which on a step is left out, and no less than so many deviations."""
_DEVIATIONS = 10.0
_SETTLING = 10
"""The first tenth of the plan, in which features of fresh weights may be all alike (LayerScale begins at 1e-5)."""
_WARM = 0.3
"""The share of the plan in which targets of fresh heads may be all alike: in the published plans the learning rate and the
temperature still rise, and 16,384 prototypes say nothing for hundreds of steps."""
_LOOKS = 3
"""Looks in a row that must agree before something slow is called trouble."""
_UNIFORM = 0.995
"""Teacher entropy, as a share of the logarithm of prototypes, from which on targets say nothing."""
_TELLING = 0.02
"""Target information below which all images have the same target."""
_SPREAD = 1e-3
"""The same of matched features. Lower, for a sound teacher may have little: one channel of 300 deviations that all tokens
share (massive activations, Sun et al. 2024) leaves 768 others of variance 1 a share of 768 / 300^2 = 0.008."""
_FALLEN = 0.5
"""Share of its best to which target information must have fallen to be called collapsed."""
_CLOSE = 1e-3
"""Distance to the nearest neighbour, on the unit sphere, below which features are called collapsed."""
_RANK = 0.3
"""Share of its best to which the effective rank must have fallen to be called collapsed."""
_STILL = 1e-4
"""One less the teacher's momentum, below which it need not be seen to move."""
_HUNGRY = 0.6
"""Share of the time spent waiting for images from which on the loader is told of."""
_STRETCH = 100
"""Steps after which waiting is looked at."""


@dataclass(slots=True)
class _Law:
    """What is normal of a gradient norm: its logarithm's median and median deviation."""

    seen: deque[float]

    def learn(self, norm: float) -> None:
        if norm > 0:
            self.seen.append(math.log(norm))

    @property
    def middle(self) -> float:
        return math.exp(statistics.median(self.seen))

    @property
    def largest(self) -> float:
        """From which on a norm is out of the law; infinite while there is none."""
        if len(self.seen) < _KNOWN:
            return math.inf
        middle = statistics.median(self.seen)
        spread = 1.4826 * statistics.median([abs(value - middle) for value in self.seen])
        return math.exp(middle + max(math.log(_FAR), _DEVIATIONS * spread))


class Sentinel:
    """Looks at every step before the probe and the checkpoint see it. All that it acts on is the same on every rank.

    Args:
        due: Whether somebody keeps weights after that step; then it is looked at, at once.
        record: Writes down the step that a run ends with or goes back from, since no later observer sees it.
        rows_at_once: Steps that may gather where nothing is due: reading a number makes the host wait for the device.
        precision: Of the run, for what to advise.
        steps: Of the whole plan.
        pulse: Whether the teacher lives; null where it cannot be told.
        memory: What ``memory`` of an earlier start gave.
    """

    def __init__(
        self, config: SentinelConfig, diary: Diary, *, due: Callable[[int], bool], record: Callable[[Done], None],
        rows_at_once: int, precision: Precision, steps: int, pulse: Pulse | None = None,
        memory: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.diary, self.due, self.record = config, diary, due, record
        self.rows_at_once, self.precision, self.steps, self.pulse = rows_at_once, precision, steps, pulse
        memory = memory or {}
        self._good = int(memory.get("good", 0))
        self._best, self._temperature = memory.get("best", 0.0), memory.get("temperature", 0.0)
        self._signs: dict[str, int] = dict(memory.get("signs", {}))
        """Looks in a row at which a sign of trouble was seen."""
        self._skipped: deque[int] = deque(memory.get("skipped", ()))
        self._laws = {name: _Law(deque(seen, maxlen=_LAW)) for name, seen in memory.get("laws", {}).items()}
        self.guard = Guard(
            rate=config.rate_factor ** len(diary.rollbacks()),
            largest=dict(memory.get("largest", {})),
        )
        """What the loop asks before every update."""
        self._pending: list[Done] = []
        self._waited, self._since, self._told = 0.0, time.monotonic(), False
        if pulse is not None and pulse.aliased:
            self._stop(self._good, "teacher", "the teacher shares its memory with the student, so it is no average", "")

    def __call__(self, done: Done) -> None:
        """Remember the step; look when enough have gathered or weights are about to be kept.

        Raises:
            RollBack: The run is to go on from an earlier state.
            SentinelStop: It is not healthy, and nothing that may be done would mend it.
        """
        if done.vitals and self.pulse is not None:
            done.vitals.update(self.pulse())
        self._waited += done.waited
        self._pending.append(done)
        if len(self._pending) >= self.rows_at_once or done.step % _RENEWED == 0 or self.due(done.step):
            try:
                self.check()
            except (RollBack, SentinelStop):
                self.record(done)
                raise
        if done.step % _STRETCH == 0:
            self._starving(done.step)

    def check(self) -> None:
        """Look at every step not yet looked at.

        Raises:
            RollBack: As above.
            SentinelStop: As above.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        flat = [value.detach().float() for done in pending for value in _numbers(done).values()]
        values = iter(torch.stack(flat).tolist())  # the one time that the device is waited for
        for done in pending:
            self._look(done, {name: next(values) for name in _numbers(done)})

    def memory(self) -> dict[str, Any]:
        """What it has learnt of the run so far; a run that goes on from it does as one that was never interrupted."""
        return {
            "good": self._good, "best": self._best, "temperature": self._temperature, "signs": dict(self._signs),
            "skipped": list(self._skipped), "laws": {name: list(law.seen) for name, law in self._laws.items()},
            "largest": dict(self.guard.largest),
        }  # fmt: skip

    def sound(self, done: int) -> int:
        """The last step before every sign that is counted after ``done`` steps: no trouble to come goes back further."""
        near = [step - 1 for step in self._skipped if step > done + 1 - self.config.within]
        return min([self._good, *near])

    def scores(self, done: Done, rank: float, best: float) -> None:
        """Judge the effective rank that a probe has found after a step.

        Args:
            best: The highest since it has settled.

        Raises:
            RollBack: Features have collapsed.
            SentinelStop: As above.
        """
        if rank < _RANK * best:
            self.record(done)
            why = f"the effective rank of the features fell from {best:.1f} to {rank:.1f}"
            self._trouble(done.step, "collapse", why)

    def write_failed(self, step: int, again: int, error: str, times: int) -> None:
        """Tell that a checkpoint could not be written.

        Raises:
            SentinelStop: Too often in a row.
        """
        if times > self.config.failed_writes:
            self._stop(step, "disk", f"checkpoints could not be written {times} times in a row ({error})", "")
        self.diary.note(
            Act(step, "warn", "disk", f"Step {step}: no checkpoint ({error}) The run goes on and tries again after step "
                f"{again}; until then a crash would lose what was learnt since the last one.")
        )  # fmt: skip

    def _look(self, done: Done, row: Mapping[str, float]) -> None:
        step, norms = done.step, {name: row[f"gradient norm {name}"] for name in done.norms}
        if row["skipped"]:
            self._skip(step, row, norms)
        else:
            for name, norm in norms.items():
                self._laws.setdefault(name, _Law(deque(maxlen=_LAW))).learn(norm)
            if done.vitals:
                self._vitals(done, row)
        if step % _RENEWED == 0:
            known = {name: law.largest for name, law in self._laws.items()}
            self.guard.largest = {name: largest for name, largest in known.items() if largest < math.inf}

    def _skip(self, step: int, row: Mapping[str, float], norms: Mapping[str, float]) -> None:
        odd = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
        far = [
            f"gradient norm {name} is {norm:.3g}, usually {self._laws[name].middle:.3g}"
            for name, norm in norms.items()
            if norm > self.guard.largest.get(name, math.inf)
        ]
        cause, evidence = ("not finite", odd) if odd else ("gradient norm", far)
        self._skipped.append(step)
        while self._skipped[0] <= step - self.config.within:
            self._skipped.popleft()
        many = len(self._skipped)
        if many > self.config.skips:
            first = self._skipped[0]
            counted = f"{many} of the last {step - first + 1} steps" if many > 1 else f"step {step}"
            self._trouble(step, cause, f"{counted} had to be left out: {', '.join(evidence)}", good=first - 1)
        self.diary.note(Act(step, "skip", cause, f"Step {step} left out, {cause}: {', '.join(evidence)}."))

    def _vitals(self, done: Done, row: Mapping[str, float]) -> None:
        """Signs of slow trouble: each must be seen at some looks in a row."""
        step, momentum = done.step, done.at.teacher_momentum
        entropy = row.get("teacher_entropy")  # none where features are matched
        telling, least = (row["target_spread"], _SPREAD) if entropy is None else (row["target_information"], _TELLING)
        close = math.exp(-row["loss koleo"] / 2) if "loss koleo" in row else 1.0
        moved, distance = row.get("teacher_moved", 1.0), row.get("teacher_distance", 1.0)
        temperature = done.at.teacher_temperature
        settled = _SETTLING * step >= self.steps
        warm = settled if entropy is None else step >= _WARM * self.steps
        signs = {
            "flat": warm and ((entropy or 0) > _UNIFORM or telling < least),
            "fallen": entropy is not None and self._best > least and telling < _FALLEN * self._best,
            "close": settled and close < _CLOSE,
            "still": moved == 0 and distance > 0 and 1 - momentum > _STILL,
            "same": distance == 0 and done.at.learning_rate > 0 and momentum > 0,
        }
        for name, seen in signs.items():
            self._signs[name] = self._signs.get(name, 0) + 1 if seen else 0
        long = {name for name, times in self._signs.items() if times >= _LOOKS}
        if not any(signs.values()):
            self._good = step
        # Warmer targets tell less: while they are nearly uniform, by the square of the temperature.
        warmer = (self._temperature / temperature) ** 2 if self._temperature else 1.0
        self._best, self._temperature = max(self._best * min(warmer, 1.0), telling), temperature
        if "same" in long:
            self._stop(step, "teacher", "the teacher is equal to the student although its momentum is "
                       f"{momentum:.4g}: both are the same tensors, or the average is not taken", "")  # fmt: skip
        if "still" in long:
            self._stop(step, "teacher", f"the teacher has not moved for {_LOOKS} looks although its momentum is "
                       f"{momentum:.4g}: the average is not taken, or is lost in rounding", "")  # fmt: skip
        if "fallen" in long or "close" in long:
            why = (
                f"all features are alike (nearest neighbours are {close:.1e} apart)"
                if "close" in long
                else f"targets tell images apart no more (information {telling:.3f}, at best {self._best:.3f})"
            )
            self._trouble(step, "collapse", why)
        if "flat" in long and entropy is None:
            self._stop(step, "collapse", f"the teacher's features are the same for all images (spread {telling:.1e})",
                       "Give another teacher (another run, with a new out)")  # fmt: skip
        if "flat" in long:
            self._stop(step, "collapse", f"the teacher's targets are the same for all images (entropy {entropy:.3f} of the "
                       f"largest, information {telling:.3f}) at temperature {temperature:.4g}",
                       "Lower plan.teacher_temperature (another run, with a new out)")  # fmt: skip

    def _trouble(self, step: int, cause: str, evidence: str, *, good: int | None = None) -> None:
        if len(self.diary.rollbacks()) >= self.config.rollbacks:
            self._stop(step, cause, evidence, self._advice(cause))
        raise RollBack(
            step, self._good if good is None else good, cause, evidence, self.guard.rate * self.config.rate_factor
        )

    def _stop(self, step: int, cause: str, evidence: str, advice: str) -> None:
        times = len(self.diary.rollbacks())
        tried = f" It had gone back {times} times, the learning rate is {self.guard.rate:.3g} of the planned." * bool(
            times
        )
        sentence = (
            f"Stopped at step {step}, {cause}: {evidence}.{tried} What was kept before stays: the last checkpoint and the "
            f"backbone.{' ' + advice + '.' if advice else ''}"
        )
        self.diary.note(Act(step, "stop", cause, sentence))
        raise SentinelStop(sentence)

    def _advice(self, cause: str) -> str:
        if cause == "not finite" and self.precision == "bf16":
            return "Give precision=fp32 with the same out to go on from that checkpoint"
        return "Lower plan.learning_rate.peak (another run, with a new out), or allow more sentinel.rollbacks"

    def _starving(self, step: int) -> None:
        """Whether images come too slowly on some rank; the longest waits are what all wait for."""
        elapsed, self._since = time.monotonic() - self._since, time.monotonic()
        waited, self._waited = self._waited, 0.0
        share = max(dist.gather(waited / max(elapsed, 1e-9)))
        if share > _HUNGRY and not self._told:
            self._told = True
            self.diary.note(
                Act(step, "warn", "loader", f"Step {step}: {share:.0%} of the last {_STRETCH} steps' time was spent waiting "
                    "for images. More speed.workers, faster storage or smaller files would help; `dinoforge doctor data=… "
                    "recipe=…` shows which stage is slow.")
            )  # fmt: skip


def _numbers(done: Done) -> dict[str, torch.Tensor]:
    return (
        {"skipped": done.skipped}
        | {f"loss {name}": value for name, value in done.losses.items()}
        | {f"gradient norm {name}": norm for name, norm in done.norms.items()}
        | done.vitals
    )
