"""Gram anchoring: patches keep the similarities that they had for an earlier teacher (DINOv3, Siméoni et al. 2025, sec. 4).

Axes: B images, P patches, D channels of the student and E of the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**22
"""Entries of the Gram matrices that are alive at once, or those of one image where they are more."""


def gram_loss(student: Float[Tensor, "B P D"], teacher: Float[Tensor, "B P E"]) -> Float[Tensor, ""]:
    """Mean squared difference of cosine similarities between the patches of an image.

    Spelled out, with rows ``s`` and ``t`` of length 1, in float32::

        loss = mean((s[b, p] @ s[b, q] - t[b, p] @ t[b, q]) ** 2 for b, p, q)

    The paper's Frobenius form, ``||S S^T - T T^T||_F^2``, is ``P ** 2`` times that of an image. The gradient, to the student
    alone, is computed together with the loss, some images at a time: with many patches the matrices are the largest there are.

    Args:
        student: Patch features of one view of every image, any float dtype.
        teacher: Those of the Gram teacher; their width may be another.
    """
    loss: Tensor = _Distance.apply(*(F.normalize(x.float(), dim=-1) for x in (student, teacher.detach())))
    return loss


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        images, patches = student.shape[:2]
        at_once = max(BLOCK // patches**2, 1)
        total = student.new_zeros(())
        slope = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for first in range(0, images, at_once):
            block = slice(first, first + at_once)
            mine, theirs = student[block], teacher[block]
            apart = (mine @ mine.mT).baddbmm_(theirs, theirs.mT, alpha=-1)
            total += apart.square().sum()
            if slope is not None:
                slope[block] = apart @ mine
        ctx.save_for_backward(slope)
        ctx.entries = images * patches**2
        return total / ctx.entries

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors  # of a symmetric matrix, so each row counts twice
        return slope * (4 / ctx.entries * scale), None
