"""A vision transformer as one program for any batch, height and width, for ``torch.export`` and ONNX.

Two things in the model look at sizes in Python, where a program would be fixed to the size it was made with: the way attention
is computed, and the resampling of the position table. Attention takes the one way that knows no size. Bicubic resampling is
linear and works along rows and columns alone, so it is two matrices, which are made of the wanted size by plain arithmetic.

Axes: B images, C channels, Y by X pixels, H by W patches, M patches along a side of the table, n wanted, D channels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.model.features import Features
from dinoforge.model.layers import Attention
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.model.weights import Backbone

NAMES = ("image", "registers", "patches")
"""Of what a program gives; registers only where there are some."""


def cubic(distance: Float[Tensor, "n M"], a: float) -> Float[Tensor, "n M"]:
    """The cubic convolution kernel of Keys (1981), eq. 4 with its free parameter; 0 from a distance of 2 on."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resampling(
    wanted: int, side: int, *, scale: Float[Tensor, ""], antialias: bool, device: torch.device
) -> Float[Tensor, "n M"]:
    """What ``interpolate(mode="bicubic")`` takes from every old place for every new one, as a matrix.

    Torch's kernels: a = -0.75 and places beyond an end standing for the end; antialiased, a = -0.5, stretched by the scale
    where that is above 1, and what falls outside left out with the rest scaled up to 1.

    Args:
        scale: Old places a new one.
    """
    new, old = torch.arange(wanted, device=device).float(), torch.arange(side, device=device).float()
    centre = (scale * (new + 0.5)).unsqueeze(1)
    if antialias:
        weights = cubic((old + 0.5 - centre) / scale.clamp(min=1), -0.5)
        return weights / weights.sum(1, keepdim=True)
    places = torch.floor(centre - 0.5) + torch.arange(-1, 3, device=device)
    weights = cubic(places - (centre - 0.5), -0.75)
    return (weights.unsqueeze(-1) * (places.clamp(0, side - 1).unsqueeze(-1) == old)).sum(1)


def resampled(
    table: Float[Tensor, "1 tokens D"], *, grid: tuple[int, int], offset: float, antialias: bool
) -> Float[Tensor, "1 resized D"]:
    """What ``resize_positions`` gives, as one computation for every size."""
    side = math.isqrt(table.shape[1] - 1)
    one = torch.ones((), dtype=torch.float64, device=table.device)  # in float32 a place would be off by 1e-6 of a side
    rows, columns = (one * size for size in grid)
    same = (rows == side) & (columns == side)  # there the table is taken as it is
    down, across = (
        resampling(
            size, side, antialias=antialias, device=table.device,
            # antialiased, torch leaves an axis alone whose length stays
            scale=(side / (many + torch.where((many == side) if antialias else same, 0.0, offset))).float(),
        )
        for size, many in zip(grid, (rows, columns), strict=True)
    )  # fmt: skip
    patches = table[0, 1:].float().unflatten(0, (side, side))
    patches = torch.einsum("hm,mnd->hnd", down, patches)
    patches = torch.einsum("wn,hnd->hwd", across, patches)
    return torch.cat([table[:, :1], patches.flatten(0, 1).unsqueeze(0).to(table.dtype)], dim=1)


class DynamicVit(Vit):
    """The same transformer, with nothing in it that depends on a size in Python."""

    def table_at(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens D"]:
        """The position table for a grid, by matrices."""
        config = self.config
        return resampled(self.pos_embed, grid=grid, offset=config.position_offset, antialias=config.position_antialias)


class Named(nn.Module):
    """Features as tensors by name."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Float[Tensor, "B C Y X"]) -> dict[str, Tensor]:
        """``image`` [B, D], ``registers`` [B, R, D] where there are some, ``patches`` [B, H, W, D]."""
        found = self.vit(images)
        return {name: getattr(found, name) for name in NAMES if name != "registers" or self.vit.config.registers}


def dynamic(backbone: Backbone) -> Named:
    """A vision transformer ready to become a program; it shares the weights of the backbone."""
    config: VitConfig = backbone.config
    with torch.device("meta"):
        vit = DynamicVit(config)
    vit.load_state_dict(backbone.module.state_dict(), assign=True)
    for module in vit.modules():
        if isinstance(module, Attention):
            module.way = "fused"
    return Named(vit).eval().requires_grad_(False)


def exported(backbone: Backbone) -> torch.export.ExportedProgram:
    """The program, for any batch, and any height and width that are multiples of the patch, two of them at least."""
    config: VitConfig = backbone.config
    batch = torch.export.Dim("batch", min=1)
    # A side of one patch would be a program of its own: torch lets 1 stand for any size.
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    # Numbers that no other dimension has: equal ones would be taken for the same.
    images = torch.zeros(2, config.channels, 3 * config.patch, 5 * config.patch)
    with torch.no_grad():
        return torch.export.export(
            dynamic(backbone),
            (images,),
            dynamic_shapes={"images": {0: batch, 2: config.patch * rows, 3: config.patch * columns}},
        )


def features_of(found: dict[str, Tensor]) -> Features:
    """Features from what a program gave by name."""
    image = found["image"]
    return Features(image, found.get("registers", image.new_zeros(len(image), 0, image.shape[1])), found["patches"])
