"""The smallest thing that keeps a backbone's promises, for tests that are not about backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.model.features import Features, Inputs


class ToyConfig(Config):
    """A linear map of patches and their mean."""

    kind: Literal["toy"] = "toy"
    """Which backbone."""
    width: int = Field(default=16, gt=0)
    """Channels of a token."""
    patch: int = Field(default=8, gt=0)
    """Side of a patch, in pixels."""
    pixels: int = Field(default=32, gt=0)
    """Image side that it is described with; any multiple of the patch is taken."""
    channels: int = Field(default=3, gt=0)
    """Channels of an image."""


class Toy(nn.Module):
    """Patches through a linear layer and a norm; the image token is their mean."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config, self.width, self.patch, self.channels = config, config.width, config.patch, config.channels
        self.drop_rates: list[float] = []
        self.rescale: float | None = None
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)
        self.norm = nn.LayerNorm(config.width)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Give every parameter its start."""
        nn.init.zeros_(self.mask_token)
        nn.init.trunc_normal_(self.proj.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]
        nn.init.ones_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    @overload
    def forward(self, images: Tensor, masks: Tensor | None = None) -> Features: ...
    @overload
    def forward(self, images: Sequence[Inputs]) -> list[Features]: ...
    def forward(
        self, images: Float[Tensor, "B C Y X"] | Sequence[Inputs], masks: Bool[Tensor, "B N"] | None = None
    ) -> Features | list[Features]:
        """Features after the norm, of images or of several ``Inputs``.

        Raises:
            ValueError: A side is no multiple of the patch, or branches to drop or positions to rescale where there are none.
        """
        if isinstance(images, Tensor):
            return self._features(images, masks)
        if any(part.drop or part.rescale is not None for part in images):
            raise ValueError("the toy backbone has no residual branch to drop and no positions to rescale.")
        return [self._features(part.images, part.masks) for part in images]

    def _features(self, images: Float[Tensor, "B C Y X"], masks: Bool[Tensor, "B N"] | None) -> Features:
        grid = self._grid(images)
        x = self.proj(images).flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype).unsqueeze(0), x)
        image = self.norm(x.mean(1))
        patches = self.norm(x).unflatten(1, grid)
        return Features(image, x.new_zeros(len(x), 0, self.width), patches)

    def class_attention(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 1 H W"]:
        """The same share for every patch, for the image token is their mean; one head.

        Raises:
            ValueError: A side is no multiple of the patch.
        """
        height, width = self._grid(images)
        return images.new_full((len(images), 1, height, width), 1 / (height * width), dtype=torch.float32)

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same architecture for another image side, which are those for this one."""
        return dict(state)

    def _grid(self, images: Float[Tensor, "B C Y X"]) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"image sides must be multiples of the patch, {self.patch}; got {height}x{width}.")
        return height // self.patch, width // self.patch
