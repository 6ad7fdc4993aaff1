"""Masked-patch prediction: iBOT (Zhou et al. 2022, eq. 2), as DINOv2 weighs it (training code).

Axes: M masked patches of all views, K prototypes.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.loss.scores import Assignment, Scores, cross_entropy


class IbotConfig(Config):
    """The loss on masked patches."""

    student_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature of the student."""


def ibot_loss(
    student: Scores,
    target: Assignment,
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
        student: Scores ``[M, K]``.
        target: Probabilities ``[M, K]``.
        views: Number of global views, masked or not.

    Returns:
        The loss in nats, float32; 0 where nothing is masked.
    """
    one = weight.new_full((1, 1, 1), 1 / views)
    total, _ = cross_entropy(
        student.unflatten(1), target.unflatten(1), temperature=config.student_temperature, pairs=one, weight=weight
    )
    return total
