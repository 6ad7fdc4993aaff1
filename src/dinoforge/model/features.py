"""What every backbone returns, and all that losses, probes, curation and export know of one.

Axes: B images, C channels of an image, Y by X pixels, N patches, R registers, H by W patches, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Subset:
    """The samples for which a residual branch is computed, and the factor that keeps its expectation."""

    index: Int[Tensor, " kept"]
    scale: float

    def to(self, device: torch.device) -> Subset:
        """The same on another device."""
        return Subset(self.index.to(device, non_blocking=True), self.scale)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Images of one size, on their way in."""

    images: Float[Tensor, "B C Y X"]
    """Normalised."""
    masks: Bool[Tensor, "B N"] | None = None
    """True where the mask token stands in for a patch, row by row."""
    drop: Sequence[tuple[Subset, Subset]] | None = None
    """For every block the samples of its two branches (stochastic depth); None computes all."""
    rescale: Float[Tensor, " B"] | None = None
    """For every image a factor on its patches' coordinates (rotary positions); None is 1."""
    local: bool = False
    """Whether these are the local views of a training step, for which a backbone may have a norm of their own."""


@dataclass(frozen=True, slots=True)
class Features:
    """Tokens after the backbone's last norm; patches keep their grid."""

    image: Float[Tensor, "B D"]
    registers: Float[Tensor, "B R D"]
    patches: Float[Tensor, "B H W D"]


# So that compiling, sharding and exporting look inside it.
torch.export.register_dataclass(Features)
