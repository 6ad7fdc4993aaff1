"""Parts of a vision transformer (Dosovitskiy et al. 2021) as DINOv2 uses them (Oquab et al. 2023, sec. 5; training code).

Blocks take *packed* tokens: sequences of several lengths one behind the other, S tokens in all. What works token by token
works on all of them at once; attention is computed per group of sequences of equal length.

Axes: B images, T tokens of one, S tokens of all, D channels, N patches, H heads, E channels a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.model.attention import Shapes, Way, attend_packed
from dinoforge.model.features import Subset
from dinoforge.model.rope import rotated


def subset_rows(rows: int, rate: float) -> int:
    """How many of ``rows`` samples keep a branch at a drop rate; at least one (DINOv2 training code)."""
    return max(int(rows * (1 - rate)), 1)


def drop_rates(depth: int, rate: float, *, uniform: bool) -> list[float]:
    """The drop rate of every block: the same for all, or rising linearly from 0 to ``rate`` inclusive."""
    return [rate if uniform else rate * block / max(depth - 1, 1) for block in range(depth)]


class LayerNorm(nn.LayerNorm):
    """Torch's, also where its weights are in another precision than the tokens, as those of sharded blocks are."""

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """In the precision of the tokens."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    """Multi-head self-attention; rows of ``qkv`` are queries, keys, values, head-major inside each."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, proj_bias: bool, way: Way = "auto") -> None:
        super().__init__()
        self.heads, self.way = heads, way
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width, bias=proj_bias)

    def forward(
        self, x: Float[Tensor, "S D"], shapes: Shapes, scale: Float[Tensor, " D"] | None = None,
        turns: Float[Tensor, "S E"] | None = None,
    ) -> Float[Tensor, "S D"]:  # fmt: skip
        """Every token of a sample attends to every token of the same sample; the result times ``scale``.

        Args:
            turns: Cosines and sines that queries and keys are rotated by (``model.rope``).
        """
        return F.linear(attend_packed(self._qkv(x, turns), shapes, self.heads, self.way), *scaled(self.proj, scale))

    def first_weights(
        self, x: Float[Tensor, "B T D"], turns: Float[Tensor, "B T E"] | None = None
    ) -> Float[Tensor, "B H T"]:
        """How the first token of every sample spreads its attention over all tokens: rows sum to 1, float32."""
        query, key, _ = self._qkv(x, turns).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query[:, :, :1].float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
        return scores.softmax(-1)[:, :, 0]

    def _qkv(
        self, x: Float[Tensor, "*rows D"], turns: Float[Tensor, "*rows E"] | None
    ) -> Float[Tensor, "*rows threeD"]:
        qkv: Tensor = self.qkv(x)
        return qkv if turns is None else rotated(qkv.unflatten(-1, (3, self.heads, -1)), turns).flatten(-3)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(
        self, x: Float[Tensor, "*rows D"], scale: Float[Tensor, " D"] | None = None
    ) -> Float[Tensor, "*rows D"]:
        """The same for every token; the result times ``scale``."""
        weight, bias = scaled(self.fc2, scale)
        found: Tensor = _GeluLinear.apply(*_cast(self.fc1(x), weight, bias))
        return found


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(x))``, which keeps ``x`` alone and computes the GELU again on the way back.

    It is the widest activation of a block, a sixth of all that is kept, and a hundredth of a step's time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*rows d"], weight: Float[Tensor, "D d"], bias: Float[Tensor, " D"] | None
    ) -> Float[Tensor, "*rows D"]:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards: Float[Tensor, "*rows D"]) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = towards.flatten(0, -2)
        of_weight = rows.T @ F.gelu(x).flatten(0, -2) if ctx.needs_input_grad[1] else None
        of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return torch.ops.aten.gelu_backward(towards @ weight, x), of_weight, of_bias


def _cast(*tensors: Tensor | None) -> Iterator[Tensor | None]:
    """In the precision of the context that this is called in, as ``F.linear`` does by itself."""
    kind = next(tensor for tensor in tensors if tensor is not None).device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return (tensor if tensor is None or dtype is None else tensor.to(dtype) for tensor in tensors)


class SwiGlu(nn.Module):
    """Gated feed-forward (Shazeer 2020): ``w3(silu(a) * b)`` with ``a, b`` the halves of ``w12(x)``."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(
        self, x: Float[Tensor, "*rows D"], scale: Float[Tensor, " D"] | None = None
    ) -> Float[Tensor, "*rows D"]:
        """The same for every token; the result times ``scale``."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * value, *scaled(self.w3, scale))


def swiglu_hidden(requested: int) -> int:
    """Two thirds of the hidden width asked for, rounded up to a multiple of 8 (4D = 6144 gives 4096)."""
    return (requested * 2 // 3 + 7) // 8 * 8


def scaled(
    layer: nn.Linear, scale: Float[Tensor, " D"] | None
) -> tuple[Float[Tensor, "D d"], Float[Tensor, " D"] | None]:
    """Weight and bias of ``scale * layer``: they have fewer numbers than what comes out of it, which would be kept."""
    if scale is None:
        return layer.weight, layer.bias
    return layer.weight * scale.unsqueeze(1), None if layer.bias is None else layer.bias * scale


class LayerScale(nn.Module):
    """A learnt factor a channel on a residual branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self) -> Float[Tensor, " D"]:
        """The factors."""
        return self.gamma


class NoScale(nn.Module):
    """Stands where LayerScale would."""

    def forward(self) -> None:
        """There are no factors."""


class Block(nn.Module):
    """``x + ls1 * attn(norm1(x))``, then ``x + ls2 * mlp(norm2(x))``; a branch may be computed for some samples only."""

    def __init__(
        self, width: int, attn: nn.Module, mlp: nn.Module, *, layerscale: float | None, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=norm_eps)
        self.attn = attn
        self.ls1 = NoScale() if layerscale is None else LayerScale(width, layerscale)
        self.norm2 = LayerNorm(width, eps=norm_eps)
        self.mlp = mlp
        self.ls2 = NoScale() if layerscale is None else LayerScale(width, layerscale)

    def forward(
        self, x: Float[Tensor, "S D"], shapes: Shapes, drop: Sequence[tuple[Subset, Subset] | None] | None = None,
        turns: Float[Tensor, "S E"] | None = None,
    ) -> Float[Tensor, "S D"]:  # fmt: skip
        """``drop`` names, for every group, the samples of the attention and of the feed-forward branch; None is all.

        Args:
            turns: Cosines and sines that queries and keys are rotated by (``model.rope``).
        """
        if drop is None or not any(drop):
            x = x + self.attn(self.norm1(x), shapes, self.ls1(), turns)
            return x + self.mlp(self.norm2(x), self.ls2())
        attn, mlp = ([None if pair is None else pair[branch] for pair in drop] for branch in range(2))
        some, kept = _subset(x, shapes, attn)
        turns = None if turns is None else _subset(turns, shapes, attn)[0]
        x = _add(x, shapes, self.attn(self.norm1(some), kept, self.ls1(), turns), kept, attn)
        some, kept = _subset(x, shapes, mlp)
        return _add(x, shapes, self.mlp(self.norm2(some), self.ls2()), kept, mlp)


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
