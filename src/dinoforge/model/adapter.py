"""Maps of several scales from a plain, frozen backbone: fine detail from a small convolutional stem, meaning from patch tokens.

ViT-Adapter in spirit (Chen et al. 2023, sec. 3): its spatial prior, and its last step, which adds resized tokens to the prior's
maps. What lies between, deformable attention that reads from and writes into the tokens between blocks, is left out: tokens
are computed once, without gradients, and are those that every other head sees.

Axes: B images, C channels of an image, Y by X pixels, H by W patches, F channels of a patch (of all blocks taken, one after
another), E channels of a map, S by T places of a map.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.model.features import Features

STRIDES = (4, 8, 16, 32)
"""Pixels between neighbours of each map; a side that is no multiple gets one place more."""


def as_features(images: Float[Tensor, "B C Y X"]) -> Features:
    """Images as if they were features: patches of one pixel, their mean, and no registers; for heads that see both."""
    return Features(images.mean((2, 3)), images.new_zeros(len(images), 0, images.shape[1]), images.movedim(1, -1))


class Adapter(nn.Module):
    """Normalised images and their patch tokens in, one map a stride out.

    ``map = norm(stem(images) + resize(project(norm(tokens))))`` at each stride: every scale has a projection of its own of all
    tokens, and resizes it bilinearly. Norms are within an image, so that no image depends on its batch.
    """

    def __init__(self, *, channels: int, features: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.start = nn.Sequential(*_halving(channels, half), *_convolution(half, half), *_halving(half, width))
        self.down = nn.ModuleList(nn.Sequential(*_halving(width, width)) for _ in STRIDES[1:])
        self.norm = nn.LayerNorm(features)
        self.project = nn.ModuleList(nn.Linear(features, width) for _ in STRIDES)
        self.mix = nn.ModuleList(nn.GroupNorm(1, width) for _ in STRIDES)

    def forward(
        self, images: Float[Tensor, "B C Y X"], tokens: Float[Tensor, "B H W F"]
    ) -> list[Float[Tensor, "B E S T"]]:
        """Maps in float32, finest first.

        Args:
            images: Normalised, of any size and shape.
            tokens: Of the frozen backbone, of any grid that covers the same picture; no gradient goes into them.
        """
        fine = [self.start(images)]
        for down in self.down:
            fine.append(down(fine[-1]))
        tokens = self.norm(tokens.detach().float())
        maps = list[Tensor]()
        for detail, project, mix in zip(fine, self.project, self.mix, strict=True):
            meaning = project(tokens).movedim(-1, 1).float()
            resized = F.interpolate(meaning, size=detail.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(mix(detail.float() + resized).float())
        return maps


def _convolution(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)  # the norm would undo a bias
    return [convolution, nn.GroupNorm(1, width), nn.ReLU()]


def _halving(channels: int, width: int) -> list[nn.Module]:
    """A convolution after which a side of n is one of n / 2, rounded up."""
    return _convolution(channels, width, stride=2)
