"""Self-distillation on class tokens: DINO (Caron et al. 2021, eq. 3), as DINOv2 weighs it (training code).

Axes: S student views, T teacher views, B images, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config


class DinoConfig(Config):
    """The loss on class tokens."""

    student_temperature: float = Field(default=0.1, gt=0)
    """Softmax temperature of the student."""


@dataclass(frozen=True, slots=True)
class DinoTerms:
    """Parts of the loss, in nats, float32; the loss is their sum."""

    local: Float[Tensor, ""]
    """From pairs of a local student view and a global teacher view."""
    wide: Float[Tensor, ""]
    """From pairs of two different global views."""


def dino_loss(student: Float[Tensor, "S B K"], target: Float[Tensor, "T B K"], *, config: DinoConfig) -> DinoTerms:
    """Mean cross-entropy over all pairs of different views of the same image.

    Spelled out, with ``p = softmax(student / temperature)`` and the mean over images inside ``H``::

        wide  = sum(H(target[t], p[s]) for s < T, t if s != t) / pairs
        local = sum(H(target[t], p[s]) for s >= T, t) / pairs
        pairs = T (T - 1) + max((S - T) T, 1)

    The 1 in ``pairs`` without local views is the released code's; it makes the loss 2/3 of the mean (docs/method.md).

    Args:
        student: Prototype scores, any float dtype; global views first, in the teacher's order.
        target: Prototype probabilities, rows sum to 1, no gradient.
    """
    teachers = len(target)
    pairs = teachers * (teachers - 1) + max((len(student) - teachers) * teachers, 1)
    score = student.float() / config.student_temperature
    # -sum_k t_k log p_k = (sum_k t_k) log Z - sum_k t_k score_k: no [S T B K] tensor, and log p is never kept.
    log_z = score.logsumexp(-1)
    target = target.float()
    mass = target.sum(-1)
    agreement = torch.einsum("sbk,tbk->stb", score, target)
    entropy = (log_z.unsqueeze(1) * mass.unsqueeze(0) - agreement).mean(-1)
    wide = entropy[:teachers]
    return DinoTerms(local=entropy[teachers:].sum() / pairs, wide=(wide.sum() - wide.diagonal().sum()) / pairs)
