"""Teams of ranks: inside of one the others are not there."""

import pytest
import torch
from torch.distributed.tensor import Shard, distribute_tensor

from dinoforge.base import dist
from dinoforge.base.errors import DataError
from dinoforge.base.teams import split
from ranks import on_ranks

several = pytest.mark.dist


@several
def test_within_a_team_the_others_are_not_there():
    """Four ranks in two teams of neighbours: everything is about two, and groups of both kinds work at the same time."""

    def work():
        team, alike = split(2)
        everyone = dist.rank()
        with dist.within(team):
            value = torch.tensor([float(everyone)])
            told = (
                (dist.rank(), dist.world(), dist.active()), dist.gather(everyone), dist.tell(everyone), dist.counts(everyone),
                dist.all_sum(value).item(), [part.item() for part in dist.every(value)], dist.leading(lambda: everyone),
                dist.all_logsumexp(torch.tensor([[float(everyone)]]), dim=0).item(),
            )  # fmt: skip
            mesh = dist.mesh("cpu")
            spread = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)], src_data_rank=None)
            told = (*told, dist.local(spread).tolist(), dist.whole(spread).tolist())
            with dist.within(alike):
                across = dist.gather(everyone)
            with pytest.raises(DataError) as caught:
                dist.together(lambda: failing(everyone))
        return team.ranks, alike.ranks, told, across, caught.value.rank, (dist.rank(), dist.world())

    def failing(everyone):
        if everyone % 2:
            raise DataError("No images.")

    for number, (team, alike, told, across, failed, after) in enumerate(on_ranks(4, work)):
        first = number // 2 * 2
        both = torch.tensor([float(first), first + 1.0])
        assert team == (first, first + 1)
        assert alike == (number % 2, number % 2 + 2)
        assert told[:-3] == (
            (number % 2, 2, True), [first, first + 1], first, [2 * first + 1], 2 * first + 1.0, [first, first + 1], first
        )  # fmt: skip
        assert told[-3] == pytest.approx(both.logsumexp(0).item())
        assert told[-2:] == ([[0.0, 1.0], [2.0, 3.0]][number % 2], [0.0, 1.0, 2.0, 3.0])
        assert across == [number % 2, number % 2 + 2]
        assert failed == 1
        assert after == (number, 4)


@several
def test_a_team_of_one_is_alone():
    def work():
        team, alike = split(2)
        with dist.within(team):
            found = dist.rank(), dist.world(), dist.active(), dist.gather("x"), dist.files()
        return found, alike.ranks

    assert on_ranks(2, work) == [((0, 1, False, ["x"], None), (0, 1))] * 2


def test_one_process_is_one_team():
    team, alike = split(1)
    assert team.ranks == alike.ranks == (0,)
    with dist.within(team):
        assert (dist.rank(), dist.world(), dist.active()) == (0, 1, False)
