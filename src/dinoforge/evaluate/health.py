"""How healthy features are, without labels.

Axes: N images, D channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(features: Float[Tensor, "N D"]) -> float:
    """``exp`` of the entropy of the normalised singular values (RankMe, Garrido et al. 2023, eq. 1), of centred features.

    Between 1 (all on a line; 0 if all are equal) and D (spread evenly over all directions). Centred, so that a common offset
    does not hide a collapse.
    """
    x = features.double()
    x = x - x.mean(0)
    # The Gram matrix of long data is smaller and has the squared singular values.
    long = len(x) > x.shape[1]
    values = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt() if long else torch.linalg.svdvals(x)
    total = values.sum()
    if total <= 1e-12 * max(features.abs().max().item(), 1e-30):
        return 0.0
    share = values / total
    return float(torch.special.entr(share).sum().exp())
