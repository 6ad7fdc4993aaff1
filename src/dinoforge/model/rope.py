"""Rotary position embedding on a grid of patches (Su et al. 2021), axial in two dimensions as in DINOv3 (Siméoni et al. 2025).

Channels c and c + E/2 of a query or key are a point in a plane, which is turned by ``2 pi * coordinate / period``: the first
E/4 of these points by the patch's row, the others by its column, with E/4 periods from 1 up to ``base`` (excluded). A score
then depends on where two patches are by the difference of their coordinates alone.

Axes: B images, N patches, T tokens of one image, H heads, E channels a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def turns(
    grid: tuple[int, int], *, width: int, base: float, without: int, device: torch.device,
    rescale: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, "B_or_1 T E"]:  # fmt: skip
    """Cosines, then sines, of the angles of every token; float32, the same for all images unless they are rescaled.

    Centres of patches lie between -1 and 1 on each axis, whatever its length.

    Args:
        width: Channels of a head, E.
        without: Tokens before the patches, which have no position and turn by nothing.
        rescale: For every image, a factor on its coordinates.
    """
    rows, columns = ((2 * torch.arange(size, device=device).float() + 1) / size - 1 for size in grid)
    periods = base ** (torch.arange(width // 4, device=device).float() / (width // 4))
    angles = (2 * math.pi * torch.cartesian_prod(rows, columns).unsqueeze(-1) / periods).flatten(1)
    angles = F.pad(angles, (0, 0, without, 0)).unsqueeze(0)
    if rescale is not None:
        angles = rescale.view(-1, 1, 1) * angles
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotated(qkv: Float[Tensor, "*rows 3 H E"], turns: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows 3 H E"]:
    """Queries and keys turned, values as they are; computed in float32 at least, given back in the precision of ``qkv``."""
    found: Tensor = _Rotated.apply(qkv, turns)
    return found


class _Rotated(torch.autograd.Function):
    """Keeps the angles alone: what goes back is turned the other way."""

    @staticmethod
    def forward(ctx: Any, qkv: Float[Tensor, "*rows 3 H E"], turns: Float[Tensor, "*rows E"]) -> Tensor:
        ctx.save_for_backward(turns)
        cosine, sine = turns[..., None, None, :].chunk(2, dim=-1)
        return _turned(qkv, cosine, sine)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards: Float[Tensor, "*rows 3 H E"]) -> tuple[Tensor, None]:
        cosine, sine = ctx.saved_tensors[0][..., None, None, :].chunk(2, dim=-1)
        return _turned(towards, cosine, -sine), None


def _turned(qkv: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    pair, value = qkv.split((2, 1), dim=-3)
    first, second = pair.chunk(2, dim=-1)
    pair = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return torch.cat([pair.to(qkv.dtype), value], dim=-3)
