"""How long, how fast, in which steps: every number of the optimisation, counted in images and shares of the plan.

Sources: DINOv2 training code and table 16 of the paper. Nothing here depends on the number of devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dinoforge.base.config import Config, Count
from dinoforge.base.schedule import Cosine, Ramp, share
from dinoforge.train.gram import GramConfig

REFERENCE_BATCH = 1024
"""Images a step at which ``learning_rate`` is given."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Every number that changes with the step, computed once by the loop."""

    learning_rate: float
    last_layer_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    gram_weight: float = 0.0
    """0 before Gram anchoring begins, and without it."""
    gram_copy: bool = False
    """Whether the Gram teacher becomes a copy of the teacher before this step."""
    step: int = 0
    """The step (from 0) that these are the numbers of."""
    steps: int = 0
    """Of the plan; 0 where there is none."""


class PlanConfig(Config):
    """The plan of a run."""

    not_science: ClassVar[frozenset[str]] = frozenset({"checkpoint_images", "checkpoints", "probe_images"})
    exclusive: ClassVar[frozenset[str]] = frozenset({"images", "passes"})

    images: Count | None = Field(default=None, gt=0)
    """Images to see in all, repeats counted; give this or ``passes``."""
    passes: float | None = Field(default=None, gt=0)
    """Times to go through the data; give this or ``images``."""
    batch: int = Field(default=1024, gt=0)
    """Images a step, over all devices and accumulation."""
    learning_rate: Cosine = Cosine(start=0.0, peak=4e-3, end=1e-6, warmup=0.1)
    """Learning rate at the reference batch of 1,024 images; its peak is scaled by ``rate_scaling``."""
    rate_scaling: Literal["sqrt", "none"] = "sqrt"
    """``sqrt``: the peak is multiplied by the root of batch / 1024 (DINOv2's only rule)."""
    last_layer_frozen: float = Field(default=0.01, ge=0, le=1)
    """Share of the plan in which the prototypes do not move (DINO: the first pass)."""
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor on the learning rate from a block to the one below it."""
    patch_rate: float = Field(default=0.2, ge=0)
    """Factor on the patch embedding's learning rate, beside the layer decay."""
    weight_decay: Cosine = Cosine(peak=0.04, end=0.4)
    """Decoupled weight decay of AdamW, rising over the plan; none on biases, norms and LayerScale."""
    teacher_momentum: Cosine = Cosine(peak=0.992, end=1.0)
    """Weight of the old teacher in the moving average."""
    teacher_temperature: Ramp = Ramp(start=0.04, end=0.07, length=0.3)
    """Temperature of the teacher's targets."""
    clip: float = Field(default=3.0, gt=0)
    """Largest gradient norm, for backbone and each head separately."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's moments."""
    checkpoint_images: Count = Field(default=1_000_000, gt=0)
    """A checkpoint every so many images, and one at the end."""
    checkpoints: int = Field(default=3, ge=1)
    """Newest checkpoints to keep, and one more where they are all later than the last look at which the sentinel saw no sign of
    trouble; the best backbone is kept besides."""
    probe_images: Count = Field(default=1_000_000, gt=0)
    """A quality probe every so many images, besides those before the first and after the last step."""

    @model_validator(mode="after")
    def _one_length(self) -> PlanConfig:
        if (self.images is None) == (self.passes is None):
            raise ValueError(
                f"plan takes exactly one of plan.images and plan.passes; got images={self.images}, passes={self.passes}."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"plan.betas must lie in [0, 1); got {list(self.betas)}.")
        for name, top in (("learning_rate", math.inf), ("weight_decay", math.inf), ("teacher_momentum", 1)):
            for part in ("start", "peak", "end"):
                value = getattr(getattr(self, name), part)
                if not 0 <= value <= top:
                    raise ValueError(f"plan.{name}.{part} must lie in [0, {top:g}]; got {value}.")
        if self.teacher_momentum.peak == self.teacher_momentum.end == 1:
            raise ValueError(
                "plan.teacher_momentum=1 throughout would never move the teacher; begin lower, at 0.992 say."
            )
        if min(self.teacher_temperature.start, self.teacher_temperature.end) <= 0:
            raise ValueError("plan.teacher_temperature must be above 0 at its start and end.")
        if self.learning_rate.warmup + self.learning_rate.frozen >= 1:
            raise ValueError(
                f"plan.learning_rate.warmup + frozen must leave room for the cosine (below 1); "
                f"got {self.learning_rate.warmup} + {self.learning_rate.frozen}."
            )
        return self

    def steps(self, data_images: int) -> int:
        """Number of steps on a data set of ``data_images`` images; a last, partial batch is rounded to a whole one."""
        wanted = self.images if self.images is not None else (self.passes or 0) * data_images
        return max(1, round(wanted / self.batch))

    @property
    def peak_rate(self) -> float:
        """The learning rate's peak at this batch."""
        scale = math.sqrt(self.batch / REFERENCE_BATCH) if self.rate_scaling == "sqrt" else 1.0
        return self.learning_rate.peak * scale

    def at(self, step: int, *, steps: int, gram: GramConfig | None = None) -> Scheduled:
        """All scheduled numbers of ``step`` in a plan of ``steps``."""
        rate = self.learning_rate.model_copy(update={"peak": self.peak_rate}).at(step, steps=steps)
        return Scheduled(
            learning_rate=rate,
            last_layer_rate=0.0 if step < share(self.last_layer_frozen, steps) else rate,
            weight_decay=self.weight_decay.at(step, steps=steps),
            teacher_momentum=self.teacher_momentum.at(step, steps=steps),
            teacher_temperature=self.teacher_temperature.at(step, steps=steps),
            gram_weight=0.0 if gram is None else gram.weight_at(step, steps=steps),
            gram_copy=gram is not None and gram.copies(step, steps=steps),
            step=step,
            steps=steps,
        )
