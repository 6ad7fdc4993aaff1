"""What may be taken from a backbone: tables of features by the names under which they are kept.

Axes: B images, C channels of an image, Y by X pixels, D channels (E, twice as many), H by W patches, T tokens: one of
every patch, or of every block, and one more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCKS = 4
"""Last blocks whose class tokens a linear probe may use (DINOv2, sec. 7.1)."""
_GEM = 4
_POSITIVE = 1e-6
"""What counts as the least number of a patch, so that powers have a root and the mean is never 0."""


def shows_blocks(module: Any) -> bool:
    """Whether a network gives what its blocks give: ours do, those of other libraries do not."""
    return hasattr(module, "intermediate")


def _image(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B D"]:
    found: Tensor = module(images).image
    return found


def _patches(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B H W D"]:
    found: Tensor = module(images).patches
    return found


def _tokens(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B T D"]:
    """The class token, then the patches line after line: what a search by pictures and by places in them goes by."""
    found = module(images)
    return torch.cat([found.image[:, None], found.patches.flatten(1, 2)], dim=1)


def _blocks(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B T D"]:
    """Class tokens of the last four blocks in the order of the network, as many as there are, and the mean patch of the last.

    Of a network that shows no blocks, as those of other libraries, its last class token and mean patch alone.
    """
    found = [module(images)]
    if shows_blocks(module):
        found = module.intermediate(images, min(BLOCKS, len(module.blocks)))
    return torch.stack([*(block.image for block in found), found[-1].patches.mean((1, 2))], dim=1)


def _norms(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B H W"]:
    """Lengths of patches before the last norm, which would make them all alike; after it where a network shows no blocks."""
    seen = module.intermediate(images, 1, norm=False)[0] if shows_blocks(module) else module(images)
    patches: Tensor = seen.patches
    return torch.linalg.vector_norm(patches.float(), dim=-1)


def _gem(module: Any, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B E"]:
    """The class token, and beside it the generalised mean of the patches: (mean of p-th powers)^(1/p) with p = 4, of positive
    parts (GeM; Radenovic et al. 2019, eq. 3), as DINO compares copies (Caron et al. 2021, sec. 4.2.1)."""
    found = module(images)
    # In float32: the fourth power of a bfloat16 number keeps two digits.
    powers = found.patches.float().clamp(min=_POSITIVE).pow(_GEM)
    return torch.cat([found.image.float(), powers.mean((1, 2)).pow(1 / _GEM)], dim=1)


KINDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "image": _image,
    "patches": _patches,
    "tokens": _tokens,
    "blocks": _blocks,
    "norms": _norms,
    "gem": _gem,
}
"""Every kind of features by its name."""
HALF = frozenset({"tokens"})
"""Kinds that are kept in 16 bits: every number of every patch is there."""
