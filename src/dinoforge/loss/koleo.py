"""KoLeo: spread features out by pushing each away from its nearest neighbour (Sablayrolles et al. 2019, eq. 3).

Axes: B images, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPS = 1e-8


def koleo_loss(x: Float[Tensor, "B D"], *, group: int) -> Float[Tensor, ""]:
    """``-mean(log(distance to the nearest neighbour))`` on the unit sphere; neighbours are sought inside groups only.

    Computed in float32, where two equal images cost a finite ``-log(sqrt(D) 1e-8 + 1e-8)``; in half precision both
    constants vanish and the loss becomes infinite.

    Args:
        x: Features of one view of every image, any float dtype; neighbouring rows form a group.
        group: Images a group.

    Raises:
        ValueError: The rows do not make whole groups, or a group has no second image.
    """
    if group < 2 or len(x) % group:
        raise ValueError(f"koleo_loss takes whole groups of at least 2 rows; got {len(x)} rows in groups of {group}.")
    unit = F.normalize(x.float(), eps=EPS, dim=-1).unflatten(0, (-1, group))
    with torch.no_grad():
        similarity = unit @ unit.transpose(1, 2)
        similarity.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
        nearest = similarity.argmax(-1)
    neighbour = unit.gather(1, nearest.unsqueeze(-1).expand_as(unit))
    distance = (unit - neighbour + EPS).norm(dim=-1)
    return -(distance + EPS).log().mean()
