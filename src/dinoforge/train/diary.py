"""What happened to a run: one line each in ``events.jsonl``, in the log at once, in the report later.

It is part of the run's state: how often the run went back, and from where, is read from it when the same command goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dinoforge.base import dist
from dinoforge.base.files import Lines, read_lines
from dinoforge.base.log import say

Kind = Literal["skip", "roll back", "slow", "blend", "warn", "stop"]


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that the sentinel did, or what watches over old skill."""

    step: int
    """The step that it was about, or after which it was seen."""
    kind: Kind
    cause: str
    """In a word or two: not finite, gradient norm, collapse, teacher, loader, disk, rank, forgetting."""
    sentence: str
    back_to: int | None = None
    """The step that a run went back to."""


class Diary:
    """The acts of a run, oldest first; the same on every rank, written by the first."""

    def __init__(self, path: Path) -> None:
        self.acts: list[Act] = dist.leading(lambda: [_act(row) for row in read_lines(path)])
        self._lines = Lines(path)

    def note(self, act: Act) -> None:
        """Say it, and write it down."""
        self.acts.append(act)
        say(act.sentence)
        if dist.rank() == 0:
            self._lines.add(asdict(act))

    def flush(self) -> None:
        """Write what a full disk has refused.

        Raises:
            RunError: It is still full; the next call tries again.
        """
        self._lines.flush()

    def not_kept(self, step: int, why: str) -> None:
        """Tell of a backbone, or of pictures of it, that could not be written."""
        self.note(Act(step, "warn", "disk", f"Step {step}: the backbone or its pictures are not kept ({why})"))

    def rollbacks(self) -> list[Act]:
        """The times that the run went back."""
        return [act for act in self.acts if act.kind == "roll back"]

    def resume(self, step: int) -> None:
        """Forget steps left out and warnings after the step from which the run goes on: they will be met again."""
        kept = [act for act in self.acts if act.kind in {"roll back", "stop"} or act.step <= step]
        if len(kept) < len(self.acts):
            self.acts = kept
            dist.leading(lambda: self._lines.replace(asdict(act) for act in kept))

    def owns(self, step: int, rollbacks: int) -> bool:
        """Whether a checkpoint is the run's past: not one from which it went back.

        Args:
            step: Of the checkpoint.
            rollbacks: How many there had been when it was written.
        """
        return all(act.back_to is not None and step <= act.back_to for act in self.rollbacks()[rollbacks:])

    def sentences(self) -> list[str]:
        """What the report shows, one an act."""
        return [act.sentence for act in self.acts]


def _act(row: dict[str, Any]) -> Act:
    return Act(**{name: row[name] for name in Act.__slots__})
