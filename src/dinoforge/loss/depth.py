"""What depth heads learn from: the scale-invariant loss in logs (Eigen et al. 2014, eq. 4, as in Bhat et al. 2021, eq. 4), and
the multi-scale gradient loss (Li & Snavely 2018, eq. 7).

Axes: B images, Y by X pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WARM_UP = 100
"""Calls in which published heads learn the scale alone."""
_LOG = 1e-3
"""Added to depth before its logarithm."""
_SCALE = 0.15
"""What the squared mean weighs beside the variance."""
_STRIDES = (1, 2, 4, 6)
"""Of the multi-scale gradients."""
_LEAST = 1e-12
"""Below it the root has no usable slope; a perfect answer gets none."""


def scale_invariant_loss(
    predicted: Float[Tensor, "B 1 Y X"], truth: Float[Tensor, "B 1 Y X"], valid: Bool[Tensor, "B 1 Y X"], *, warming: bool
) -> Float[Tensor, ""]:  # fmt: skip
    """``sqrt(Var g + 0.15 (mean g)^2)`` with ``g = log(predicted + 0.001) - log(truth + 0.001)``, over all valid pixels of the
    batch; 0 where there is none.

    The variance is that of a sample (divided by n - 1), as in the released code; of a single pixel it is 0.

    Args:
        warming: Only the mean counts, so that the scale is found first: ``sqrt(0.15) |mean g|``.
    """
    count = valid.sum().clamp(min=1)
    g = _log_difference(predicted, truth, valid)
    mean = g.sum() / count
    if warming:
        return mean.abs() * _SCALE**0.5
    variance = torch.where(valid, (g - mean).square(), 0).sum() / (count - 1).clamp(min=1)
    return (variance + _SCALE * mean.square()).clamp(min=_LEAST).sqrt()


def gradient_loss(
    predicted: Float[Tensor, "B 1 Y X"], truth: Float[Tensor, "B 1 Y X"], valid: Bool[Tensor, "B 1 Y X"]
) -> Float[Tensor, ""]:
    """How much the error in logs changes from one pixel to the one after next, down and to the right.

    For every stride s of 1, 2, 4, 6 both maps are taken at each s-th pixel, and the absolute changes between two valid pixels
    are summed and divided by the number of valid pixels there; these four are summed.
    """
    return torch.stack([
        _changes(*(one[:, :, ::stride, ::stride] for one in (predicted, truth, valid))) for stride in _STRIDES
    ]).sum()  # fmt: skip


def _log_difference(predicted: Tensor, truth: Tensor, valid: Tensor) -> Float[Tensor, "B 1 Y X"]:
    """``g``; 0 where nothing was read, without a slope there."""
    here = torch.where(valid, predicted.float(), 1)
    there = torch.where(valid, truth.float(), 1)
    return (here + _LOG).log() - (there + _LOG).log()


def _changes(predicted: Tensor, truth: Tensor, valid: Tensor) -> Float[Tensor, ""]:
    g = _log_difference(predicted, truth, valid)
    down = (g[..., 2:, :] - g[..., :-2, :]).abs() * (valid[..., 2:, :] & valid[..., :-2, :])
    right = (g[..., 2:] - g[..., :-2]).abs() * (valid[..., 2:] & valid[..., :-2])
    return (down.sum() + right.sum()) / valid.sum().clamp(min=1)
