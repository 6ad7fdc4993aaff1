"""How far the features of a backbone have moved from those of another one, on the same images, without labels.

Axes: N images, D and E channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def drift(now: Float[Tensor, "N D"], before: Float[Tensor, "N E"]) -> float:
    """One less the linear CKA of two tables of features (Kornblith et al. 2019, sec. 3; HSIC with linear kernels).

    With both tables centred, ``1 - |X^T Y|^2 / (|X^T X| |Y^T Y|)`` in Frobenius norms: 0 where one is the other turned, shifted
    and scaled, or neither tells images apart; 1 where nothing of the one is in the other, or one alone tells none apart.
    """
    x, y = (features.double() - features.double().mean(0) for features in (now, before))
    mine, theirs = (x.T @ x).norm().item(), (y.T @ y).norm().item()
    if mine * theirs <= 0:
        return float(mine > 0 or theirs > 0)
    return min(max(1 - (x.T @ y).square().sum().item() / (mine * theirs), 0.0), 1.0)


def turn(now: Float[Tensor, "N D"], before: Float[Tensor, "N D"]) -> float:
    """One less the mean cosine of every image's two features: 0 where all point as before, 1 where they are at right angles."""
    return 1 - F.cosine_similarity(now.double(), before.double(), dim=-1).mean().item()
