"""The teacher: a moving average of the student (Mean Teacher, Tarvainen & Valpola 2017; DINO, sec. 3.1)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``, for every parameter, in place."""
    mine: list[torch.Tensor] = list(teacher.parameters())
    theirs: list[torch.Tensor] = list(student.parameters())
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
