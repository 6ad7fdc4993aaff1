"""Uniformity, smoothness and stability: by hand, by their slow definitions, by laws, at their ends."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from dinoforge.evaluate.health import neighbour_stability, smoothness, uniformity


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_uniformity_equals_its_definition(offset):
    x = made(60, 7) * 3 + offset
    unit = (x / x.norm(dim=1, keepdim=True)).double().numpy()
    want = np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean())
    assert uniformity(x) == pytest.approx(want, abs=1e-6)
    for rows in (1, 7, 59, 60, 1000):
        assert uniformity(x, rows_at_once=rows) == pytest.approx(want, abs=1e-6)


def test_uniformity_by_hand():
    x = torch.tensor([[3.0, 0], [-0.1, 0], [0, 5.0]])
    assert uniformity(x[:2]) == pytest.approx(-8)  # opposite: distance 2, its square 4, times -2
    assert uniformity(x[1:]) == pytest.approx(-4)  # a right angle: 2, times -2
    assert uniformity(x) == pytest.approx(math.log((math.exp(-8) + 2 * math.exp(-4)) / 3))
    assert uniformity(torch.zeros(3, 2)) == 0  # all alike, though of no direction
    assert uniformity(x[:1]) == 0


def test_uniformity_at_its_ends():
    """One direction, whatever the lengths, is 0; nothing is lower than a regular simplex."""
    assert uniformity(made(20, 1).abs() * made(1, 5)) == pytest.approx(0, abs=1e-6)
    simplex = torch.eye(6) - 1 / 6
    lowest = -4 * 6 / 5
    assert uniformity(simplex) == pytest.approx(lowest, abs=1e-6)
    assert all(uniformity(made(6, 9, seed=seed)) > lowest for seed in range(20))


def test_uniformity_rises_as_features_collapse():
    x, there = made(50, 8), torch.ones(1, 8)
    found = [uniformity(x + amount * there) for amount in (0, 1, 4, 100)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0, abs=0.01)


def test_uniformity_knows_neither_order_nor_direction():
    x = made(30, 5)
    turn = torch.linalg.qr(made(5, 5, seed=1)).Q
    want = uniformity(x)
    assert uniformity(x.flip(0)) == pytest.approx(want, abs=1e-9)
    assert uniformity(x @ turn) == pytest.approx(want, abs=1e-5)


def slow_smoothness(patches):
    found = []
    for grid in patches.double():
        places = [(y, x) for y in range(grid.shape[0]) for x in range(grid.shape[1])]
        cosine = {(p, q): float(torch.cosine_similarity(grid[p], grid[q], dim=0)) for p, q in combinations(places, 2)}
        near = [value for (p, q), value in cosine.items() if abs(p[0] - q[0]) + abs(p[1] - q[1]) == 1]
        found.append(np.mean(near) - np.mean(list(cosine.values())))
    return np.mean(found)


@pytest.mark.parametrize("size", [(3, 4), (1, 5), (5, 1), (2, 2)])
def test_smoothness_equals_its_definition(size):
    x = made(3, *size, 6) + torch.tensor([0.0, 1, 4]).view(3, 1, 1, 1)
    assert smoothness(x) == pytest.approx(slow_smoothness(x), abs=1e-9)


def test_smoothness_by_hand():
    """Halves a | b at right angles, two by two: of neighbours the upright pairs are alike, the level ones are not; of all
    six pairs two are alike. 1/2 - 1/3."""
    a, b = torch.tensor([1.0, 0]), torch.tensor([0, 7.0])
    assert smoothness(torch.stack([a, b, a, b]).view(1, 2, 2, 2)) == pytest.approx(1 / 2 - 1 / 3)
    assert smoothness(torch.stack([a, b, a, b]).view(1, 1, 4, 2)) == pytest.approx(0 - 1 / 3)
    assert smoothness(torch.stack([a, a, b, b]).view(1, 1, 4, 2)) == pytest.approx(2 / 3 - 1 / 3)


def test_smoothness_of_what_has_no_parts():
    assert smoothness(made(1, 1, 1, 8).expand(4, 6, 6, 8)) == pytest.approx(0, abs=1e-12)
    assert smoothness(torch.zeros(1, 4, 4, 8)) == 0
    assert smoothness(made(3, 1, 1, 8)) == 0
    assert abs(smoothness(made(16, 14, 14, 32))) < 0.005  # 3 standard errors
    assert abs(smoothness(made(16, 14, 14, 32) + 5)) < 0.005  # noise on a common offset


def test_smoothness_of_parts_and_slopes_is_high():
    angle = torch.linspace(0, 2 * math.pi, 15)[:14].expand(14, 14)
    slope = torch.stack([angle.cos(), angle.sin(), angle.T.cos(), angle.T.sin()], dim=-1).unsqueeze(0)
    assert smoothness(slope) > 0.8
    mixed = slope.view(1, 196, 4)[:, torch.randperm(196, generator=torch.Generator().manual_seed(0))].view(slope.shape)
    assert abs(smoothness(mixed)) < 0.1
    assert smoothness(slope + made(*slope.shape) * 0.3) < smoothness(slope)
    opposite = torch.ones(1, 4, 4, 1)
    opposite[:, ::2, ::2] = opposite[:, 1::2, 1::2] = -1
    assert smoothness(opposite) == pytest.approx(-1 + 1 / 15)


def test_smoothness_is_of_each_image_alone():
    """Two maps of one value each, unlike one another, are no smoother together than alone; turned they are the same."""
    x = made(4, 5, 7, 6)
    assert smoothness(made(2, 1, 1, 8).expand(2, 6, 6, 8)) == pytest.approx(0, abs=1e-12)
    assert smoothness(x) == pytest.approx(np.mean([smoothness(x[n : n + 1]) for n in range(4)]))
    assert smoothness(x.transpose(1, 2)) == pytest.approx(smoothness(x))
    assert smoothness(x.flip(2)) == pytest.approx(smoothness(x))


def test_stability_by_hand():
    before, after = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[2, 1], [2, 3], [4, 3]])
    assert neighbour_stability(before, before) == 1
    assert neighbour_stability(before, after) == pytest.approx((2 + 1 + 0) / 6)
    assert neighbour_stability(before, after + 10) == 0
    assert neighbour_stability(before[:, :0], after[:, :0]) == 1


def random_neighbours(seed, rows=40, count=10):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(rows, generator=generator)[:count] for _ in range(rows)])


def test_laws_of_stability():
    """Symmetric; neither the order of rows, nor of neighbours, nor their names count; chance where all is drawn anew."""
    before, after = random_neighbours(0), random_neighbours(1)
    want = neighbour_stability(before, after)
    assert want == neighbour_stability(after, before)
    assert want == pytest.approx(10 / 40, abs=0.06)  # 3 standard errors
    rows, names = torch.randperm(40, generator=torch.Generator().manual_seed(2)), random_neighbours(3, count=40)[0]
    assert neighbour_stability(before[rows], after[rows]) == pytest.approx(want)
    assert neighbour_stability(before.flip(1), after) == pytest.approx(want)
    assert neighbour_stability(names[before], names[after]) == pytest.approx(want)
