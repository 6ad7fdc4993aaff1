"""Labels carried from frame to frame by patch features that nobody trained for it.

Jabri et al. 2020 (sec. 3.4), in the setting of DINO (Caron et al. 2021, sec. 4.2.2): each patch takes the labels of the patches
most like it in the first frame and the last few, within a window around its own place.

Axes: H by W patches, D channels, C labels (0 is the ground), S frames that are remembered, Y by X pixels.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config

_ROWS_AT_ONCE = 4
"""Rows of patches whose windows are compared at once; bounds memory, changes no result."""


class PropagationConfig(Config):
    """Whose labels a patch takes. The defaults are those of DINO's evaluation on DAVIS 2017 (``eval_video_segmentation``)."""

    frames: int = Field(default=7, ge=0)
    """Last frames that are remembered beside the first."""
    neighbours: int = Field(default=5, gt=0)
    """Most similar patches, over all remembered frames together, whose labels are averaged; such as are equal count too."""
    temperature: float = Field(default=0.1, gt=0)
    """Each weighs exp(cosine / temperature)."""
    radius: int | None = Field(default=12, ge=0)
    """Patches are looked for so many rows and columns around a patch's own place, a square; null: in the whole frame."""
    stretch: bool = True
    """Before the greatest label of a pixel is taken, each label is stretched to 0 to 1 over the frame, as DINO's code does."""


def carried(
    target: Float[Tensor, "H W D"], frames: Float[Tensor, "S H W D"], labels: Float[Tensor, "S C H W"], *,
    config: PropagationConfig,
) -> Float[Tensor, "C H W"]:  # fmt: skip
    """The labels of a frame from those of others; features have length 1, labels of a patch add up to 1."""
    height, width = target.shape[:2]
    radius = max(height, width) if config.radius is None else config.radius
    found = []
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = torch.arange(top, min(top + _ROWS_AT_ONCE, height), device=target.device)
        low, high = max(0, top - radius), min(height, int(rows[-1]) + radius + 1)
        cosine = target[rows].flatten(0, 1) @ frames[:, low:high].reshape(-1, frames.shape[-1]).T
        near = _near(rows, torch.arange(low, high, device=target.device), width, radius).repeat(1, len(frames))
        cosine = cosine.masked_fill(~near, -torch.inf)
        least = cosine.topk(min(config.neighbours, cosine.shape[1]), dim=1).values[:, -1:]
        weights = (cosine / config.temperature).masked_fill(cosine < least, -torch.inf).softmax(dim=1)
        found.append(weights @ labels[:, :, low:high].permute(0, 2, 3, 1).reshape(-1, labels.shape[1]))
    return torch.cat(found).T.reshape(-1, height, width)


def _near(rows: Int[Tensor, " r"], others: Int[Tensor, " s"], width: int, radius: int) -> Bool[Tensor, "T N"]:
    """Whether a patch of ``others`` lies in the square around one of ``rows``, each row after row."""
    columns = torch.arange(width, device=rows.device)
    down = (rows[:, None] - others).abs() <= radius
    across = (columns[:, None] - columns).abs() <= radius
    return (down[:, None, :, None] & across[None, :, None, :]).reshape(len(rows) * width, len(others) * width)


class Track:
    """Labels of one clip, frame after frame.

    Args:
        first: Patches of the first frame, any scale.
        labels: Its labels.
    """

    def __init__(
        self, first: Float[Tensor, "H W D"], labels: Float[Tensor, "C H W"], *, config: PropagationConfig
    ) -> None:
        self._config, self._first = config, (F.normalize(first, dim=-1), labels)
        self._last = deque[tuple[Tensor, Tensor]](maxlen=config.frames)

    def follow(self, patches: Float[Tensor, "H W D"]) -> Float[Tensor, "C H W"]:
        """The labels of the next frame."""
        target = F.normalize(patches, dim=-1)
        frames, labels = zip(self._first, *self._last, strict=True)
        found = carried(target, torch.stack(frames), torch.stack(labels), config=self._config)
        self._last.append((target, found))
        return found


def labels_of(
    mask: Num[np.ndarray, "Y X"], objects: Int[np.ndarray, " n"], *, grid: tuple[int, int]
) -> Float[Tensor, "C H W"]:
    """Label 0 for the ground and one for each object, at the pixel in the middle of every patch (nearest, as in DINO)."""
    rows, columns = (
        np.minimum((np.arange(many) + 0.5) * side / many, side - 1).astype(np.int64)
        for many, side in zip(grid, mask.shape, strict=True)
    )
    small = mask[np.ix_(rows, columns)].astype(np.int64)
    shown = [small == number for number in objects.tolist()]
    ground = ~np.logical_or.reduce(shown)
    return torch.from_numpy(np.stack([ground, *shown])).float()


def shown_by(labels: Float[Tensor, "C H W"], *, size: tuple[int, int], stretch: bool) -> Int[np.ndarray, "Y X"]:
    """The greatest label of every pixel of a picture of that height and width, bilinear between patches; of equal the first."""
    large = F.interpolate(labels[None], size, mode="bilinear", align_corners=False)[0]
    if stretch:
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        # One that is the same all over stays as it is: it has nothing to be stretched.
        large = torch.where(high > low, (large - low) / (high - low), large)
    found: np.ndarray = large.cpu().numpy().argmax(axis=0)
    return found
