"""What is drawn per group of images: the samples of each residual branch (stochastic depth), the scale of coordinates.

Rows are view-major: row ``v * images + i`` is view v of image i. A group's draw depends on nothing but its own number, so any
split of a batch into groups, over steps of accumulation or over ranks, sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dinoforge.model.features import Subset
from dinoforge.model.layers import subset_rows


def draw_subsets(
    generators: Sequence[torch.Generator], *, rates: Sequence[float], views: int, images: int
) -> list[tuple[Subset, Subset]]:
    """For every block, the rows that get its attention branch and those that get its MLP branch.

    A group of ``g`` images has ``views * g`` rows, of which ``max(int(views * g * (1 - rate)), 1)`` are kept, by a fresh
    permutation for each branch; the branch is scaled by rows / kept, so its expectation is unchanged.

    Args:
        generators: One a group, in the order of the groups in the batch.
        rates: Drop rate of each block.
    """
    group = images // len(generators)
    rows = views * group
    # Row of the group's k-th sample in the batch, but for the group's own offset.
    place = torch.arange(views).repeat_interleave(group) * images + torch.arange(group).repeat(views)
    orders = [torch.rand(len(rates), 2, rows, generator=generator).argsort(dim=-1) for generator in generators]
    subsets = []
    for block, rate in enumerate(rates):
        kept = subset_rows(rows, rate)
        branches = []
        for branch in range(2):
            index = torch.cat(
                [place[order[block, branch, :kept]] + number * group for number, order in enumerate(orders)]
            )
            branches.append(Subset(index=index, scale=rows / kept))
        subsets.append((branches[0], branches[1]))
    return subsets


def draw_rescale(
    generators: Sequence[torch.Generator], *, largest: float, views: int, images: int
) -> Float[Tensor, " rows"]:
    """For every row a factor on its patches' coordinates, log-uniform from ``1 / largest`` to ``largest``.

    All views of a group share it, and so do all blocks. DINOv3 draws it in every block, for all images on a device; a draw a
    group is ours, so that no number of devices changes it.

    Args:
        generators: One a group, in the order of the groups in the batch.
    """
    exponents = torch.cat([2 * torch.rand(1, generator=generator) - 1 for generator in generators])
    return (largest**exponents).repeat_interleave(images // len(generators)).repeat(views)
