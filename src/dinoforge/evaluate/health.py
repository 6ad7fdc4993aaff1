"""How healthy features are, without labels.

Axes: N images, D channels, B images with patches, H by W patches, Q images whose neighbours are sought, k neighbours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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


def uniformity(features: Float[Tensor, "N D"], *, rows_at_once: int = 512) -> float:
    """How evenly features lie on the unit sphere, lower is more even (Wang & Isola 2020, eq. 2, with t = 2).

    ``log(mean(exp(-2 * |x - y|**2)))`` over all pairs of different rows, of features of length 1 (zeros stay zeros). 0 where
    all point the same way (or there is no pair); never below ``-4 N / (N - 1)``, which corners of a regular simplex have.

    Args:
        rows_at_once: Compared with all in one go; bounds memory, changes nothing beyond rounding.
    """
    x = F.normalize(features.double(), dim=-1)
    count, total = len(x), 0.0
    if count < 2:
        return 0.0
    squares = x.square().sum(-1)
    for start in range(0, count, rows_at_once):
        some, rest = slice(start, start + rows_at_once), slice(start, None)
        distance = (squares[some, None] + squares[None, rest] - 2 * x[some] @ x[rest].T).clamp(min=0)
        total += (-2 * distance).exp().triu(1).sum().item()  # each pair once, none with itself
    return math.log(total / (count * (count - 1) / 2))


def smoothness(patches: Float[Tensor, "B H W D"]) -> float:
    """How much more alike neighbouring patches of an image are than any two of its patches; the mean of the images.

    With c the cosine of two patch features, and P = H W patches::

        mean(c(p, q) for q right of or below p) - mean(c(p, q) for all p != q)

    0 for a map of one value, as a collapse leaves, and on average for noise; above 0 where the map has parts. At most
    1 + 1 / (P - 1); a chessboard of opposite features comes to -1 + 1 / (P - 1) for even P. 0 where there is one patch.
    """
    _, high, wide, _ = patches.shape
    count = high * wide
    if count < 2:
        return 0.0
    x = F.normalize(patches.double(), dim=-1)
    right, below = (x[:, :, 1:] * x[:, :, :-1]).sum(-1), (x[:, 1:] * x[:, :-1]).sum(-1)
    near = torch.cat([right.flatten(1), below.flatten(1)], dim=1).mean(1)
    # The square of a sum holds every pair twice and every patch with itself.
    pairs = x.sum((1, 2)).square().sum(-1) - x.square().sum((1, 2, 3))
    return float((near - pairs / (count * (count - 1))).mean())


def neighbour_stability(before: Int[Tensor, "Q k"], after: Int[Tensor, "Q k"]) -> float:
    """Share of the neighbours of the same Q rows that two looks have in common; their order among the k does not count.

    1 where nothing changes, 0 where no neighbour stays; of random neighbours among N rows about ``k / (N - 1)`` stay.

    Args:
        before: Numbers of the neighbours, each once a row.
    """
    if not before.numel():
        return 1.0
    return float((before[:, :, None] == after[:, None, :]).any(-1).double().mean())
