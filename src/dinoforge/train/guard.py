"""The guard: a step whose numbers are not finite reaches neither the kept backbone nor a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dinoforge.base.errors import SentinelStop
from dinoforge.base.hardware import Precision
from dinoforge.train.loop import Done


class Finite:
    """Checks every loss and gradient norm. Comes first, before the probe and the checkpoint see the step.

    An infinite gradient counts although the loss is finite: clipping makes it NaN, and the weights with it.

    Args:
        due: Whether somebody keeps weights after that step; then it is checked at once.
        record: Writes down a step that failed, since no later observer sees it.
        precision: Of the run, for what to advise.
        rows_at_once: Steps that may gather where nothing is due: reading a number makes the host wait for the device.
    """

    def __init__(
        self, due: Callable[[int], bool], record: Callable[[Done], None], *, precision: Precision, rows_at_once: int
    ) -> None:
        self.due, self.record, self.precision, self.rows_at_once = due, record, precision, rows_at_once
        self._pending: list[Done] = []

    def __call__(self, done: Done) -> None:
        """Remember the step; check when enough have gathered or weights are about to be kept.

        Raises:
            SentinelStop: A number is not finite.
        """
        self._pending.append(done)
        if len(self._pending) >= self.rows_at_once or self.due(done.step):
            try:
                self.check()
            except SentinelStop:
                self.record(done)
                raise

    def check(self) -> None:
        """Check every step not yet checked.

        Raises:
            SentinelStop: A number of one of them is not finite.
        """
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        values = torch.stack(
            [torch.stack([value.detach().float() for value in _named(done).values()]) for done in pending]
        ).tolist()
        for done, row in zip(pending, values, strict=True):
            wrong = [f"{name} {value}" for name, value in zip(_named(done), row, strict=True) if value - value != 0]
            if wrong:
                raise SentinelStop(self._sentence(done.step, wrong))

    def _sentence(self, step: int, wrong: list[str]) -> str:
        advice = (
            "Give precision=fp32 with the same out to go on from that checkpoint"
            if self.precision == "bf16"
            else "Lower plan.learning_rate.peak"
        )
        return (
            f"Step {step} is not finite ({', '.join(wrong)}); stopped. What it made of the weights is not kept; the last "
            f"checkpoint and backbone from before it are. {advice}; another learning rate is another run and needs a new out."
        )


def _named(done: Done) -> dict[str, torch.Tensor]:
    return {f"loss {name}": value for name, value in done.losses.items()} | {
        f"gradient norm {name}": norm for name, norm in done.norms.items()
    }
