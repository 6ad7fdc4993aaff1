"""Parts of a vision transformer (Dosovitskiy et al. 2021) as DINOv2 uses them (Oquab et al. 2023, sec. 5; training code).

Axes: B images, T tokens, D channels, N patches, H heads, E channels a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Subset:
    """The samples for which a residual branch is computed, and the factor that keeps its expectation."""

    index: Int[Tensor, " kept"]
    scale: float

    def to(self, device: torch.device) -> Subset:
        """The same on another device."""
        return Subset(self.index.to(device, non_blocking=True), self.scale)


def subset_rows(rows: int, rate: float) -> int:
    """How many of ``rows`` samples keep a branch at a drop rate; at least one (DINOv2 training code)."""
    return max(int(rows * (1 - rate)), 1)


def drop_rates(depth: int, rate: float, *, uniform: bool) -> list[float]:
    """The drop rate of every block: the same for all, or rising linearly from 0 to ``rate`` inclusive."""
    return [rate if uniform else rate * block / max(depth - 1, 1) for block in range(depth)]


WRITTEN_OUT_TOKENS = 512
"""Longest sequence whose attention is written out in bf16 on a CPU: up to 257 tokens torch's fused kernel takes 2 to 7 times as
long, by its backward pass (bench/attention.py, docs/records.md). Beyond, memory decides: the scores are tokens by tokens."""


def attend(
    query: Float[Tensor, "B H T E"], key: Float[Tensor, "B H T E"], value: Float[Tensor, "B H T E"]
) -> Float[Tensor, "B H T E"]:
    """``softmax(query key' / sqrt(E)) value``: the one place where attention is computed, and where it is chosen how."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[-2] <= WRITTEN_OUT_TOKENS:
        with torch.autocast("cpu", enabled=False):
            return attend_written_out(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def attend_written_out(
    query: Float[Tensor, "B H T E"], key: Float[Tensor, "B H T E"], value: Float[Tensor, "B H T E"]
) -> Float[Tensor, "B H T E"]:
    """The definition: two matrix products and a softmax between them (Vaswani et al. 2017, eq. 1)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return scores.softmax(-1) @ value


class Attention(nn.Module):
    """Multi-head self-attention; rows of ``qkv`` are queries, keys, values, head-major inside each."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, proj_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width, bias=proj_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Every token of a sample attends to every token of the same sample."""
        query, key, value = self._parts(x)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))

    def first_weights(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T"]:
        """How the first token of every sample spreads its attention over all tokens: rows sum to 1, float32."""
        query, key, _ = self._parts(x)
        scores = query[:, :, :1].float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
        return scores.softmax(-1)[:, :, 0]

    def _parts(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "3 B H T E"]:
        """Queries, keys and values."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The same for every token."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated feed-forward (Shazeer 2020): ``w3(silu(a) * b)`` with ``a, b`` the halves of ``w12(x)``."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The same for every token."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def swiglu_hidden(requested: int) -> int:
    """Two thirds of the hidden width asked for, rounded up to a multiple of 8 (4D = 6144 gives 4096)."""
    return (requested * 2 // 3 + 7) // 8 * 8


class LayerScale(nn.Module):
    """A learnt factor a channel on a residual branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """``gamma * x``."""
        return x * self.gamma


class Block(nn.Module):
    """``x + ls1(attn(norm1(x)))``, then ``x + ls2(mlp(norm2(x)))``; a branch may be computed for some samples only."""

    def __init__(self, width: int, attn: nn.Module, mlp: nn.Module, *, layerscale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = attn
        self.ls1 = nn.Identity() if layerscale is None else LayerScale(width, layerscale)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = mlp
        self.ls2 = nn.Identity() if layerscale is None else LayerScale(width, layerscale)

    def forward(self, x: Float[Tensor, "B T D"], drop: tuple[Subset, Subset] | None = None) -> Float[Tensor, "B T D"]:
        """``drop`` names the samples of the attention and of the feed-forward branch; None computes all of them."""
        if drop is None:
            x = x + self.ls1(self.attn(self.norm1(x)))
            return x + self.ls2(self.mlp(self.norm2(x)))
        attn, mlp = drop
        x = _add(x, self.ls1(self.attn(self.norm1(x[attn.index]))), attn)
        return _add(x, self.ls2(self.mlp(self.norm2(x[mlp.index]))), mlp)


def _add(x: Float[Tensor, "B T D"], branch: Float[Tensor, "kept T D"], part: Subset) -> Float[Tensor, "B T D"]:
    """The branch, scaled, on its own samples; the others pass unchanged."""
    return x.index_add(0, part.index, branch.to(x.dtype), alpha=part.scale)


def resize_positions(
    table: Float[Tensor, "1 tokens D"], *, grid: tuple[int, int], offset: float, antialias: bool
) -> Float[Tensor, "1 resized D"]:
    """Position embeddings for another grid, by bicubic resampling; the class token's slot comes first and is kept.

    With an ``offset`` o the sampling step is ``M / (h + o)`` rather than ``M / h`` (o = 0.1 in the models without registers,
    a slight zoom that belongs to their weights). A square grid of as many patches takes the table as it is.

    Args:
        table: Class slot, then M x M patches row by row.
        grid: Rows and columns wanted.
    """
    rows, columns = grid
    side = math.isqrt(table.shape[1] - 1)
    if rows == columns == side:
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((rows + offset) / side, (columns + offset) / side) if offset else None
    patches = F.interpolate(
        patches, size=None if scale else grid, scale_factor=scale, mode="bicubic", antialias=antialias
    )
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
