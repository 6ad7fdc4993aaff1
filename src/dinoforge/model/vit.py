"""The vision transformer of DINOv2, with and without registers (Oquab et al. 2023; Darcet et al. 2024).

Positions are learnt, in a table, or rotate queries and keys (``model.rope``).

Axes: B images, C channels, Y by X pixels, N patches, T tokens, S tokens of all images, D channels of a token, E of a head.
Parameter names are those of the official state dicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, overload

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.model.features import Features, Inputs
from dinoforge.model.layers import (
    Attention,
    Block,
    LayerScale,
    Mlp,
    SwiGlu,
    drop_rates,
    join,
    resize_positions,
    split,
    swiglu_hidden,
)
from dinoforge.model.rope import turns


class VitConfig(Config):
    """A vision transformer."""

    later: ClassVar[frozenset[str]] = frozenset({"position_std"})

    kind: Literal["vit"] = "vit"
    """Which backbone."""
    width: int = Field(default=384, gt=0)
    """Channels of a token."""
    depth: int = Field(default=12, gt=0)
    """Number of blocks."""
    heads: int = Field(default=6, gt=0)
    """Attention heads; 64 channels each in the official models."""
    patch: int = Field(default=14, gt=0)
    """Side of a patch, in pixels."""
    pixels: int = Field(default=224, gt=0)
    """Image side that the position table is made for; other sizes resample it. Rotary positions know no side."""
    channels: int = Field(default=3, gt=0)
    """Channels of an image."""
    registers: int = Field(default=0, ge=0)
    """Extra tokens without position that serve as scratch space; 4 in the official register models."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward layer; ``swiglu`` in ViT-g and in ViT-L trained from scratch."""
    ffn_ratio: float = Field(default=4.0, gt=0)
    """Hidden width over width, before SwiGLU takes two thirds of it."""
    layerscale: float | None = Field(default=1e-5, gt=0)
    """Start of the factors on the residual branches; null leaves them out."""
    qkv_bias: bool = True
    """Biases of queries, keys and values."""
    proj_bias: bool = True
    """Bias of the attention's output."""
    ffn_bias: bool = True
    """Biases of the feed-forward layer."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in every norm; 1e-6 in DINOv2, 1e-5 in DINOv3's weights."""
    positions: Literal["table", "rope"] = "table"
    """``table``: learnt, added to the patches; ``rope``: rotary, in every block, for any image size and shape (DINOv3)."""
    position_offset: float = Field(default=0.1, ge=0, lt=1)
    """Added to the grid when the position table is resampled; 0.1 without registers, 0 with them (official weights)."""
    position_antialias: bool = False
    """Whether that resampling is antialiased; true in the official register models."""
    rope_base: float = Field(default=100.0, gt=1)
    """Rotary positions: longest period of the angles, in half sides of the image; the shortest is 1."""
    rope_rescale: float | None = Field(default=None, ge=1)
    """Rotary positions in training: coordinates are multiplied by a factor from 1 over this to this, drawn log-uniformly for
    every group of images (``objective.group``), once for its global and once for its local views; 2 in DINOv3, which draws in
    every block for all images on a device. Null or 1 is off; the teacher and features never have it."""
    untie_local_norm: bool = False
    """In training, class token and registers of local views pass a last norm of their own (DINOv3)."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth: share of samples that skip a residual branch during training."""
    drop_path_uniform: bool = True
    """The same rate in every block; false rises linearly from 0."""
    init_std: float = Field(default=0.02, gt=0)
    """Spread of the truncated normal that linear layers start from. 0.02 in the official models, about one over the root of
    their widths; a narrow network that starts so small hardly tells two images apart."""
    position_std: float = Field(default=0.02, gt=0)
    """Spread of the normal that the table of positions starts from. 0.02 in the official models; patches enter at about 0.6
    beside it, so a run of a few thousand steps hardly learns where anything is. About 1 lets it see that from the first."""

    @model_validator(mode="after")
    def _divides(self) -> VitConfig:
        if self.width % self.heads:
            raise ValueError(f"backbone.width={self.width} is no multiple of backbone.heads={self.heads}.")
        if self.positions == "rope" and self.width // self.heads % 4:
            raise ValueError(
                f"backbone.positions=rope takes heads of a multiple of 4 channels; got {self.width // self.heads} "
                f"(backbone.width={self.width}, backbone.heads={self.heads})."
            )
        if self.pixels % self.patch:
            below, above = self.pixels // self.patch * self.patch, (self.pixels // self.patch + 1) * self.patch
            raise ValueError(
                f"backbone.pixels={self.pixels} is no multiple of backbone.patch={self.patch}; "
                f"{f'{below} or ' if below else ''}{above} would be."
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> VitConfig:
        other, start = ("rope", "rope_") if self.positions == "table" else ("table", "position_")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name.startswith(start) and value != field.default:
                raise ValueError(
                    f"backbone.{name}={value} has no effect with backbone.positions={self.positions}; leave it at "
                    f"{field.default} or take backbone.positions={other}."
                )
        return self


class PatchEmbed(nn.Module):
    """A linear map of every patch, written as a strided convolution."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)


class Vit(nn.Module):
    """Images in, ``Features`` out."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config, self.width, self.patch, self.channels = config, config.width, config.patch, config.channels
        self.drop_rates = drop_rates(config.depth, config.drop_path, uniform=config.drop_path_uniform)
        self.rescale = config.rope_rescale
        side = config.pixels // config.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.positions == "table":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, config.width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        if config.untie_local_norm:
            self.local_cls_norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Give every parameter its start (DINOv2 training code); LayerScale starts at its setting.

        Where no position is added to the class token, it starts as wide as a position would (DINOv3), and so do registers:
        from almost nothing, the first norm would make its gradient dozens of times that of anything else.
        """
        rope = self.config.positions == "rope"
        if not rope:
            spread, cut = self.config.position_std, 100 * self.config.position_std  # at 0.02 torch's own, far outside
            nn.init.trunc_normal_(self.pos_embed, std=spread, a=-cut, b=cut, generator=generator)
        nn.init.normal_(self.cls_token, std=0.02 if rope else 1e-6, generator=generator)
        if self.config.registers:
            nn.init.normal_(self.register_tokens, std=0.02 if rope else 1e-6, generator=generator)
        nn.init.zeros_(self.mask_token)
        # torch's own default for convolutions; only linear layers take the truncated normal
        convolution = self.patch_embed.proj
        bound = 1 / math.sqrt(convolution.weight[0].numel())
        nn.init.uniform_(convolution.weight, -bound, bound, generator=generator)
        if convolution.bias is not None:
            nn.init.uniform_(convolution.bias, -bound, bound, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.init_std, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.start)

    @overload
    def forward(self, images: Tensor, masks: Tensor | None = None) -> Features: ...
    @overload
    def forward(self, images: Sequence[Inputs]) -> list[Features]: ...
    def forward(
        self, images: Float[Tensor, "B C Y X"] | Sequence[Inputs], masks: Bool[Tensor, "B N"] | None = None
    ) -> Features | list[Features]:
        """Features after the last norm; of inputs of several sizes in one pass, as if each had one of its own.

        Args:
            images: Normalised, height and width multiples of the patch; or ``Inputs``, one a size.
            masks: True where the mask token stands in for a patch, row by row.

        Raises:
            ValueError: A side is no multiple of the patch, or coordinates to rescale where positions are in a table.
        """
        if isinstance(images, Tensor):
            return self._packed([Inputs(images, masks)])[0]
        return self._packed(images)

    def _packed(self, inputs: Sequence[Inputs]) -> list[Features]:
        tokens = [self.embed(part.images, part.masks) for part in inputs]
        shapes = [(part.shape[0], part.shape[1]) for part in tokens]
        x, turns = join([part.flatten(0, 1) for part in tokens]), self._turns(inputs)
        for number, block in enumerate(self.blocks):
            x = block(x, shapes, [None if part.drop is None else part.drop[number] for part in inputs], turns)
        ends = zip(split(self.norm(x), shapes), shapes, inputs, strict=True)
        found = [self._features(group.view(*shape, -1), part.images) for group, shape, part in ends]
        if self.config.untie_local_norm:
            groups = zip(found, split(x, shapes), shapes, inputs, strict=True)
            found = [
                self._untied(end, group.view(*shape, -1)) if part.local else end for end, group, shape, part in groups
            ]
        return found

    def _turns(self, inputs: Sequence[Inputs]) -> Float[Tensor, "S E"] | None:
        """What every token is rotated by in every block; None where positions are in a table."""
        config, found = self.config, []
        if config.positions == "table":
            if any(part.rescale is not None for part in inputs):
                raise ValueError("positions in a table have no coordinates to rescale; take backbone.positions=rope.")
            return None
        for part in inputs:
            one = turns(
                self.grid(part.images), width=config.width // config.heads, base=config.rope_base,
                without=1 + config.registers, device=part.images.device, rescale=part.rescale,
            )  # fmt: skip
            found.append(one.expand(part.images.shape[0], -1, -1).flatten(0, 1))
        return join(found)

    def _untied(self, features: Features, tokens: Float[Tensor, "B T D"]) -> Features:
        """Features whose class token and registers pass the norm of local views."""
        first = self.local_cls_norm(tokens[:, : 1 + self.config.registers])
        return replace(features, image=first[:, 0], registers=first[:, 1:])

    def embed(
        self, images: Float[Tensor, "B C Y X"], masks: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """The tokens that enter the first block: class token, registers, patches. Rotary positions are not in them."""
        grid = self.grid(images)
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype).unsqueeze(0), x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.config.positions == "table":
            x = x + self.table_at(grid)
        if self.config.registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1).to(x.dtype), x[:, 1:]], dim=1)
        return x

    def table_at(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens D"]:
        """The position table for a grid of so many rows and columns."""
        return resize_positions(
            self.pos_embed, grid=grid, offset=self.config.position_offset, antialias=self.config.position_antialias
        )

    def intermediate(
        self, images: Float[Tensor, "B C Y X"], layers: int | Sequence[int], *, norm: bool = True
    ) -> list[Features]:
        """Outputs of the last so many blocks, or of the blocks numbered from 0, in the order of the network.

        Args:
            norm: Apply the last norm to each of them.

        Raises:
            ValueError: A block that does not exist.
        """
        depth = len(self.blocks)
        wanted = range(depth - layers, depth) if isinstance(layers, int) else layers
        if not wanted or min(wanted) < 0 or max(wanted) >= depth:
            raise ValueError(f"layers={layers} asks for blocks that a backbone of {depth} blocks does not have.")
        x = self.embed(images)
        shape, turns, found = x.shape[:2], self._turns([Inputs(images)]), []
        x = x.flatten(0, 1)
        for number, block in enumerate(self.blocks):
            x = block(x, [shape], None, turns)
            if number in wanted:
                found.append(self._features((self.norm(x) if norm else x).view(*shape, -1), images))
        return found

    def class_attention(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B heads H W"]:
        """Share of its attention that the class token gives to every patch in the last block, head by head.

        The softmax goes over all tokens; what class token and registers receive is left out and the rest is not scaled up,
        so a map sums to less than 1.

        Raises:
            ValueError: A side is no multiple of the patch.
        """
        x = self.embed(images)
        shape, turns = x.shape[:2], self._turns([Inputs(images)])
        x = x.flatten(0, 1)
        for block in self.blocks[:-1]:
            x = block(x, [shape], None, turns)
        last: Any = self.blocks[-1]
        weights = last.attn.first_weights(
            last.norm1(x).view(*shape, -1), None if turns is None else turns.view(*shape, -1)
        )
        return weights[..., 1 + self.config.registers :].unflatten(-1, self.grid(images))

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same architecture for another image side, made to fit this one's.

        The position table is resampled once, as ``embed`` would for every image of this side, so the features of such an image
        stay what they are.
        """
        found = dict(state)
        if self.config.positions == "table":
            side = self.config.pixels // self.patch
            found["pos_embed"] = resize_positions(
                state["pos_embed"], grid=(side, side), offset=self.config.position_offset,
                antialias=self.config.position_antialias,
            )  # fmt: skip
        return found

    def grid(self, images: Float[Tensor, "B C Y X"]) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ValueError: A side is no multiple of the patch.
        """
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"image sides must be multiples of the patch, {self.patch}; got {height}x{width}.")
        return height // self.patch, width // self.patch

    def _features(self, tokens: Float[Tensor, "B T D"], images: Float[Tensor, "B C Y X"]) -> Features:
        extra = 1 + self.config.registers
        return Features(tokens[:, 0], tokens[:, 1:extra], tokens[:, extra:].unflatten(1, self.grid(images)))


def _block(config: VitConfig) -> Block:
    hidden = int(config.width * config.ffn_ratio)
    attn = Attention(config.width, config.heads, qkv_bias=config.qkv_bias, proj_bias=config.proj_bias)
    mlp: nn.Module
    if config.ffn == "swiglu":
        mlp = SwiGlu(config.width, swiglu_hidden(hidden), bias=config.ffn_bias)
    else:
        mlp = Mlp(config.width, hidden, bias=config.ffn_bias)
    return Block(config.width, attn, mlp, layerscale=config.layerscale, norm_eps=config.norm_eps)
