"""What may be taken from a backbone: tables of features by the names under which they are kept.

Axes: B images, C channels of an image, Y by X pixels, D channels, H by W patches, T tokens: those of the blocks and one more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCKS = 4
"""Last blocks whose class tokens a linear probe may use (DINOv2, sec. 7.1)."""


def _image(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D"]:
    found: Tensor = module(images).image
    return found


def _patches(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B H W D"]:
    found: Tensor = module(images).patches
    return found


def _blocks(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B T D"]:
    """Class tokens of the last four blocks in the order of the network, as many as there are, and the mean patch of the last.

    Of a network that shows no blocks, as those of other libraries, its last class token and mean patch alone.
    """
    found = [module(images)]
    if hasattr(module, "intermediate"):
        found = module.intermediate(images, min(BLOCKS, len(module.blocks)))
    return torch.stack([*(block.image for block in found), found[-1].patches.mean((1, 2))], dim=1)


def _norms(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B H W"]:
    """Lengths of patches before the last norm, which would make them all alike; after it where a network shows no blocks."""
    if hasattr(module, "intermediate"):
        patches = module.intermediate(images, 1, norm=False)[0].patches
    else:
        patches = module(images).patches
    return torch.linalg.vector_norm(patches.float(), dim=-1)


KINDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "image": _image,
    "patches": _patches,
    "blocks": _blocks,
    "norms": _norms,
}
"""Every kind of features by its name."""
