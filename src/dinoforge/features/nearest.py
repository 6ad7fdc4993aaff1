"""The nearest neighbours of a few images among all.

Axes: G images, D channels, Q images whose neighbours are sought, K neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def nearest(features: Float[Tensor, "G D"], *, queries: int, count: int) -> Int[Tensor, "Q K"]:
    """The ``count`` nearest other rows of each of the first ``queries`` rows by cosine; fewer where there are fewer.

    Of equally near ones the first, so that equal features have equal neighbours.
    """
    x = F.normalize(features.float(), dim=-1)
    asked = x[:queries]
    similarity = asked @ x.T
    similarity = similarity.masked_fill(torch.eye(*similarity.shape, dtype=torch.bool), float("-inf"))
    return similarity.sort(dim=-1, descending=True, stable=True).indices[:, : min(count, len(x) - 1)]
