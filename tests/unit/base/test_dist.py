"""Ranks: alone everything is the identity; several are compared with plain definitions, and none waits for one that is gone."""

import os
import signal
import time

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, DataError, RankLost, RunError
from ranks import Ranks, on_ranks
from tiny import made

WORLD = 3
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
several = pytest.mark.dist


@pytest.fixture
def alone(monkeypatch):
    """No variable of torchrun's is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_alone_everything_is_the_identity():
    tensor, word = made(3, 2), object()
    with dist.joined():
        assert not dist.launched()
        assert not dist.active()
        assert (dist.rank(), dist.world(), dist.local_rank(), dist.local_world()) == (0, 1, 0, 1)
        assert dist.files() is None
        assert dist.gather(word) == [word]
        assert dist.tell(word) is word
        assert dist.counts(3, 4) == [3, 4]
        assert dist.together(lambda: word) is word
        assert dist.leading(lambda: word) is word
        for same in (dist.all_sum, dist.all_mean, dist.local, dist.whole):
            assert same(tensor) is tensor
        for dim in (0, 1, -1):
            assert torch.equal(dist.all_logsumexp(tensor, dim=dim), tensor.logsumexp(dim, keepdim=True))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("ask", [dist.together, dist.leading])
def test_alone_an_error_passes_as_it_is(ask):
    error = DataError("No images.")

    def work():
        raise error

    with pytest.raises(DataError) as found:
        ask(work)
    assert found.value is error
    assert error.rank is None


def on_each(world, work):
    """What each rank returned or, having joined, raised, and how many seconds it took."""

    def tried():
        began = time.monotonic()
        try:
            with dist.joined():
                answer = work()
        except Exception as error:
            answer = error
        return answer, time.monotonic() - began

    return Ranks(world, tried).answers()


@several
def test_ranks_know_themselves_and_hear_each_other():
    def work():
        mine = dist.rank()
        return {
            "who": (mine, dist.world(), dist.local_rank(), dist.local_world()),
            "active": (dist.launched(), dist.active(), dist.files() is not None),
            "gather": dist.gather({"rank": mine, "text": "x" * 1000 * mine}),
            "tell": dist.tell(f"from {mine}"),
            "counts": dist.counts(mine, 10, -(2**40) * mine),
            "together": dist.together(lambda: mine),
        }

    for rank, found in enumerate(on_ranks(WORLD, work)):
        assert found == {
            "who": (rank, WORLD, rank, WORLD),
            "active": (True, True, True),
            "gather": [{"rank": other, "text": "x" * 1000 * other} for other in range(WORLD)],
            "tell": "from 0",
            "counts": [3, 30, -3 * 2**40],
            "together": rank,
        }


@several
def test_sums_and_means_over_ranks():
    values = made(WORLD, 4, 2)

    def work():
        mine = values[dist.rank()].clone().requires_grad_()
        total, mean = dist.all_sum(mine), dist.all_mean(mine)
        return total, mean, total.requires_grad or mean.requires_grad, torch.equal(mine, values[dist.rank()])

    for total, mean, gradient, untouched in on_ranks(WORLD, work):
        torch.testing.assert_close(total, values.sum(0))
        torch.testing.assert_close(mean, values.mean(0))
        assert not gradient
        assert untouched


@several
def test_logsumexp_over_the_rows_of_all_ranks():
    """Worked out in float64 from the rows of all: usual ones, and such as overflow or vanish when taken to the exponential."""
    infinity = float("inf")
    rows = {
        "usual": (made(7, 5), (2, 3, 2)),
        "first without a row": (made(5, 5), (0, 3, 2)),
        "last without a row": (made(5, 5), (3, 2, 0)),
        "one row in all": (made(1, 5), (0, 1, 0)),
        "large": (made(6, 5) * 1e3 + 1e5, (2, 2, 2)),
        "small": (made(6, 5) * 1e3 - 1e5, (2, 2, 2)),
        "far apart": (torch.tensor([[-1e30, 1e30, -3e38], [1e30, 1e30, -3e38], [0.0, -1e30, -3e38]]), (1, 1, 1)),
        "never": (torch.tensor([[-infinity, 0.0], [-infinity, -infinity], [-infinity, 1.0]]), (1, 1, 1)),
        "none at all": (made(0, 5), (0, 0, 0)),
    }

    def work():
        mine = {name: value.split(list(lengths))[dist.rank()] for name, (value, lengths) in rows.items()}
        return [{name: dist.all_logsumexp(value, dim=dim) for name, value in mine.items()} for dim in (0, -2)]

    for answers in on_ranks(WORLD, work):
        for found in answers:
            for name, (value, _) in rows.items():
                want = value.double().logsumexp(0, keepdim=True).float()
                torch.testing.assert_close(found[name], want, rtol=1e-6, atol=1e-5, msg=name)


@several
def test_a_tensor_spread_over_ranks_is_a_part_here_and_whole_everywhere():
    tensor = made(7, 2)

    def work():
        spread = distribute_tensor(tensor, init_device_mesh("cpu", (dist.world(),)), [Shard(0)])
        return dist.local(spread), dist.whole(spread), dist.local(tensor) is tensor, dist.whole(tensor) is tensor

    found = on_ranks(WORLD, work)
    assert torch.equal(torch.cat([part for part, *_ in found]), tensor)
    for _, whole, *same in found:
        assert torch.equal(whole, tensor)
        assert same == [True, True]


@several
@pytest.mark.parametrize(("failing", "named"), [((1,), 1), ((2, 1), 1), ((0, 1, 2), 0)])
def test_the_error_of_one_is_the_error_of_all(failing, named):
    """Every rank raises what the lowest that failed did, and can go on talking to the others."""

    def work():
        mine = dist.rank()

        def fails():
            if mine in failing:
                raise DataError(f"No images on {mine}.")

        try:
            dist.together(fails)
        except DataError as error:
            return type(error), str(error), error.rank, dist.counts(1)

    assert on_ranks(WORLD, work) == [(DataError, f"No images on {named}.", named, [WORLD])] * WORLD


@several
def test_the_first_rank_leads(tmp_path):
    def work():
        def leads():
            (tmp_path / f"by{dist.rank()}").touch()
            return [dist.rank(), "done"]

        def fails():
            raise RunError(f"Cannot write, says {dist.rank()}.")

        answer = dist.leading(leads)
        try:
            dist.leading(fails)
        except RunError as error:
            return answer, str(error), error.rank

    assert on_ranks(WORLD, work) == [([0, "done"], "Cannot write, says 0.", 0)] * WORLD
    assert [path.name for path in tmp_path.iterdir()] == ["by0"]


@several
@pytest.mark.parametrize("ask", [dist.together, dist.leading])
def test_a_mistake_of_ours_is_not_swallowed(ask):
    """It is raised where it happened, and the others do not wait for that rank."""

    def work():
        ask(lambda: 1 // dist.rank())

    (error, _), *others = on_each(WORLD, work)
    assert type(error) is ZeroDivisionError
    for other, seconds in others:
        assert type(other) is RankLost
        assert seconds < 30


@several
def test_one_rank_computes_apart_while_the_others_do_nothing():
    tensor = made(3, 2)

    def work():
        answer = None
        if dist.rank() == 1:
            with dist.apart():
                with dist.apart():
                    nested = dist.active()
                assert not dist.active()
                assert torch.equal(dist.all_logsumexp(tensor, dim=0), tensor.logsumexp(0, keepdim=True))
                assert dist.all_sum(tensor) is tensor
                assert dist.all_mean(tensor) is tensor
                assert dist.leading(lambda: "mine") == dist.tell("mine") == "mine"
                answer = nested, dist.world(), dist.gather(7), dist.counts(7)
        return answer, dist.active(), dist.counts(1)

    found = on_ranks(WORLD, work)
    assert found[1][0] == (False, 1, [7], [7])
    assert [rest for _, *rest in found] == [[True, [WORLD]]] * WORLD


@several
def test_apart_ends_with_an_error_too():
    def work():
        with pytest.raises(DataError), dist.apart():
            raise DataError("No.")
        return dist.counts(1)

    assert on_ranks(2, work) == [[2]] * 2


@several
def test_joining_within_a_joined_stretch_changes_nothing():
    def work():
        with dist.joined():
            inside = dist.counts(1)
        return inside, dist.counts(2)

    def left():
        with dist.joined():
            answer = work()
        return answer, dist.active(), dist.files()

    assert Ranks(2, left).answers() == [(([2], [4]), False, None)] * 2


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("given", [("MASTER_ADDR",), ("RANK", "LOCAL_RANK"), ()])
def test_joining_without_knowing_whom_is_refused(monkeypatch, given):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in given:
        monkeypatch.setenv(name, "0")
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = ", ".join(name for name in needed if name not in given)
    with (
        pytest.raises(ConfigError, match=rf"^WORLD_SIZE=2 says .*, but {missing} is not set; ") as error,
        dist.joined(),
    ):
        raise AssertionError("joined")
    assert "\n" not in str(error.value)
    assert not torch.distributed.is_initialized()


@several
@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("collective", ["tensors", "words"])
def test_a_rank_that_dies_leaves_nobody_waiting(how, collective):
    def work():
        dist.counts(1)
        if dist.rank() == 1:
            time.sleep(0.3)  # the others are in the collective by then
            if how == "exit":
                os._exit(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return dist.all_sum(torch.ones(1000)) if collective == "tensors" else dist.gather("here")

    first, killed, last = on_each(WORLD, work)
    assert killed is None
    for error, seconds in (first, last):
        assert type(error) is RankLost
        assert str(error).startswith("another rank ended, or its machine cannot be reached any more")
        assert "\n" not in str(error)
        assert error.rank is None
        assert seconds < 30


@several
def test_an_error_that_is_no_lost_rank_keeps_its_type():
    def work():
        raise RuntimeError("shape mismatch")

    for error, _ in on_each(2, work):
        assert type(error) is RuntimeError
        assert str(error) == "shape mismatch"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("variables", "launched", "rank", "local", "here"),
    [
        ({}, False, 0, 0, 1),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, True, 3, 1, 2),
        ({"WORLD_SIZE": "4", "RANK": "", "LOCAL_RANK": ""}, True, 0, 0, 1),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, False, 0, 0, 1),
        # Left over in the environment of a shell or a scheduler: they speak of others.
        ({"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, False, 0, 0, 1),
        ({"WORLD_SIZE": "", "RANK": "3", "LOCAL_RANK": "1"}, False, 0, 0, 1),
        ({"WORLD_SIZE": "1", "RANK": "3", "LOCAL_RANK": "1"}, False, 0, 0, 1),
    ],
)  # fmt: skip
def test_what_the_environment_says(monkeypatch, variables, launched, rank, local, here):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert dist.launched() == launched
    assert (dist.rank(), dist.local_rank(), dist.local_world()) == (rank, local, here)
    assert dist.world() == 1
    assert not dist.active()
