"""What watches a run between two steps: metrics on disk, the quality probe, checkpoints, a request to stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import nn

from dinoforge.base import dist
from dinoforge.base.errors import Interrupted, RunError
from dinoforge.base.files import Lines, read_lines, write_lines
from dinoforge.base.log import Ticker, say
from dinoforge.train.checkpoint import Checkpoints
from dinoforge.train.loop import Done
from dinoforge.train.trackers.tracker import Tracker, numbers

Scores = Mapping[str, float]
T = TypeVar("T")


def due(step: int, *, every: int, steps: int, before: int = 0) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after this one.

    Left out is a time so near the end that the end makes it pointless.

    Args:
        steps: Of a stage of the run.
        before: Steps of the run before that stage's first.
    """
    step -= before
    return step == steps or (step % every == 0 and 2 * (steps - step) >= every)


class Probe:
    """Measures quality now and then, keeps the best backbone, and has ``film`` record what the report shows.

    Best is what ``is_best`` says.

    Args:
        protocol: Names what is measured: on which rows, with how many neighbours. Kept with every row of ``history``.
        failed: Told the step and the reason where a backbone or a picture could not be written.
        steps: Of the stage that is trained.
        before: Steps of the run before that stage's first.
    """

    def __init__(
        self,
        measure: Callable[[], Scores],
        keep: Callable[[int, Scores], None],
        *,
        every: int,
        steps: int,
        history: list[dict[str, Any]],
        protocol: str,
        failed: Callable[[int, str], None],
        film: Callable[[int], None] | None = None,
        before: int = 0,
    ) -> None:
        self.measure, self.keep, self.every, self.steps, self.history = measure, keep, every, steps, history
        self.protocol, self.failed, self.film, self.before = protocol, failed, film, before

    def __call__(self, done: Done) -> None:
        """Measure when due; the scores go into the step's facts and the history."""
        if self.due(done.step):
            done.facts.update(self.look(done.step))

    def due(self, step: int) -> bool:
        """Whether quality is measured after that step."""
        return due(step, every=self.every, steps=self.steps, before=self.before)

    def look(self, step: int) -> Scores:
        """Measure now. The backbone before the first step is measured but never kept."""
        scores = dict(self.measure())
        self.history.append({"step": step, **scores, "protocol": self.protocol})
        try:
            if is_best(self.history, steps=self.before + self.steps):
                self.history[-1]["kept"] = False  # until it is
                self.keep(step, scores)
                del self.history[-1]["kept"]
            if self.film is not None:
                self.film(step)
        except RunError as error:
            self.failed(step, str(error))
        return scores


# vit_micro of 4 blocks on 400 toy images: in 800 healthy steps no rank is below 0.94 of the best until then; with a learning
# rate that ruins it the rank falls to 0.24 of its first within 40 steps. (CPU, 2026-11-25)
_KEPT = 0.7
"""Share of its best effective rank that a backbone must have to be kept, where there is no accuracy to go by."""
_SETTLING = 10
"""The first tenth of the plan, in which the rank of half-random features says little."""


def is_best(history: Sequence[Mapping[str, Any]], *, steps: int) -> bool:
    """Whether the backbone that the last row of a history is about should be kept in place of the one kept before.

    With k-NN accuracies, if its own is above all earlier ones. Without, if its effective rank is at least 70 % of the best
    since the first tenth of the plan: the newest backbone stays, unless its features have collapsed. Never before the first
    step, nor where a score is not finite or more old skill was lost than is allowed (``train.retention``). Rows compare only
    with those of the same protocol, and not with one whose backbone the disk refused: a run may go on with another probe, or
    at another image size, and the first backbone that is measured so replaces the one from before.

    Args:
        history: Rows of ``Probe``, oldest first.
        steps: Of the run, up to the end of the stage that is trained.
    """
    *_, last = history
    if (
        last["step"] <= 0
        or last.get("retention_lost")
        or not all(math.isfinite(value) for value in last.values() if isinstance(value, float))
    ):
        return False
    if "knn" in last:
        earlier = comparable(history[:-1], last["protocol"])
        kept = [row["knn"] for row in earlier if row["step"] > 0 and row.get("kept", True)]
        return bool(last["knn"] > max(kept, default=-math.inf))
    return bool(last["rank"] >= _KEPT * best_rank(history, last["protocol"], steps=steps))


def best_rank(history: Sequence[Mapping[str, Any]], protocol: str, *, steps: int) -> float:
    """The highest effective rank since the first tenth of the plan; lower than any where there is none."""
    settled = [row["rank"] for row in comparable(history, protocol, "rank") if _SETTLING * row["step"] >= steps]
    return max(settled, default=-math.inf)


def comparable(history: Sequence[Mapping[str, Any]], protocol: str, name: str = "knn") -> list[Mapping[str, Any]]:
    """The rows of a history that hold a finite score of that name and protocol; a checkpoint has null where one is not."""
    return [
        row
        for row in history
        if row.get(name) is not None and math.isfinite(row[name]) and row.get("protocol") == protocol
    ]


class Metrics:
    """One JSON line a step in ``metrics.jsonl``, written by the first rank.

    Args:
        images: How many the run has seen after so many steps.
    """

    def __init__(
        self, path: Path, *, images: Callable[[int], int], tick: Ticker, waits: bool, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.images, self.tick, self.trackers = images, tick, trackers
        # Reading a number makes the host wait for the device, so there many steps are read at once.
        self.rows_at_once = 50 if waits else 1
        self._pending: list[Done] = []
        self._lines = Lines(path)
        self._since = time.monotonic()

    def __call__(self, done: Done) -> None:
        """Remember the step; write when enough have gathered or something was measured. What a full disk refuses waits."""
        self._pending.append(done)
        if len(self._pending) >= self.rows_at_once or done.facts:
            self._write()

    def last(self, done: Done) -> None:
        """Write the step that a run ends with or goes back from, and all before it."""
        self._pending.append(done)
        self._write()

    def flush(self) -> None:
        """Write every step not yet written.

        Raises:
            RunError: The disk is full; nothing is lost, the next call tries again.
        """
        self._write()
        self._lines.flush()

    def _write(self) -> None:
        """Fetch from the device what is to be written, and write it."""
        if not self._pending or dist.rank():
            self._pending.clear()
            return
        seconds = (time.monotonic() - self._since) / len(self._pending)
        self._since = time.monotonic()
        names = list(self._pending[0].losses)
        values = torch.stack([torch.stack([done.losses[name] for name in names]) for done in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for done, terms in zip(pending, values, strict=True):
            losses, images = dict(zip(names, terms, strict=True)), self.images(done.step)
            row = _row(done, losses, images=images, rate=(images - self.images(done.step - 1)) / seconds)
            self._lines.add(row)
            for tracker in self.trackers:
                tracker(done.step, numbers(row))
            self.tick(images, _note(losses, done.facts))


def _row(done: Done, losses: dict[str, float], *, images: int, rate: float) -> dict[str, Any]:
    return {
        "step": done.step,
        "images": images,
        "losses": losses,
        "gradient_norms": {name: norm.item() for name, norm in done.norms.items()},
        "learning_rate": done.at.learning_rate,
        "weight_decay": done.at.weight_decay,
        "teacher_momentum": done.at.teacher_momentum,
        "teacher_temperature": done.at.teacher_temperature,
        "images_per_second": rate,
        **({"skipped": True} if done.skipped else {}),
        **({"vitals": {name: value.item() for name, value in done.vitals.items()}} if done.vitals else {}),
        **done.facts,
    }


def _note(losses: dict[str, float], facts: Scores) -> str:
    quality = "".join(f"  {name} {value:.3f}" for name, value in facts.items())
    return f"loss {losses['total']:.3f}{quality}"


def cut_metrics(path: Path, step: int | None) -> int:
    """Drop the rows after ``step``: the run goes on from there and writes them again.

    Args:
        path: The file, which may be absent. It is replaced at once: no moment at which a row that stays is missing.
        step: Of the checkpoint; None where there is none, and every row goes, the one before the first step too.

    Returns:
        The last step that had been written.
    """
    rows = read_lines(path)
    if path.exists():
        write_lines(path, [row for row in rows if step is not None and row["step"] <= step])
    return max((int(row["step"]) for row in rows), default=0)


_ONE_REQUEST = 2.0
"""Seconds in which signals are one request: from a terminal, or where a service is stopped, a rank gets one of its own and one
from whoever started it."""


class Stop:
    """Turns SIGTERM and SIGINT into a checkpoint and exit status 75, on all ranks after the same step."""

    def __init__(self) -> None:
        self.asked = False
        """Whether any rank was asked, as of their last exchange (``Agreement``)."""
        self.signalled = False
        """Whether this rank was."""
        self.elsewhere = False
        """Whether a rank was that this one shares no step with (``train.exchange``)."""
        self._before: dict[int, Any] = {}
        self._since = 0.0

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: whoever owns it handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.signalled:
            if time.monotonic() - self._since > _ONE_REQUEST:  # asked again: at once
                raise KeyboardInterrupt
            return
        self.signalled, self._since = True, time.monotonic()
        say(f"{signal.Signals(number).name} received: finishing this step, then a checkpoint.")


class Agreement:
    """What ranks tell one another after every step: a stop that was asked for, images that could not be used. Comes first.

    Args:
        news: Takes what this rank has to report and leaves nothing.
        note: Writes one report down; called on the first rank.
    """

    def __init__(self, stop: Stop, news: Callable[[], list[T]], note: Callable[[T], None]) -> None:
        self.stop, self.news, self.note = stop, news, note

    def __call__(self, done: Done) -> None:
        """Speak with the others."""
        self.exchange()

    def exchange(self) -> None:
        """All ranks at once."""
        mine = self.news()
        asked, told = dist.counts(self.stop.signalled or self.stop.elsewhere, len(mine))
        self.stop.asked = asked > 0
        if told:
            for report in (report for reports in dist.gather(mine) for report in reports):
                if dist.rank() == 0:
                    self.note(report)


class Checkpointing:
    """Writes a checkpoint when due or when a stop was asked for. Comes last, so that it holds all that others found.

    One that the disk refuses is tried again soon, while the training goes on.

    Args:
        state: What is saved.
        settle: Called before: writes the steps that wait for it.
        failed: Told of a checkpoint that could not be written: after which step, when it is tried again, why, and how often
            in a row that was; raises where it was too often.
        due: Whether one is due after a step, as it is after ``end``.
        retry: Steps after which one that was refused is tried again.
        end: The last step of the stage that is trained.
        steps: Of the whole run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: tuple[nn.Module, torch.optim.Optimizer],
        *,
        facts: Callable[[int], dict[str, Any]],
        settle: Callable[[], None],
        failed: Callable[[int, int, str, int], None],
        stop: Stop,
        due: Callable[[int], bool],
        retry: int,
        end: int,
        steps: int,
    ) -> None:
        self.checkpoints, self.state = checkpoints, state
        self.facts, self.settle, self.failed, self.stop, self.end, self.steps = (
            facts, settle, failed, stop, end, steps,
        )  # fmt: skip
        self._planned, self.retry = due, retry
        self._times, self._again = 0, 0

    def due(self, step: int) -> bool:
        """Whether one is written after that step."""
        return self._planned(step) or step == self._again

    def __call__(self, done: Done) -> None:
        """Save when due.

        Raises:
            Interrupted: A stop was asked for and the checkpoint is written.
            RunError: One that could not be put off was refused by the disk.
        """
        ends = done.step == self.end or self.stop.asked
        if not (ends or self.due(done.step)):
            return
        try:
            dist.leading(self.settle)
            if ends:  # why an earlier one was refused says nothing of this one
                with suppress(RunError):
                    self.checkpoints.wait()
            path = self.checkpoints.save(*self.state, self.facts(done.step))
            if ends:
                self.checkpoints.wait()
        except RunError as error:
            if ends:
                raise
            self._times += 1
            self._again = done.step + self.retry
            self.failed(done.step, self._again, str(error), self._times)
            return
        self._times, self._again = 0, 0
        if self.stop.asked and done.step < self.steps:
            raise Interrupted(
                f"Stopped after step {done.step}; checkpoint {path} is written. Run the same command to go on."
            )
