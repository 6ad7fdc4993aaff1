"""Signs of life of a step, few numbers taken every tenth time: are the targets telling, does the teacher live?

Axes: n images of a sample, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinoforge.base import dist
from dinoforge.data.batch import Batch
from dinoforge.loss.targets import Targets

EVERY = 10
"""Steps from one look to the next."""
_IMAGES = 32
"""About so many images of the logical batch are looked at."""
_ENTRIES = 65_536
"""About so many of the teacher's entries, on all ranks together, are looked at to see whether it moves."""


@torch.no_grad()
def of_targets(share: Sequence[Batch], targets: Sequence[Targets], *, group: int) -> dict[str, Tensor]:
    """What the teacher's targets tell about images, from those of some images' first view.

    With ``p`` the targets ``[n, K]`` of the sample on all ranks, ``m`` their mean and ``H`` the entropy in nats::

        teacher_entropy    = mean(H(p)) / log(K)         1: every prototype alike, 0: one prototype for each image
        prototype_use      = exp(H(m)) / K               effective number of prototypes in the sample, as a share
        target_information = (H(m) - mean(H(p))) / log(n)    0: all images have the same target, 1: each its own

    The last is the mutual information of image and prototype: it vanishes in either kind of collapse, that to the uniform
    distribution and that to one prototype (DINO, Caron et al. 2021, sec. 5.3). The sample is the same however the batch is
    split.

    Args:
        share: This rank's parts of the batch.
        group: Images of a group.
    """
    groups = dist.world() * sum(len(part.groups) for part in share)
    stride, take = math.ceil(groups / _IMAGES), min(group, math.ceil(_IMAGES / groups))
    rows = []
    for part, target in zip(share, targets, strict=True):
        for place, number in enumerate(part.groups):
            if number % groups % stride == 0:
                first = target.images.part(slice(place * group, place * group + take))
                rows.append(first.rows()[0])
    column = targets[0].images.column
    p = torch.cat(rows) if rows else column.new_zeros(0, len(column))
    sums = dist.all_sum(torch.cat([p.sum(0), torch.special.entr(p).sum().view(1), p.new_tensor([float(len(p))])]))
    n, own = sums[-1], sums[-2] / sums[-1]
    mixed = torch.special.entr(sums[:-2] / n).sum()
    return {
        "teacher_entropy": own / math.log(max(len(column), 2)),
        "prototype_use": mixed.exp() / len(column),
        "target_information": (mixed - own) / n.clamp(min=2).log(),
    }


class Pulse:
    """Whether the teacher is another than the student, and moves."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.student, self.teacher = student, teacher
        self._before: list[Tensor] = _sample(teacher)
        pairs = zip(_locals(student), _locals(teacher), strict=True)
        self.aliased = any(mine.numel() > 0 and mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)
        """Whether they share memory."""

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """``teacher_distance``, from the student, relative to its length; ``teacher_moved``, entries of a sample that have
        changed since the last call."""
        now = _sample(self.teacher)
        changed = torch.stack([(a != b).sum() for a, b in zip(now, self._before, strict=True)]).sum()
        self._before = now
        # One tensor at a time: all differences together would be a third network.
        squares = [
            torch.stack([(mine - theirs).square().sum(), theirs.square().sum()])
            for mine, theirs in zip(_locals(self.teacher), _locals(self.student), strict=True)
        ]
        between, length, changed = dist.all_sum(torch.cat([torch.stack(squares).sum(0), changed.view(1)]))
        return {"teacher_distance": (between / length.clamp(min=1e-30)).sqrt(), "teacher_moved": changed}


def _locals(module: nn.Module) -> list[Tensor]:
    return [dist.local(parameter.detach()) for parameter in module.parameters()]


def _sample(module: nn.Module) -> list[Tensor]:
    """A copy of every so many entries of every tensor, of each at least one.

    Of all, for some may stand still in a sound run: prototypes that are frozen at first, a head whose loss weighs nothing.
    """
    parameters = [parameter.detach() for parameter in module.parameters()]
    stride = math.ceil(sum(parameter.numel() for parameter in parameters) / _ENTRIES)  # of whole tensors, on any rank
    return [dist.local(parameter).flatten()[::stride].clone() for parameter in parameters]
