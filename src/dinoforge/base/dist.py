"""Collectives that are the identity on one process, so that no caller asks whether it is distributed."""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from jaxtyping import Float
from torch import Tensor


def active() -> bool:
    """Whether a process group of more than one rank exists."""
    return torch_dist.is_available() and torch_dist.is_initialized() and torch_dist.get_world_size() > 1


def all_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, without gradient; a new tensor."""
    if not active():
        return value
    total = value.detach().clone()
    torch_dist.all_reduce(total)
    return total


def all_logsumexp(value: Float[Tensor, "N K"], *, dim: int) -> Float[Tensor, "..."]:
    """``log(sum(exp(value)))`` over ``dim`` of all ranks' rows, ``dim`` kept with length 1; ranks may hold no row."""
    if not active():
        return value.logsumexp(dim, keepdim=True)
    shape = [length if axis != dim % value.ndim else 1 for axis, length in enumerate(value.shape)]
    # -inf cannot be subtracted from itself, so a rank without rows takes the lowest finite number instead.
    lowest = value.new_full(shape, torch.finfo(value.dtype).min)
    largest = value.detach().amax(dim, keepdim=True) if value.shape[dim] else lowest
    torch_dist.all_reduce(largest, torch_dist.ReduceOp.MAX)
    return largest + all_sum((value - largest).exp().sum(dim, keepdim=True)).log()
