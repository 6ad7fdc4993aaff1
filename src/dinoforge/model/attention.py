"""The one place where attention is computed, and where it is chosen how.

Which way is fastest depends on the device, the precision and the number of tokens, by factors of up to seven;
``bench/attention.py`` measures it and docs/records.md holds what it found. ``auto`` goes by that:

* on a processor in bf16, written out up to 512 tokens: the backward pass of torch's fused kernel takes 2 to 7 times as long up
  to 257 tokens; beyond 512 memory decides, for the weights are tokens by tokens;
* on a processor in fp32, written out up to 70 tokens;
* everywhere else torch's fused kernels.

Axes: B samples, H heads, T tokens of one, E channels a head, S tokens of all samples, D = H E.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Way: TypeAlias = Literal["auto", "fused", "written_out"]
Shapes: TypeAlias = Sequence[tuple[int, int]]
"""Of every group of packed sequences: how many there are, and how many tokens each has."""

WRITTEN_OUT_TOKENS = {torch.bfloat16: 512, torch.float32: 70}
"""Longest sequences whose attention is written out on a processor."""
GROUPS = 4
"""From more groups of different lengths on, a GPU takes them all in one call of a kernel for variable lengths."""


def attend_packed(
    qkv: Float[Tensor, "S threeD"], shapes: Shapes, heads: int, way: Way = "auto"
) -> Float[Tensor, "S D"]:
    """Every token of a sample attends to every token of the same sample.

    Args:
        qkv: Queries, keys, values of every token, each head by head.
        shapes: How many samples of how many tokens lie one behind the other.
    """
    if way != "written_out" and qkv.is_cuda and qkv.dtype in {torch.bfloat16, torch.float16} and len(shapes) > GROUPS:
        return _in_one_call(qkv, shapes, heads)
    groups = list(qkv.split([samples * tokens for samples, tokens in shapes]))
    ways = [chosen(way, tokens, qkv) for _, tokens in shapes]
    if len(set(ways)) > 1:
        # Written out keeps a copy for the way back, fused a view: of all the tokens, unless it has its own.
        groups = [group.clone() if one == "fused" else group for group, one in zip(groups, ways, strict=True)]
    mixed = [
        attend(group.view(*shape, 3, heads, -1), one).flatten(0, 1)
        for group, shape, one in zip(groups, shapes, ways, strict=True)
    ]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def chosen(way: Way, tokens: int, like: Tensor) -> Way:
    """How samples of so many tokens are computed, on the device and in the precision of ``like``."""
    if way != "auto":
        return way
    longest = WRITTEN_OUT_TOKENS.get(like.dtype, 0) if like.device.type == "cpu" else 0
    return "written_out" if tokens <= longest else "fused"


def attend(qkv: Float[Tensor, "B T 3 H E"], way: Way = "auto") -> Float[Tensor, "B T D"]:
    """``softmax(query key' / sqrt(E)) value`` (Vaswani et al. 2017, eq. 1) of samples of one length."""
    if chosen(way, qkv.shape[1], qkv) == "fused":
        return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
    with torch.autocast(qkv.device.type, enabled=False):
        mixed: Tensor = _WrittenOut.apply(qkv)
    return mixed


class _WrittenOut(torch.autograd.Function):
    """Two matrix products and a softmax between them; queries, keys, values and weights are kept for the way back, once."""

    @staticmethod
    def forward(ctx: Any, qkv: Float[Tensor, "B T 3 H E"]) -> Float[Tensor, "B T D"]:
        samples, tokens, _, heads, channels = qkv.shape
        packed = qkv.permute(2, 0, 3, 1, 4).reshape(3, samples * heads, tokens, channels)
        query, key, value = packed.unbind(0)
        scores = torch.baddbmm(query.new_empty(1), query, key.transpose(1, 2), beta=0, alpha=channels**-0.5)
        weights = scores.softmax(-1)
        ctx.save_for_backward(packed, weights)
        mixed = torch.bmm(weights, value).view(samples, heads, tokens, channels)
        return mixed.transpose(1, 2).reshape(samples, tokens, heads * channels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards_mixed: Float[Tensor, "B T D"]) -> Float[Tensor, "B T 3 H E"]:
        packed, weights = ctx.saved_tensors
        query, key, value = packed.unbind(0)
        samples, tokens, width = towards_mixed.shape
        heads, scale = width // query.shape[-1], query.shape[-1] ** -0.5
        # A gradient may be one number seen many times over, which matrix products are slow on.
        towards_mixed = towards_mixed.view(samples, tokens, heads, -1).transpose(1, 2).contiguous().view(value.shape)
        towards = torch.empty_like(packed)
        torch.bmm(weights.transpose(1, 2), towards_mixed, out=towards[2])
        slope = torch._softmax_backward_data(
            torch.bmm(towards_mixed, value.transpose(1, 2)), weights, -1, weights.dtype
        )
        torch.baddbmm(towards[0], slope, key, beta=0, alpha=scale, out=towards[0])
        torch.baddbmm(towards[1], slope.transpose(1, 2), query, beta=0, alpha=scale, out=towards[1])
        return towards.view(3, samples, heads, tokens, -1).permute(1, 3, 0, 2, 4)


def _in_one_call(qkv: Float[Tensor, "S threeD"], shapes: Shapes, heads: int) -> Float[Tensor, "S D"]:
    from torch.nn.attention.varlen import varlen_attn

    lengths = [0, *(tokens for samples, tokens in shapes for _ in range(samples))]
    ends = torch.tensor(lengths).cumsum(0).to(torch.int32).to(qkv.device, non_blocking=True)
    query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
    mixed = varlen_attn(query, key, value, ends, ends, max(lengths), max(lengths))
    assert isinstance(mixed, Tensor)
    return mixed.flatten(1)
