"""A set of masks against the classes of a picture: matched one to one, then told what to show and where (Cheng et al. 2022).

Mask2Former's loss (sec. 3.3; matching after DETR, Carion et al. 2020), at points drawn at random instead of on whole masks. In
one thing it differs: points in an ignored region weigh nothing, where the released code (and the copy in ``transformers``)
counts them as background of every mask. With nothing ignored the two agree to rounding.

Axes: B images, Q queries, K classes and N = K + 1 with "no object" last, T classes that a picture shows, Y by X pixels, S by R
places of a predicted mask, P points, M matched masks of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config

Matches = list[tuple[Int[Tensor, " m"], Int[Tensor, " m"]]]
"""For every image its matched queries, and the targets that they are matched with."""


class MaskLossConfig(Config):
    """How masks are compared. The defaults are Mask2Former's, but for the number of points."""

    points: int = Field(default=1024, gt=0)
    """Points at which masks are compared; 12,544 in Mask2Former, whose pictures have 60 times the pixels of ours here."""
    oversample: float = Field(default=3.0, ge=1)
    """Candidates a point."""
    uncertain: float = Field(default=0.75, ge=0, le=1)
    """Share of points that are the candidates nearest to a mask's edge; the others are anywhere."""
    class_weight: float = Field(default=2.0, ge=0)
    """Of the cross-entropy of classes."""
    mask_weight: float = Field(default=5.0, ge=0)
    """Of the binary cross-entropy of masks."""
    dice_weight: float = Field(default=5.0, ge=0)
    """Of the dice loss of masks."""
    no_object: float = Field(default=0.1, ge=0)
    """Weight of unmatched queries in the cross-entropy of classes."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a picture shows."""

    classes: Int[Tensor, " T"]
    masks: Float[Tensor, "T Y X"]
    """1 where a pixel is of the class, else 0."""
    ignored: Float[Tensor, "Y X"]
    """1 where nothing is to be learnt, else 0."""


def mask_target(labels: Int[Tensor, "Y X"], *, ignore: int) -> Target:
    """One mask a class that is there; pixels of the class ``ignore`` belong to none."""
    present = labels.unique()
    classes = present[present != ignore]
    return Target(classes, (labels == classes.view(-1, 1, 1)).float(), (labels == ignore).float())


def mask_loss(
    classes: Float[Tensor, "B Q N"], masks: Float[Tensor, "B Q S R"], targets: Sequence[Target], *, config: MaskLossConfig,
    generator: torch.Generator,
) -> Float[Tensor, ""]:  # fmt: skip
    """Weighted sum of three means: cross-entropy of classes, binary cross-entropy and dice of matched masks.

    Images that show nothing but ignored pixels take no part; if all are such, the loss is 0 and so are its gradients.

    Args:
        classes: Scores before the softmax.
        masks: Scores before the sigmoid, of any size.
        generator: On the processor; of the points.
    """
    known = [row for row, target in enumerate(targets) if len(target.classes)]
    if not known:
        return (classes.sum() + masks.sum()) * 0
    classes, masks, targets = classes[known].float(), masks[known].float(), [targets[row] for row in known]
    matches = [
        match(one, mask, target, config=config, generator=generator)
        for one, mask, target in zip(classes, masks, targets, strict=True)
    ]
    edges, dice = _mask_terms(masks, targets, matches, config=config, generator=generator)
    count = sum(len(target.classes) for target in targets)
    told = _class_term(classes, targets, matches, no_object=config.no_object)
    return config.class_weight * told + (config.mask_weight * edges + config.dice_weight * dice) / count


@torch.no_grad()
def match(
    classes: Float[Tensor, "Q N"], masks: Float[Tensor, "Q S R"], target: Target, *, config: MaskLossConfig,
    generator: torch.Generator,
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:  # fmt: skip
    """The queries and targets of one image, paired so that the sum of their costs is least; min(Q, T) pairs.

    A cost weighs like the loss: minus the probability of the target's class, and cross-entropy and dice of the masks at points
    drawn evenly.
    """
    from scipy.optimize import linear_sum_assignment

    points = torch.rand(1, config.points, 2, generator=generator).to(masks.device)
    weight = _weight(target.ignored[None, None], points)[0, 0]
    said, true = (_at(some[None], points)[0] for some in (masks, target.masks))
    yes, no = (F.softplus(-said) * weight) @ true.T, (F.softplus(said) * weight) @ (1 - true).T
    chance = said.sigmoid() * weight
    sizes = chance.sum(-1, keepdim=True) + (true * weight).sum(-1)
    dice = 1 - (2 * chance @ true.T + 1) / (sizes + 1)
    cost = config.mask_weight * (yes + no) / weight.sum().clamp(min=1) + config.dice_weight * dice
    cost = cost - config.class_weight * classes.softmax(-1)[:, target.classes]
    rows, columns = linear_sum_assignment(cost.nan_to_num(torch.finfo(cost.dtype).max).cpu().numpy())
    return torch.from_numpy(rows).to(masks.device), torch.from_numpy(columns).to(masks.device)


def _mask_terms(
    masks: Float[Tensor, "B Q S R"], targets: Sequence[Target], matches: Matches, *, config: MaskLossConfig,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:  # fmt: skip
    """Binary cross-entropy and dice of all matched masks, summed over them."""
    said = torch.cat([some[queries] for some, (queries, _) in zip(masks, matches, strict=True)]).unsqueeze(1)
    pairs = [(target, order) for target, (_, order) in zip(targets, matches, strict=True)]
    true = torch.cat([target.masks[order] for target, order in pairs]).unsqueeze(1)
    ignored = torch.cat([target.ignored.expand(len(order), -1, -1) for target, order in pairs]).unsqueeze(1)
    points = _points(said.detach(), ignored, config=config, generator=generator)
    weight, x, y = (some[:, 0] for some in (_weight(ignored, points), _at(said, points), _at(true, points)))
    entropy = F.binary_cross_entropy_with_logits(x, y, weight=weight, reduction="none").sum(-1)
    chance = x.sigmoid() * weight
    dice = 1 - (2 * (chance * y).sum(-1) + 1) / (chance.sum(-1) + (y * weight).sum(-1) + 1)
    return (entropy / weight.sum(-1).clamp(min=1)).sum(), dice.sum()


@torch.no_grad()
def _points(
    said: Float[Tensor, "M 1 S R"],
    ignored: Float[Tensor, "M 1 Y X"],
    *,
    config: MaskLossConfig,
    generator: torch.Generator,
) -> Float[Tensor, "M P 2"]:
    """Where each mask is compared: of more candidates those that are least certain and not ignored, and some at random."""
    count, near = len(said), int(config.uncertain * config.points)
    some = torch.rand(count, int(config.points * config.oversample), 2, generator=generator).to(said.device)
    far = _at(said, some).abs()[:, 0].masked_fill(_weight(ignored, some)[:, 0] == 0, float("inf"))
    nearest = far.topk(near, dim=1, largest=False).indices
    rest = torch.rand(count, config.points - near, 2, generator=generator).to(said.device)
    return torch.cat([some.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 2)), rest], dim=1)


def _class_term(
    classes: Float[Tensor, "B Q N"], targets: Sequence[Target], matches: Matches, *, no_object: float
) -> Float[Tensor, ""]:
    """Cross-entropy of every query with the class that it is matched with, else with "no object"."""
    last = classes.shape[-1] - 1
    wanted = classes.new_full(classes.shape[:2], last, dtype=torch.long)
    for row, (target, (queries, order)) in enumerate(zip(targets, matches, strict=True)):
        wanted[row, queries] = target.classes[order].long()
    weight = torch.ones(last + 1, device=classes.device)
    weight[last] = no_object
    return F.cross_entropy(classes.flatten(0, 1), wanted.flatten(), weight=weight)


def _at(maps: Float[Tensor, "A D S R"], points: Float[Tensor, "A P 2"]) -> Float[Tensor, "A D P"]:
    """Maps at points (across, down; 0 to 1), bilinearly; outside of a map is 0."""
    return F.grid_sample(maps, 2 * points.unsqueeze(2) - 1, align_corners=False).squeeze(-1)


def _weight(ignored: Float[Tensor, "A 1 Y X"], points: Float[Tensor, "A P 2"]) -> Float[Tensor, "A 1 P"]:
    """0 where one of the four pixels around a point is ignored, else 1."""
    return (_at(ignored, points) == 0).float()
