"""From teacher scores to targets: Sinkhorn-Knopp (SwAV, Caron et al. 2020) and centring (DINO, Caron et al. 2021).

Both give probabilities ``softmax(score / temperature - column)``: all that is kept of them is one number a prototype.

Axes: N rows on this rank, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from dinoforge.base import dist
from dinoforge.loss.scores import Assignment, Scores, pieces


@dataclass(frozen=True, slots=True)
class Targets:
    """What the student is to predict of a batch with G global views of B images and M patches; no gradient."""

    images: Assignment
    """``[G, B, K]``"""
    patches: Assignment
    """``[M, P]``"""


@torch.no_grad()
def sinkhorn(scores: Scores, *, temperature: float, rounds: int = 3) -> Assignment:
    """Soft assignment whose rows sum to 1 and which, over all ranks, uses every prototype about equally.

    ``Q = exp(scores / temperature)``; ``rounds`` times, divide every column by its sum over all ranks' rows, then every row
    by its own sum. Works on logarithms: nothing overflows, and no unused prototype divides by zero. A rank may have no row.

    Args:
        scores: ``[N, K]``.
    """
    logits = scores.over(temperature)
    column = torch.full((logits.count,), float("-inf"), device=logits.vectors.device)
    for block in map(logits.rows, logits.blocks()):
        for part in pieces(block):
            column = torch.logaddexp(column, block[part].float().logsumexp(0))
    column = dist.all_logsumexp(column.unsqueeze(0), dim=0).squeeze(0)
    for _ in range(1, rounds):
        # Rows divided by their sums, then columns by theirs. No sum vanishes: before its rows were divided, by at most K each,
        # a column summed to 1.
        sums = torch.zeros_like(column)
        for block in map(logits.rows, logits.blocks()):
            for part in pieces(block):
                sums += (block[part] - column).softmax(-1).sum(0)
        column = column + dist.all_sum(sums).log()
    return Assignment(logits, column)


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
    def targets(self, scores: Scores, *, temperature: float, group: Int[Tensor, " N"], groups: int) -> Assignment:
        """Targets of these rows; the centre moves on.

        Args:
            scores: ``[N, K]``.
            group: Number of each row's group on this rank, from 0.
            groups: Number of groups on this rank; one without a row has no say.
        """
        logits, column = scores.over(temperature), self.centre / temperature
        sums = column.new_zeros(groups, len(column))
        for part in logits.blocks():
            sums.index_add_(0, group[part], logits.rows(part).float())
        ones = column.new_zeros(groups).index_add_(0, group, column.new_ones(len(group)))
        total = dist.all_sum((sums * temperature / ones.clamp(min=1).unsqueeze(1)).sum(0))
        count = dist.all_sum((ones > 0).sum())
        moved = self.momentum * self.centre + (1 - self.momentum) * total / count.clamp(min=1)
        # A batch whose scores are not finite would ruin the centre for good; the step itself is left out by the guard.
        self.centre = torch.where((count > 0) & moved.isfinite().all(), moved, self.centre)
        return Assignment(logits, column)
