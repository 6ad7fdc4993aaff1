"""From teacher scores to targets: Sinkhorn-Knopp (SwAV, Caron et al. 2020) and centring (DINO, Caron et al. 2021).

Axes: N rows on this rank, K prototypes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dinoforge.base import dist


@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "N K"], *, temperature: float, rounds: int = 3) -> Float[Tensor, "N K"]:
    """Soft assignment whose rows sum to 1 and which, over all ranks, uses every prototype about equally.

    ``Q = exp(scores / temperature)``; ``rounds`` times, divide every column by its sum over all ranks' rows, then every row
    by its own sum. Works on logarithms: nothing overflows, and no unused prototype divides by zero. A rank may have no row.
    """
    log_q = scores.float() / temperature
    for _ in range(rounds):
        log_q = log_q - dist.all_logsumexp(log_q, dim=0)
        log_q = log_q.log_softmax(dim=1)
    return log_q.exp()


class Centring(nn.Module):
    """``softmax((scores - centre) / temperature)`` with a centre that follows the mean score.

    A batch is centred by what came before it: its own mean enters the centre only afterwards. The mean is that of the
    groups' means, over all ranks, so a group counts the same however many rows it has (for patches, the released code's
    mean over ranks with one group a rank).
    """

    centre: Tensor

    def __init__(self, prototypes: int, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))

    @torch.no_grad()
    def targets(
        self, scores: Float[Tensor, "N K"], *, temperature: float, group: Int[Tensor, " N"], groups: int
    ) -> Float[Tensor, "N K"]:
        """Targets of these rows; the centre moves on.

        Args:
            group: Number of each row's group on this rank, from 0.
            groups: Number of groups on this rank; one without a row has no say.
        """
        scores = scores.float()
        targets = ((scores - self.centre) / temperature).softmax(-1)
        ones = scores.new_zeros(groups).index_add_(0, group, torch.ones_like(scores[:, 0]))
        sums = scores.new_zeros(groups, scores.shape[1]).index_add_(0, group, scores)
        total = dist.all_sum((sums / ones.clamp(min=1).unsqueeze(1)).sum(0))
        count = dist.all_sum((ones > 0).sum())
        moved = self.momentum * self.centre + (1 - self.momentum) * total / count.clamp(min=1)
        self.centre = torch.where(count > 0, moved, self.centre)
        return targets
