"""Which patches of two images belong together: mutual nearest neighbours, the salient ones, far enough apart to be read.

The qualitative matching of DINOv2 (sec. 7.5) solves an assignment problem; mutual neighbours need none, and leave out what has
no partner.

Axes: H by W patches of the first image, h by w of the second, D channels, n matches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.features.parts import foreground


class MatchConfig(Config):
    """Which matches are shown."""

    matches: int = Field(default=16, gt=0)
    """At most so many, the most salient first."""
    radius: float = Field(default=1.5, ge=0)
    """A match is dropped where a more salient one lies this near, in patches, in either image (non-maximum suppression)."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of patches, most salient first; positions are (row, column)."""

    first: Int[Tensor, "n 2"]
    second: Int[Tensor, "n 2"]
    similarity: Float[Tensor, " n"]
    """Cosine."""
    salience: Float[Tensor, " n"]
    """By how much the cosine is above that of the best other place, not beside it, in either image."""


def match(
    first: Float[Tensor, "H W D"], second: Float[Tensor, "h w D"], *, config: MatchConfig | None = None
) -> Matches:
    """Patches that are each other's nearest neighbour by cosine, both in the foreground where there is one.

    Patches within ``radius`` of a partner look like it and say nothing against it, so they do not count as its rivals.
    """
    settings = config or MatchConfig()
    grids = (first.shape[:2], second.shape[:2])
    places = [_places(grid) for grid in grids]
    similarity = F.normalize(first.float().flatten(0, 1), dim=-1) @ F.normalize(second.float().flatten(0, 1), dim=-1).T
    there, back = similarity.max(1), similarity.max(0)
    rows = torch.arange(len(similarity))
    mutual = back.indices[there.indices] == rows
    front = [part.flatten() for part in _foregrounds(first, second)]
    one = (mutual & front[0] & front[1][there.indices]).nonzero().flatten()
    two = there.indices[one]
    best = similarity[one, two]
    rival = torch.maximum(
        _best_elsewhere(similarity[one], places[1], two, radius=settings.radius),
        _best_elsewhere(similarity.T[two], places[0], one, radius=settings.radius),
    )
    salience = best - rival
    order = salience.argsort(descending=True, stable=True)
    kept = _apart(places[0][one[order]], places[1][two[order]], settings)
    chosen = order[kept]
    return Matches(places[0][one[chosen]], places[1][two[chosen]], best[chosen], salience[chosen])


def _places(grid: torch.Size) -> Int[Tensor, "n 2"]:
    return torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2)


def _foregrounds(
    first: Float[Tensor, "H W D"], second: Float[Tensor, "h w D"]
) -> tuple[Bool[Tensor, "H W"], Bool[Tensor, "h w"]]:
    """The foreground of the two together; everything where either has none."""
    if first.shape == second.shape:
        both = foreground(torch.stack([first, second]))
        one, two = both[0], both[1]
    else:
        one, two = foreground(first.unsqueeze(0))[0], foreground(second.unsqueeze(0))[0]
    if one.any() and two.any():
        return one, two
    return torch.ones_like(one), torch.ones_like(two)


def _best_elsewhere(
    similarity: Float[Tensor, "n N"], places: Int[Tensor, "N 2"], partner: Int[Tensor, " n"], *, radius: float
) -> Float[Tensor, " n"]:
    """The largest similarity of each row away from its partner; -1, the smallest cosine, where nothing is away."""
    near = torch.cdist(places[partner].float(), places.float()) <= radius
    return similarity.masked_fill(near, -1.0).amax(1)


def _apart(first: Int[Tensor, "n 2"], second: Int[Tensor, "n 2"], settings: MatchConfig) -> Int[Tensor, " m"]:
    """Which of the matches, best first, stay when each silences those near it."""
    kept: list[int] = []
    for number in range(len(first)):
        if len(kept) == settings.matches:
            break
        gaps = [torch.linalg.vector_norm((side[kept] - side[number]).float(), dim=1) for side in (first, second)]
        if not kept or min(gap.min().item() for gap in gaps) > settings.radius:
            kept.append(number)
    return torch.tensor(kept, dtype=torch.long)
