"""Features of blocks of a frozen backbone for images of any size.

Axes: B images, C channels, Y by X pixels, K channels of a map, h by w its cells, P pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import compute_context
from dinoforge.base.log import say
from dinoforge.features.extract import Extraction, normalised
from dinoforge.features.eyes import Eyes
from dinoforge.features.kinds import shows_blocks
from dinoforge.model.adapter import as_features
from dinoforge.model.features import Features
from dinoforge.model.weights import Preprocessing


@dataclass(frozen=True, slots=True)
class Trunk:
    """A frozen backbone, and the blocks of it that a head takes."""

    module: Any
    preprocessing: Preprocessing
    how: Extraction
    blocks: int | tuple[int, ...]
    """The last so many, or those numbered from 0."""
    norm: bool
    """Whether each passes the last norm."""
    pictures: bool = False
    """Whether the images themselves, padded and normalised, come before the blocks, as ``as_features`` makes them."""

    @property
    def count(self) -> int:
        """How many blocks there are to a head."""
        return self.blocks if isinstance(self.blocks, int) else len(self.blocks)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.module.width)

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        return int(self.module.patch)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the blocks, from 0; none where the backbone does not show its blocks."""
        if not shows_blocks(self.module):
            return ()
        depth = len(self.module.blocks)
        return tuple(range(depth - self.blocks, depth)) if isinstance(self.blocks, int) else self.blocks

    def usual_side(self, times: float = 1.0) -> int:
        """The side that the backbone is usually shown, or so many times that, to the nearest multiple of its patch."""
        return max(1, math.floor(self.preprocessing.side * times / self.patch + 0.5)) * self.patch

    @property
    def fill(self) -> Float[np.ndarray, " C"]:
        """The colour that is 0 once normalised, on the scale 0 to 255."""
        how = self.preprocessing
        return np.broadcast_to(np.asarray(how.mean, float) * 255, how.channels).clip(0, 255)

    def __call__(self, images: UInt8[Tensor, "B C Y X"]) -> list[Features]:
        """Features in float32 on the device, in the order of the network, of images that are centred among zeros so that their
        sides become multiples of the patch; an odd pixel comes below and to the right.

        Raises:
            ConfigError: A backbone of another library does not take images of this size.
        """
        x = normalised(images.to(self.how.device, non_blocking=True), self.preprocessing)
        top, bottom = margins(x.shape[-2], self.patch)
        left, right = margins(x.shape[-1], self.patch)
        x = F.pad(x, (left, right, top, bottom))
        with torch.no_grad(), compute_context(self.how.precision, self.how.device):
            found = self._blocks(x)
        found = [as_features(x), *found] if self.pictures else found
        return [Features(*(part.float() for part in (one.image, one.registers, one.patches))) for one in found]

    def _blocks(self, x: Float[Tensor, "B C Y X"]) -> list[Features]:
        if not shows_blocks(self.module):
            return [self.module(x)]
        found: list[Features] = self.module.intermediate(x, self.blocks, norm=self.norm)
        return found

    def on_pixels(self, cells: Float[Tensor, "B K h w"], height: int, width: int) -> Float[Tensor, "B K Y X"]:
        """A map of the cells of padded images on the pixels of the images themselves: bilinear, the margins cut off."""
        (top, bottom), (left, right) = margins(height, self.patch), margins(width, self.patch)
        size = (top + height + bottom, left + width + right)
        whole = F.interpolate(cells, size, mode="bilinear", align_corners=False)
        return whole[:, :, top : top + height, left : left + width]

    def at_pixels(
        self, cells: Float[Tensor, "B K h w"], places: Int[Tensor, "B P"], height: int, width: int
    ) -> Float[Tensor, "B K P"]:
        """``on_pixels`` for some pixels of each image alone.

        Args:
            places: Numbers of pixels, row by row.
        """
        (top, bottom), (left, right) = margins(height, self.patch), margins(width, self.patch)
        across = (2 * (places % width + left) + 1) / (left + width + right) - 1
        down = (2 * (places // width + top) + 1) / (top + height + bottom) - 1
        grid = torch.stack([across, down], dim=-1)[:, None].to(cells.dtype)
        # Beyond the middle of the outer cells it is theirs, as for ``interpolate``.
        return F.grid_sample(cells, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def margins(length: int, patch: int) -> tuple[int, int]:
    """Pixels before and after a side that make it a multiple of the patch."""
    missing = -length % patch
    return missing // 2, missing - missing // 2


def trunk_of(eyes: Eyes, blocks: int | Sequence[int] = 1, *, norm: bool = True, pictures: bool = False) -> Trunk:
    """The backbone as a head takes it.

    Of a backbone of another library it is the last block after its last norm, whatever is asked, and of one with fewer blocks
    all of them: both are said.

    Args:
        blocks: The last so many, or their numbers from 0.
        pictures: Whether the head sees the images too.

    Raises:
        ConfigError: A numbered block that the backbone does not have.
    """
    module = eyes.backbone.module.to(eyes.how.device).eval()
    wanted = blocks if isinstance(blocks, int) else tuple(blocks)
    if not shows_blocks(module):
        if wanted != 1:
            say("The backbone is of a library that does not show its blocks: the head sees the last one alone.")
        wanted, norm = 1, True
    elif isinstance(wanted, int) and wanted > len(module.blocks):
        say(f"The backbone has {len(module.blocks)} blocks, fewer than {wanted}: the head sees all of them.")
        wanted = len(module.blocks)
    elif not isinstance(wanted, int) and max(wanted) >= len(module.blocks):
        raise ConfigError(
            f"blocks {list(wanted)} are asked for; the backbone has blocks 0 to {len(module.blocks) - 1}."
        )
    return Trunk(module, eyes.backbone.preprocessing, eyes.how, wanted, norm, pictures)
