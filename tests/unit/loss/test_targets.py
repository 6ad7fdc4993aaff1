"""Targets: laws of Sinkhorn-Knopp, the lag of the centre, groups."""

import pytest
import torch

import plain
from dinoforge.loss import targets
from dinoforge.loss.targets import Centring


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sinkhorn(scores, **how):
    return targets.sinkhorn(plain.scores(scores), **how).rows()


def slow_sinkhorn(scores, temperature, rounds):
    """The definition on plain numbers, in float64."""
    q = (scores.double() / temperature).exp()
    q = q / q.sum()
    rows, prototypes = q.shape
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True) / prototypes
        q = q / q.sum(1, keepdim=True) / rows
    return q * rows


@pytest.mark.parametrize("rounds", [1, 3, 7])
def test_sinkhorn_equals_its_definition(rounds):
    scores = made(12, 5)
    want = slow_sinkhorn(scores, 0.3, rounds).float()
    torch.testing.assert_close(sinkhorn(scores, temperature=0.3, rounds=rounds), want)


def test_sinkhorn_is_balanced_and_does_not_overflow():
    torch.testing.assert_close(sinkhorn(made(64, 16) * 100, temperature=0.04, rounds=50).sum(1), torch.ones(64))
    balanced = sinkhorn(made(64, 16), temperature=0.5, rounds=100)
    torch.testing.assert_close(balanced.sum(0), torch.full((16,), 4.0), rtol=1e-3, atol=1e-3)


def test_sinkhorn_ignores_one_constant_and_follows_the_order():
    scores, order = made(10, 6), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    target = sinkhorn(scores, temperature=0.2)
    torch.testing.assert_close(sinkhorn(scores + 3.0, temperature=0.2), target)
    torch.testing.assert_close(sinkhorn(scores[order], temperature=0.2), target[order])


def test_sinkhorn_of_one_row_or_of_half_precision():
    torch.testing.assert_close(sinkhorn(made(1, 8), temperature=0.05), torch.full((1, 8), 1 / 8))
    assert sinkhorn(made(4, 8).bfloat16(), temperature=0.05).dtype == torch.float32


def test_the_centre_lags_one_call():
    centring, scores = Centring(4, momentum=0.9), made(6, 4)
    group = torch.zeros(6, dtype=torch.long)
    first = centring.targets(plain.scores(scores), temperature=0.5, group=group, groups=1).rows()
    torch.testing.assert_close(first, (scores / 0.5).softmax(-1))
    torch.testing.assert_close(centring.centre, 0.1 * scores.mean(0))
    second = centring.targets(plain.scores(scores), temperature=0.5, group=group, groups=1).rows()
    torch.testing.assert_close(second, ((scores - 0.1 * scores.mean(0)) / 0.5).softmax(-1))


def test_groups_weigh_the_same_and_empty_ones_nothing():
    centring, scores = Centring(3, momentum=0.0), made(5, 3)
    group = torch.tensor([0, 0, 0, 2, 2])
    centring.targets(plain.scores(scores), temperature=1.0, group=group, groups=4)
    torch.testing.assert_close(centring.centre, (scores[:3].mean(0) + scores[3:].mean(0)) / 2)
    before = centring.centre.clone()
    centring.targets(plain.scores(made(0, 3)), temperature=1.0, group=group[:0], groups=4)
    torch.testing.assert_close(centring.centre, before)
