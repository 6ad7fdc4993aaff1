"""The noun that travels from the data side to the step: views, masks and all random choices, ready for the device.

Axes: G global and L local views, B images, C channels, Y by X and y by x pixels, N patches of a global view,
M masked patches of all global views.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One logical batch or a part of it that is made of whole groups."""

    globals: Num[Tensor, "G B C Y X"]
    """Global views: uint8 as the loader ships them, float and normalised once the colours are applied."""
    locals: Num[Tensor, "L B C y x"]
    """Local views, likewise; L may be 0."""
    masks: Bool[Tensor, "G B N"]
    """True where the student sees the mask token, patches row by row."""
    masked_index: Int[Tensor, " M"]
    """Positions of the true entries in ``masks`` flattened over (G, B, N), ascending. Made on the data side: indexing
    with the mask itself would make the host wait."""
    mask_weight: Float[Tensor, " M"]
    """One over the number of masked patches of the view that each masked patch lies in."""
    groups: tuple[int, ...]
    """Numbers of the groups since the start of the run: they seed what is drawn per group. Stays on the host."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; the copy does not wait where the memory is pinned."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "groups"}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


def masked_positions(masks: Bool[Tensor, "G B N"]) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """``masked_index`` and ``mask_weight`` of a batch's masks (iBOT's weighting, DINOv2 training code)."""
    index = masks.flatten().nonzero().flatten()
    counts = masks.sum(-1, keepdim=True).clamp(min=1)
    weight = (1.0 / counts).expand_as(masks).flatten()[index]
    return index, weight.to(torch.float32)
