"""Pixels as a backbone: what no one learnt, to be measured beside what was.

``pixels``: the image token is a thumbnail about its own mean; every patch is the same of a sixteenth of the picture.
``colours``: every patch is its pixels as they are, colour and light included, for maps; the image token is their mean.

Axes: B images, C channels, Y by X pixels, H by W patches, D = C S S numbers of a thumbnail of side S.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.base.errors import WeightsError
from dinoforge.model.weights import Preprocessing

GRID = 4
"""Patches down and across."""
_MOST = 64
_USUAL = 224


def thumbnails(images: Float[Tensor, "B C Y X"], side: int) -> Float[Tensor, "B D"]:
    """Each image at ``side`` by ``side`` pixels, antialiased, about its own mean."""
    small = F.interpolate(images, (side, side), mode="bilinear", antialias=True).flatten(1)
    return small - small.mean(1, keepdim=True)


class Thumbnails(nn.Module):
    """Thumbnails of pictures and of their parts."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Float[Tensor, "B C Y X"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D H W"]]:
        """Of the whole, and of its parts; a side is a multiple of as many thumbnails as lie across."""
        count, channels, height, width = images.shape
        if height % self.side or width % self.side:
            raise ValueError(f"sides are multiples of {self.side}.")
        grid = height // self.side, width // self.side
        parts = images.reshape(count, channels, grid[0], self.side, grid[1], self.side).permute(0, 2, 4, 1, 3, 5)
        parts = parts.flatten(3) - parts.flatten(3).mean(-1, keepdim=True)
        return thumbnails(images, self.side), parts.permute(0, 3, 1, 2)


class Colours(nn.Module):
    """The pixels of every patch, row by row of each channel, as they come."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D H W"]:
        """Of images whose sides are multiples of that of a patch."""
        count, _, height, width = images.shape
        if height % self.side or width % self.side:
            raise ValueError(f"sides are multiples of {self.side}.")
        found = F.unfold(images, self.side, stride=self.side)
        return found.view(count, -1, height // self.side, width // self.side)


def side_of(address: str, name: str) -> int:
    """The side that ``pixels:16`` or ``colours:8`` names.

    Raises:
        WeightsError: It names none.
    """
    called, such = ("patch", "colours:8") if address.startswith("colours") else ("thumbnail", "pixels:16")
    if not name.isdecimal() or not 1 <= int(name) <= _MOST:
        raise WeightsError(f"backbone {address} takes the side of a {called}, 1 to {_MOST}, such as {such}.")
    return int(name)


def preprocessing(side: int) -> Preprocessing:
    """The middle of a picture, as large as it can be."""
    return Preprocessing(short_side=GRID * side, side=GRID * side, mean=(0.0,), std=(1.0,))


def colour_preprocessing(side: int) -> Preprocessing:
    """As large a picture as most networks see; colours from -1 to 1, so that dark and light point apart."""
    pixels = max(1, round(_USUAL / side)) * side
    return Preprocessing(short_side=pixels, side=pixels, mean=(0.5,), std=(0.5,))
