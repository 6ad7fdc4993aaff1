"""Several students of one teacher on several ranks: each team of ranks trains its own on the whole batch, and the teacher looks
at every image once (DINOv3, Siméoni et al. 2025, sec. 5.2).

Ranks in the same place of their teams have the same images. Each shows the teacher its part of them and has the others' parts
told: class and patch tokens as they leave the bottleneck, or the backbone where features are matched. What follows (prototypes,
balancing over the batch) is each team's own.

Axes: V views, B images, b of them that this rank shows the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dinoforge.base import dist
from dinoforge.train.distil import Shared
from dinoforge.train.observe import Stop


class Exchange(Shared):
    """What one teacher makes of a batch, for students of this rank and of the ranks that have the same images.

    Teams go their own pace where they must: one that went back to a checkpoint, or whose share comes in other parts or in
    another precision, has the teacher look for itself alone, and those ahead wait for it.

    Args:
        alike: The ranks in this one's place in every team.
        stop: Told when one of them was asked to stop: then all do.
    """

    def __init__(self, alike: dist.Team, stop: Stop) -> None:
        super().__init__()
        self.alike, self.stop, self.divided = alike, stop, False

    def once(self, key: Any, make: Callable[[], list[Any]]) -> list[Any]:
        """As for one process; made together by those that ask for the same."""
        if key != self._key:
            self.divided = self._meet(key)
        return super().once(key, make)

    def leave(self) -> None:
        """Say that this rank asks for nothing more, until nobody does."""
        while any(said is not None for said in self._say(None)):
            pass

    def mine(self, views: Tensor) -> Tensor:
        """This rank's part ``[V, b, ...]`` of ``[V, B, ...]``: equally many images on each, the first ones again at the end."""
        if not self.divided:
            return views
        images = views.shape[1]
        each = -(-images // len(self.alike.ranks))
        place = self.alike.ranks.index(dist.rank_of_all())
        return views[:, torch.arange(place * each, (place + 1) * each, device=views.device) % images]

    def whole(self, found: Tensor, images: int) -> Tensor:
        """All ranks' parts ``[V, B, ...]`` of what each has found ``[V, b, ...]``."""
        if not self.divided:
            return found
        with dist.within(self.alike):
            return torch.cat(dist.every(found), 1)[:, :images]

    def _meet(self, key: Any) -> bool:
        """Whether all ask for the same; those that ask for a later batch wait until nobody asks for an earlier one."""
        while True:
            said = [other for other in self._say(key) if other is not None]
            if min(map(_place, said)) == _place(key):
                return len(said) == len(self.alike.ranks) and all(other == key for other in said)

    def _say(self, key: Any) -> list[Any]:
        with dist.within(self.alike):
            told = dist.gather((key, self.stop.signalled or self.stop.elsewhere))
        self.stop.elsewhere = any(asked for _, asked in told)
        return [said for said, _ in told]


def _place(key: Any) -> int:
    """Of a batch in the run, by its first group."""
    parts, *_ = key
    return int(parts[0][0])
