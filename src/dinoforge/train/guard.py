"""What every update passes: gradients that are not finite, or far out of their law, never reach the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Guard:
    """What the loop asks before every update. The sentinel sets it; the loop only reads."""

    rate: float = 1.0
    """Factor on the learning rate."""
    largest: dict[str, float] = field(default_factory=dict)
    """Gradient norm of a sub-module from which on a step is skipped; none for those that are not named."""

    def unfit(self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> Tensor:
        """1 where the student must not be updated, else 0; on the device, so that the host does not wait.

        An infinite gradient counts although the loss is finite: clipping makes it NaN, and the weights with it. All that is
        looked at is the same on every rank, so all decide alike.
        """
        values = torch.stack([value.detach().float() for value in (*losses.values(), *norms.values())])
        wrong = ~values.isfinite().all()
        for name, largest in self.largest.items():
            if largest < math.inf:
                wrong = wrong | (norms[name] > largest)
        return wrong.float()


UNGUARDED = Guard()
"""Skips what is not finite and nothing else."""
