"""Feature matching: a student's tokens, mapped to a teacher's width, against the teacher's own.

Targets and distance are those of feature distillation (Wei et al. 2022, "Contrastive learning rivals masked image modeling in
fine-tuning via feature distillation", sec. 3): every token of the teacher is whitened by a LayerNorm without scale and bias,
so that teachers of any scale cost alike and no channel of outliers decides alone; the distance is smooth-L1.

Axes: D channels of the teacher.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from dinoforge.base.config import Config


class MatchingConfig(Config):
    """How features are matched."""

    image_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on class tokens."""
    patch_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on patch tokens."""
    beta: float = Field(default=2.0, gt=0)
    """Difference up to which the distance is a square, in standard deviations of a token (2, as published)."""

    @model_validator(mode="after")
    def _something(self) -> MatchingConfig:
        if not self.image_weight and not self.patch_weight:
            raise ValueError("distil.matching has image_weight=0 and patch_weight=0, so nothing is learnt; raise one.")
        return self


def whitened(teacher: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Every token less its mean over channels, divided by its deviation; float32, without gradient."""
    return F.layer_norm(teacher.detach().float(), teacher.shape[-1:])


def matching_loss(
    student: Float[Tensor, "*rows D"], teacher: Float[Tensor, "*rows D"], *, config: MatchingConfig
) -> Float[Tensor, ""]:
    """Mean distance of mapped tokens from the teacher's whitened ones, in float32.

    Spelled out, with ``d = student - whitened(teacher)``::

        loss = mean(d ** 2 / (2 beta) if abs(d) < beta else abs(d) - beta / 2 for every row and channel)

    Args:
        student: Tokens in the teacher's width, any float dtype.
        teacher: Those of the same places of the same view, as its last norm left them; they get no gradient.
    """
    return F.smooth_l1_loss(student.float(), whitened(teacher), beta=config.beta)
