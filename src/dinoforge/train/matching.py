"""Distillation from a teacher without heads: the student's class and patch tokens, mapped linearly, against its features.

Both see the very same views, as a consistent teacher should have it (Beyer et al. 2022, "Knowledge distillation: a good teacher
is patient and consistent"). The maps are trained with the student and are no part of the backbone that is handed on.

Axes: V views, B images, H by W patches and N of them, D channels of the student, E of the teacher, Y by X and y by x pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.base import dist
from dinoforge.base.random import torch_generator
from dinoforge.data.batch import Batch
from dinoforge.loss.matching import matching_loss, whitened
from dinoforge.model.features import Features
from dinoforge.train.distil import Distil
from dinoforge.train.plan import Scheduled
from dinoforge.train.step import PLAIN, Compute, Losses, Networks


class Mapped(Networks):
    """A backbone with linear maps to a teacher's width in place of heads; a teacher that is matched has none.

    Args:
        width: Channels of the teacher; null: no maps.
    """

    def __init__(self, backbone: nn.Module, width: int | None, *, seed: int = 0) -> None:
        nn.Module.__init__(self)
        self.backbone = backbone
        if width is None:
            return
        for number, name in enumerate(("image_map", "patch_map")):
            linear = nn.Linear(int(backbone.width), width)  # type: ignore[arg-type]
            nn.init.trunc_normal_(linear.weight, std=0.02, generator=torch_generator(seed, "map", number))
            nn.init.zeros_(linear.bias)
            self.add_module(name, linear)

    @property
    def tops(self) -> list[nn.Module]:
        """The maps."""
        return [module for name, module in self.named_children() if name != "backbone"]

    def mapped(self, seen: Features) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B N E"]]:
        """Class and patch tokens in the teacher's width."""
        image, patches = self.tops
        return image(seen.image), patches(seen.patches.flatten(1, 2))


@dataclass(frozen=True, slots=True)
class Goal:
    """What the student is to come to; no gradient."""

    image: Float[Tensor, "B E"]
    """Of all views, one after another."""
    patches: Float[Tensor, "B N E"]


class Match(Distil):
    """Features of a teacher that stays as it is; no heads, prototypes or local views take part."""

    @torch.no_grad()
    def made(self, parts: Sequence[Batch], at: Scheduled, compute: Compute = PLAIN) -> list[Goal]:
        """The teacher's features of every global view, by part."""
        return [self._goal(part, compute) for part in parts]

    def _goal(self, part: Batch, compute: Compute) -> Goal:
        ours, theirs = self.student.backbone.patch, self.teacher.backbone.patch
        views, images = part.globals.shape[:2]
        shown = resampled(self.looks.mine(part.globals).flatten(0, 1), patch=ours, theirs=theirs)
        with compute:
            seen = self.teacher.backbone(shown)
        image, patches = (
            self.looks.whole(tokens.unflatten(0, (views, -1)), images).flatten(0, 1)
            for tokens in (seen.image, seen.patches.flatten(1, 2))
        )
        return Goal(image, patches)

    def losses(self, batch: Batch, targets: Goal, compute: Compute = PLAIN, gram_weight: float = 0.0) -> Losses:  # type: ignore[override]
        """The student's part, for all of a logical batch or for some of its groups: of a batch the mean over equal parts."""
        assert isinstance(self.student, Mapped)
        config = self.how.matching
        assert config is not None
        with compute:
            (seen,) = self.student.backbone([self._inputs(batch, "global")])
            image, patches = self.student.mapped(seen)
        terms = {
            "match_image": matching_loss(image, targets.image, config=config),
            "match_patches": matching_loss(patches, targets.patches, config=config),
        }
        total = config.image_weight * terms["match_image"] + config.patch_weight * terms["match_patches"]
        return Losses(total=total, terms={name: term.detach() for name, term in (terms | {"total": total}).items()})

    @torch.no_grad()
    def vitals(self, share: Sequence[Batch], targets: Sequence[Goal]) -> dict[str, Tensor]:  # type: ignore[override]
        """``target_spread``: the variance of whitened tokens over the batch, as a share of their mean square.

        With ``z`` these tokens ``[n, E]`` and ``m`` their mean, ``1 - |m|^2 / mean(|z|^2)``: 0 where all are the same. Those
        of classes, or of patches where these alone are matched.
        """
        config = self.how.matching
        assert config is not None
        tokens = torch.cat([
            whitened(goal.image if config.image_weight else goal.patches.flatten(0, 1)) for goal in targets
        ])  # fmt: skip
        sums = torch.cat([tokens.sum(0), tokens.square().sum().view(1), tokens.new_tensor([float(len(tokens))])])
        *_, square, n = sums = dist.all_sum(sums)
        return {"target_spread": 1 - (sums[:-2] / n).square().sum() / (square / n).clamp(min=1e-12)}


def resampled(views: Float[Tensor, "V C Y X"], *, patch: int, theirs: int) -> Float[Tensor, "V C y x"]:
    """Views of such a size that a teacher's patches lie on the student's grid: patch by patch both speak of the same place.

    (As DINOv3 means it for its convolutional students: the teacher gets the view reduced, not its features.)

    Args:
        patch: Side of the student's patches in pixels.
        theirs: Of the teacher's.
    """
    if patch == theirs:
        return views
    size = [side // patch * theirs for side in views.shape[-2:]]
    return F.interpolate(views, size=size, mode="bicubic", antialias=True)
