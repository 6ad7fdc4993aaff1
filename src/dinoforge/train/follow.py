"""The teacher: a moving average of the student (Mean Teacher, Tarvainen & Valpola 2017; DINO, sec. 3.1)."""

from __future__ import annotations

import torch
from torch import nn

from dinoforge.base import dist


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``, for every parameter, in place.

    Sharded alike, each rank moves its own part and nothing is sent.
    """
    mine = [dist.local(parameter) for parameter in teacher.parameters()]
    theirs = [dist.local(parameter) for parameter in student.parameters()]
    torch._foreach_lerp_(mine, theirs, 1 - momentum)
