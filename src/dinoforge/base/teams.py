"""Ranks that are divided into teams, each with something of its own to do."""

from __future__ import annotations

import torch.distributed as torch_dist

from dinoforge.base import dist


def split(count: int) -> tuple[dist.Team, dist.Team]:
    """Divide all ranks into so many teams of neighbours, equally large: this rank's, and those in its place in every team."""
    size = dist.world() // count
    rows = [tuple(range(first, first + size)) for first in range(0, dist.world(), size)]
    teams = [_made(ranks, "words", "files") for ranks in rows]
    columns = [_made(ranks, "words") for ranks in zip(*rows, strict=True)]
    mine, alike = (next(team for team in found if dist.rank() in team.ranks) for found in (teams, columns))
    return mine, alike


def _made(ranks: tuple[int, ...], *spoken: str) -> dist.Team:
    """A team with its groups, which all ranks make together, members or not."""
    if len(ranks) == 1:
        return dist.Team(ranks, {})
    groups = {"tensors": torch_dist.new_group(list(ranks))}
    groups |= {name: torch_dist.new_group(list(ranks), backend="gloo") for name in spoken}
    return dist.Team(ranks, groups if dist.rank() in ranks else {})  # others get what stands for no group
