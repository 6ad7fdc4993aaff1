"""Training of a head over a frozen backbone: AdamW, warm-up and decay counted in updates.

Axes: none but those of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError
from dinoforge.base.log import progress

Batch = TypeVar("Batch")
_WARMUP = 1500 / 40_000
"""Share of the published schedule."""
_START = 1e-6
_TOLD = 20
"""Updates between two looks at the loss, which the device is waited for."""


class LearnConfig(Config):
    """How a head is trained. The defaults are the published linear head's, but for the number of updates."""

    iterations: Count = Field(default=1000, gt=0)
    """Updates; published are 40,000 for segmentation, 38,400 for depth."""
    batch: int = Field(default=16, gt=0)
    """Crops an update; 16 in the published protocol."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls to 0: in a line (poly of power 1), or as half a cosine (one cycle)."""
    warmup: Count | None = Field(default=None, ge=0)
    """Updates in which it rises; null: 3.75 % of them, which is 1,500 of 40,000."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of a gradient; null leaves gradients as they are."""
    seed: int = Field(default=0, ge=0)
    """Of first weights, orders and crops."""


def rate_at(step: int, config: LearnConfig) -> float:
    """Learning rate of an update, counted from 0.

    Rising, it is that of the falling schedule times ``1 - (1 - step / warmup)(1 - 1e-6)`` with ``poly`` (as published), and a
    line from 0 to the highest with ``cosine``, which then begins to fall.
    """
    warmup = config.warmup if config.warmup is not None else round(_WARMUP * config.iterations)
    if config.schedule == "poly":
        falling = 1 - step / config.iterations
        rising = 1 - (1 - step / warmup) * (1 - _START) if step < warmup else 1.0
        return config.learning_rate * falling * rising
    if step < warmup:
        return config.learning_rate * (_START + (1 - _START) * step / warmup)
    done = (step - warmup) / max(config.iterations - warmup, 1)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def learn(
    head: nn.Module, batches: Iterable[Batch], loss: Callable[[Batch], Tensor], config: LearnConfig, *,
    betas: tuple[float, float] = (0.9, 0.999), title: str = "head",
) -> None:  # fmt: skip
    """Train the parameters of a head that take gradients, one update a batch; it ends in evaluation mode.

    Args:
        batches: As many as there are updates.
        loss: Of a batch, by the head; a single number.

    Raises:
        ConfigError: The loss is no number any more.
    """
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay)
    head.train()
    with progress(title, config.iterations, unit="updates") as tick:
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, config)
            value = loss(batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if config.clip is not None:
                nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            if step % _TOLD == 0 or step == config.iterations - 1:
                if not math.isfinite(seen := value.item()):
                    raise ConfigError(f"the loss of {title} is {seen} after {step} updates; try a lower learning_rate.")
                tick(step + 1, f"loss {seen:.3f}")
    head.eval()
