"""Self-distillation on class tokens: DINO (Caron et al. 2021, eq. 3), as DINOv2 weighs it (training code).

Axes: S student views, T teacher views, B images, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.loss.scores import Assignment, Scores, cross_entropy


class DinoConfig(Config):
    """The loss on class tokens."""

    student_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature of the student."""


@dataclass(frozen=True, slots=True)
class DinoTerms:
    """The loss and its parts, in nats, float32."""

    total: Float[Tensor, ""]
    """The sum of both parts; it alone has a gradient."""
    local: Float[Tensor, ""]
    """From pairs of a local student view and a global teacher view."""
    wide: Float[Tensor, ""]
    """From pairs of two different global views."""


def dino_loss(student: Scores, target: Assignment, *, config: DinoConfig) -> DinoTerms:
    """Mean cross-entropy over all pairs of different views of the same image.

    Spelled out, with ``p = softmax(student / temperature)`` and the mean over images inside ``H``::

        wide  = sum(H(target[t], p[s]) for s < T, t if s != t) / pairs
        local = sum(H(target[t], p[s]) for s >= T, t) / pairs
        pairs = T (T - 1) + max((S - T) T, 1)

    The 1 in ``pairs`` without local views is the released code's; it makes the loss 2/3 of the mean (docs/method.md).

    Args:
        student: Scores ``[S, B, K]``; global views first, in the teacher's order.
        target: Probabilities ``[T, B, K]``.
    """
    students, images = student.vectors.shape[:2]
    teachers = len(target.scores.vectors)
    pairs = teachers * (teachers - 1) + max((students - teachers) * teachers, 1)
    # Made on the device: a copy from the host would make it wait.
    each = target.column.new_zeros(2, students, teachers)
    each[0, teachers:] = 1 / pairs
    each[1, :teachers] = 1 / pairs
    each[1, :teachers].fill_diagonal_(0)
    weight = target.column.new_full((images,), 1 / images)
    total, terms = cross_entropy(student, target, temperature=config.student_temperature, pairs=each, weight=weight)
    return DinoTerms(total, local=terms[0], wide=terms[1])
