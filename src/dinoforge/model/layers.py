"""Parts of a vision transformer (Dosovitskiy et al. 2021) as DINOv2 uses them (Oquab et al. 2023, sec. 5; training code).

Blocks take *packed* tokens: sequences of several lengths one behind the other, S tokens in all. What works token by token
works on all of them at once; attention is computed per group of sequences of equal length.

Axes: B images, T tokens of one, S tokens of all, D channels, N patches, H heads, E channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.model.features import Subset

NORM_EPS = 1e-6

Shapes: TypeAlias = Sequence[tuple[int, int]]
"""Of every group of packed sequences: how many there are, and how many tokens each has."""


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

    def forward(self, x: Float[Tensor, "S D"], shapes: Shapes) -> Float[Tensor, "S D"]:
        """Every token of a sample attends to every token of the same sample."""
        mixed = [
            attend(*self._parts(group, shape)).transpose(1, 2).flatten(2).flatten(0, 1)
            for group, shape in zip(split(self.qkv(x), shapes), shapes, strict=True)
        ]
        return self.proj(join(mixed))

    def first_weights(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T"]:
        """How the first token of every sample spreads its attention over all tokens: rows sum to 1, float32."""
        query, key, _ = self._parts(self.qkv(x).flatten(0, 1), x.shape[:2])
        scores = query[:, :, :1].float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
        return scores.softmax(-1)[:, :, 0]

    def _parts(self, qkv: Float[Tensor, "tokens threeD"], shape: Sequence[int]) -> Float[Tensor, "3 B H T E"]:
        """Queries, keys and values of one group."""
        return qkv.view(*shape, 3, self.heads, -1).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """The same for every token."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated feed-forward (Shazeer 2020): ``w3(silu(a) * b)`` with ``a, b`` the halves of ``w12(x)``."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
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

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
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

    def forward(
        self, x: Float[Tensor, "S D"], shapes: Shapes, drop: Sequence[tuple[Subset, Subset] | None] | None = None
    ) -> Float[Tensor, "S D"]:
        """``drop`` names, for every group, the samples of the attention and of the feed-forward branch; None is all."""
        if drop is None or not any(drop):
            x = x + self.ls1(self.attn(self.norm1(x), shapes))
            return x + self.ls2(self.mlp(self.norm2(x)))
        attn, mlp = ([None if pair is None else pair[branch] for pair in drop] for branch in range(2))
        some, kept = _subset(x, shapes, attn)
        x = _add(x, shapes, self.ls1(self.attn(self.norm1(some), kept)), kept, attn)
        some, kept = _subset(x, shapes, mlp)
        return _add(x, shapes, self.ls2(self.mlp(self.norm2(some))), kept, mlp)


def split(x: Float[Tensor, "S D"], shapes: Shapes) -> Sequence[Float[Tensor, "_ D"]]:
    """The tokens of every group, without a copy."""
    return x.split([samples * tokens for samples, tokens in shapes])


def join(parts: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, "S D"]:
    """Groups one behind the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _subset(
    x: Float[Tensor, "S D"], shapes: Shapes, parts: Sequence[Subset | None]
) -> tuple[Float[Tensor, "some D"], Shapes]:
    """The tokens of the samples that are kept, packed, and their shapes."""
    found, kept = [], []
    for group, shape, part in zip(split(x, shapes), shapes, parts, strict=True):
        found.append(group if part is None else group.view(*shape, x.shape[-1])[part.index].flatten(0, 1))
        kept.append(shape if part is None else (len(part.index), shape[1]))
    return join(found), kept


def _add(
    x: Float[Tensor, "S D"], shapes: Shapes, branch: Float[Tensor, "some D"], kept: Shapes,
    parts: Sequence[Subset | None],
) -> Float[Tensor, "S D"]:  # fmt: skip
    """The branch, scaled, on its own samples; the others pass unchanged."""
    found = []
    groups = zip(split(x, shapes), shapes, split(branch.to(x.dtype), kept), kept, parts, strict=True)
    for group, shape, added, own, part in groups:
        if part is None:
            found.append(group + added)
        else:
            whole = group.view(*shape, x.shape[-1]).index_add(
                0, part.index, added.view(*own, x.shape[-1]), alpha=part.scale
            )
            found.append(whole.flatten(0, 1))
    return join(found)


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
