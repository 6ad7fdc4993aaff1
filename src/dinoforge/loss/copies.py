"""The loss of the copy descriptor SSCD (Pizzi et al. 2022, sec. 3): two views of an image attract, all others repel.

InfoNCE between views (SimCLR, Chen et al. 2020) tells copies from others; the entropy term, KoLeo over the nearest image of
another origin (Sablayrolles et al. 2019), spreads descriptors, so that one threshold fits everywhere.

Axes: B images, D channels of a descriptor; G groups of g images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config

_LEAST = 1e-6
"""Added to the denominator of InfoNCE, and the least squared distance of the entropy term."""


class CopyConfig(Config):
    """How copies are learnt."""

    temperature: float = Field(default=0.05, gt=0)
    """Of similarities, as published."""
    entropy: float = Field(default=10.0, ge=0)
    """Weight λ of the entropy term: 30 as published, 10 is the authors' advice for a new set-up."""


@dataclass(frozen=True, slots=True)
class CopyLosses:
    """Both terms, not yet weighted."""

    contrast: Float[Tensor, ""]
    entropy: Float[Tensor, ""]


def copy_loss(views: Float[Tensor, "2 B D"], *, group: int, config: CopyConfig) -> CopyLosses:
    """Both terms, in float32, means over all views.

    Args:
        views: Features of two views of every image; neighbouring images form a group.
        group: Images a group: those outside of it are no negatives, so that results depend on no split of the batch. The
            published batch is one group of 4,096.

    Raises:
        ValueError: The images do not make whole groups, or a group has no second image.
    """
    images = views.shape[1]
    if group < 2 or images % group:
        raise ValueError(f"copy_loss takes whole groups of at least 2 images; got {images} in groups of {group}.")
    x = F.normalize(views.float(), dim=-1).unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 2)  # G 2g D
    similarity = x @ x.transpose(1, 2)
    origin = torch.arange(2 * group, device=x.device) % group
    same = origin[:, None] == origin
    other = similarity.masked_fill(same, float("-inf"))
    partner = torch.arange(2 * group, device=x.device).roll(group).expand(len(x), -1)
    positive = similarity.gather(2, partner[..., None]) / config.temperature
    least = torch.full_like(positive, math.log(_LEAST))
    denominator = torch.cat([positive, other / config.temperature, least], dim=2).logsumexp(dim=2)
    distance = (2 - 2 * other.amax(dim=2)).clamp(min=_LEAST).sqrt()
    return CopyLosses((denominator - positive[..., 0]).mean(), -distance.log().mean())
