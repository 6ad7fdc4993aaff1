"""The largest numbers of each row, whose order does not depend on how they were found.

Axes: B rows, N numbers of a row, k of them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def largest(values: Float[Tensor, "B N"], *, count: int) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """The largest so many numbers of each row, or all where there are fewer, and their places; the largest first.

    Of equal ones those come first, and are kept, that stand first: what a stable sort of the whole row would give, where
    ``torch.topk`` keeps any of them in any order. Little more than it takes unless there are ties.
    """
    count = min(count, values.shape[1])
    found, place = values.topk(min(count + 1, values.shape[1]), dim=-1)  # one more tells whether a tie was cut
    equal = found[:, 1:] == found[:, :-1]
    cut, tied = (some.any(1).nonzero()[:, 0] for some in (equal[:, count - 1 :], equal))
    found, place = found[:, :count], place[:, :count]
    if len(cut):
        place[cut] = _first(values[cut], found[cut, -1:], count=count)
    if len(tied):
        rising = place[tied].sort(dim=-1).values
        found[tied], order = values[tied].gather(1, rising).sort(dim=-1, descending=True, stable=True)
        place[tied] = rising.gather(1, order)
    return found, place


def _first(values: Float[Tensor, "B N"], least: Float[Tensor, "B 1"], *, count: int) -> Int[Tensor, "B k"]:
    """Places, in any order, of the numbers above the least that is kept and of the first of those that equal it."""
    wide = values.shape[1]
    before = torch.arange(wide, 0, -1, dtype=torch.int32, device=values.device)  # all keys differ: topk has no choice
    keys = torch.where(values > least, before + wide, torch.where(values == least, before, 0))
    return keys.topk(count, dim=-1).indices
