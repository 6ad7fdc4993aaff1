"""What every backbone returns, and all that losses, probes, curation and export know of one.

Axes: B images, R registers, H by W patches, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Features:
    """Tokens after the backbone's last norm; patches keep their grid."""

    image: Float[Tensor, "B D"]
    registers: Float[Tensor, "B R D"]
    patches: Float[Tensor, "B H W D"]


# So that compiling, sharding and exporting look inside it.
torch.export.register_dataclass(Features)
