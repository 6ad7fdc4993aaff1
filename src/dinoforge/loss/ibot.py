"""Masked-patch prediction: iBOT (Zhou et al. 2022, eq. 2), as DINOv2 weighs it (training code).

Axes: M masked patches of all views, K prototypes.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config


class IbotConfig(Config):
    """The loss on masked patches."""

    student_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature of the student."""


def ibot_loss(
    student: Float[Tensor, "M K"],
    target: Float[Tensor, "M K"],
    weight: Float[Tensor, " M"],
    *,
    views: int,
    config: IbotConfig,
) -> Float[Tensor, ""]:
    """Cross-entropy of every masked patch with the teacher's view of the same patch.

    Spelled out, with ``p = softmax(student / temperature)``::

        loss = sum(weight[m] * H(target[m], p[m]) for m) / views

    With ``weight = 1 / (masked patches of the view)`` every masked view counts the same. The divisor counts all views, also
    those without a mask, so with half of them masked the loss is half a mean.

    Args:
        student: Prototype scores, any float dtype.
        target: Prototype probabilities, rows sum to 1, no gradient.
        views: Number of global views, masked or not.

    Returns:
        The loss in nats, float32; 0 where nothing is masked.
    """
    score, target = student.float() / config.student_temperature, target.float()
    entropy = score.logsumexp(-1) * target.sum(-1) - (score * target).sum(-1)
    return (entropy * weight).sum() / views
