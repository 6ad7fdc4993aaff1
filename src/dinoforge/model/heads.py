"""The projection head of DINO and iBOT (Caron et al. 2021, sec. 3.1; Zhou et al. 2022), as DINOv2 builds it.

Axes: D channels in, E of the bottleneck, K prototypes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from dinoforge.base.config import Config


class HeadConfig(Config):
    """A projection head."""

    prototypes: int = Field(default=65_536, gt=1)
    """Directions that a token is compared with; 131,072 in the large runs."""
    hidden: int = Field(default=2048, gt=0)
    """Width of the hidden layers."""
    bottleneck: int = Field(default=256, gt=0)
    """Width of the normalised vector; 384 for class tokens in the large runs."""
    layers: int = Field(default=3, gt=0)
    """Linear layers before the prototypes."""


class Prototypes(nn.Module):
    """Scores ``g_k <x, v_k / |v_k|>``: a linear layer with weight normalisation, both parts learnt."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.zeros(prototypes, width))

    def forward(self) -> Float[Tensor, "K E"]:
        """The layer's weight, ``g_k v_k / |v_k|``."""
        found: Tensor = _OfLength.apply(self.weight_v, self.weight_g)
        return found


class _OfLength(torch.autograd.Function):
    """``g v / |v|`` row by row, whose way back makes one tensor of the size of ``v`` instead of five.

    It is the first thing on the way back, while all activations are alive: at 65,536 prototypes this was the peak of a step.
    """

    @staticmethod
    def forward(ctx: Any, v: Float[Tensor, "K E"], g: Float[Tensor, "K 1"]) -> Float[Tensor, "K E"]:
        length = v.norm(dim=1, keepdim=True)
        ctx.save_for_backward(v, g, length)
        return v * (g / length)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, towards: Float[Tensor, "K E"]) -> tuple[Float[Tensor, "K E"], Float[Tensor, "K 1"]]:
        v, g, length = ctx.saved_tensors
        product, factor = towards * v, g / length
        along = product.sum(1, keepdim=True) / length
        return torch.mul(towards, factor, out=product).addcmul_(v, along * factor / length, value=-1), along


class Head(nn.Module):
    """Tokens in; out comes what prototype scores are the products of."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        widths = [width, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [nn.Linear(inside, outside), nn.GELU()]
        # A single layer has no number in its name in the official state dicts.
        self.mlp = nn.Sequential(*layers[:-1]) if config.layers > 1 else layers[0]
        self.last_layer = Prototypes(config.bottleneck, config.prototypes)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Truncated normal of 0.02 in the linear layers, torch's default for directions, length 1."""
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.ones_(self.last_layer.weight_g)
        bound = 1 / math.sqrt(self.config.bottleneck)
        nn.init.uniform_(self.last_layer.weight_v, -bound, bound, generator=generator)

    def forward(self, x: Float[Tensor, "*rows D"]) -> tuple[Float[Tensor, "*rows E"], Float[Tensor, "K E"]]:
        """Bottleneck vectors and prototypes. Scores are ``vectors @ prototypes.T``, at most ``g_k`` large; so many of them
        are not computed before it is known what for."""
        return self.project(x), self.last_layer()

    def project(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        """The bottleneck vectors, of length 1 (a zero vector stays zero)."""
        return F.normalize(self.mlp(x).float(), dim=-1, eps=1e-12)
