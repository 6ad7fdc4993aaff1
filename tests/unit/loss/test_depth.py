"""Losses of depth against slow definitions, by hand, and on maps with holes, of one pixel, of none, and of no number."""

import math

import numpy as np
import pytest
import torch

from dinoforge.loss.depth import gradient_loss, scale_invariant_loss

NAN = math.nan


def drawn(*shape, seed=0, holes=0.3):
    rng = np.random.default_rng(seed)
    predicted, truth = (torch.from_numpy(rng.uniform(0.01, 10, shape).astype(np.float32)) for _ in range(2))
    return predicted, truth, torch.from_numpy(rng.random(shape) >= holes)


def slow_scale_invariant(predicted, truth, valid, *, warming):
    g = [
        math.log(p + 0.001) - math.log(t + 0.001)
        for p, t, v in zip(
            predicted.flatten().tolist(), truth.flatten().tolist(), valid.flatten().tolist(), strict=True
        )
        if v
    ]
    mean = sum(g) / len(g)
    if warming:
        return math.sqrt(0.15 * mean**2)
    return math.sqrt(sum((one - mean) ** 2 for one in g) / (len(g) - 1) + 0.15 * mean**2)


def slow_gradient(predicted, truth, valid):
    total = 0.0
    for stride in (1, 2, 4, 6):
        p, t, v = (one[:, 0, ::stride, ::stride].numpy() for one in (predicted, truth, valid))
        found = 0.0
        for b in range(len(p)):
            for y in range(p.shape[1]):
                for x in range(p.shape[2]):
                    for below, beside in ((y + 2, x), (y, x + 2)):
                        inside = below < p.shape[1] and beside < p.shape[2]
                        if inside and v[b, y, x] and v[b, below, beside]:
                            g = [math.log(p[b, r, c] + 0.001) - math.log(t[b, r, c] + 0.001)
                                 for r, c in ((y, x), (below, beside))]  # fmt: skip
                            found += abs(g[0] - g[1])
        total += found / max(v.sum(), 1)
    return total


@pytest.mark.parametrize("warming", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_scale_invariant_loss_is_its_definition(seed, warming):
    maps = drawn(3, 1, 7, 5, seed=seed)
    found = scale_invariant_loss(*maps, warming=warming)
    assert float(found) == pytest.approx(slow_scale_invariant(*maps, warming=warming), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_gradient_loss_is_its_definition(seed):
    maps = drawn(2, 1, 17, 14, seed=seed)
    assert float(gradient_loss(*maps)) == pytest.approx(slow_gradient(*maps), rel=1e-5)


def test_by_hand():
    predicted = torch.tensor([math.e, math.e, 1.0]).view(1, 1, 1, 3) - 0.001
    truth, valid = torch.ones(1, 1, 1, 3) - 0.001, torch.ones(1, 1, 1, 3, dtype=torch.bool)
    assert float(scale_invariant_loss(predicted, truth, valid, warming=False)) == pytest.approx(
        math.sqrt(1 / 3 + 0.15 * 4 / 9), rel=1e-5
    )
    assert float(scale_invariant_loss(predicted, truth, valid, warming=True)) == pytest.approx(
        math.sqrt(0.15) * 2 / 3, rel=1e-5
    )
    assert float(gradient_loss(predicted, truth, valid)) == pytest.approx(1 / 3, rel=1e-5)


def test_the_gradient_loss_sees_rows_and_columns_of_a_pair_of_images():
    """The released code cuts the first two axes, batch and channel: with two images it is always 0."""
    truth, valid = torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool)
    slope = torch.linspace(1, 3, 8)
    for predicted in (slope.view(1, 1, 8, 1).expand_as(truth), slope.view(1, 1, 1, 8).expand_as(truth)):
        assert float(gradient_loss(predicted, truth, valid)) > 0.1
    assert float(gradient_loss(3 * truth, truth, valid)) == pytest.approx(0, abs=1e-6)  # a scale is no change


@pytest.mark.parametrize("loss", [lambda *maps: scale_invariant_loss(*maps, warming=False),
                                  lambda *maps: scale_invariant_loss(*maps, warming=True), gradient_loss])  # fmt: skip
class TestEveryLoss:
    def test_what_is_not_valid_does_not_count_whatever_it_is(self, loss):
        predicted, truth, valid = drawn(2, 1, 9, 9)
        want = loss(predicted, truth, valid)
        for odd in (NAN, math.inf, 0.0, -5.0):
            spoilt = torch.where(valid, predicted, odd).requires_grad_()
            found = loss(spoilt, torch.where(valid, truth, odd), valid)
            assert float(found.detach()) == pytest.approx(float(want), rel=1e-6)
            found.backward()
            assert spoilt.grad.isfinite().all()
            assert not spoilt.grad[~valid].any()

    def test_a_perfect_answer_one_pixel_and_none_have_finite_slopes(self, loss):
        _, truth, valid = drawn(2, 1, 9, 9)
        one = torch.zeros_like(valid)
        one[0, 0, 0, 0] = True
        for where in (valid, one, torch.zeros_like(valid)):
            predicted = truth.clone().requires_grad_()
            found = loss(predicted, truth, where)
            assert float(found.detach()) == pytest.approx(0, abs=1e-5)
            found.backward()
            assert predicted.grad.isfinite().all()

    def test_half_precision_is_computed_in_float32(self, loss):
        predicted, truth, valid = drawn(2, 1, 9, 9)
        found = loss(predicted.bfloat16(), truth, valid)
        assert found.dtype == torch.float32
        assert float(found) == float(loss(predicted.bfloat16().float(), truth, valid))

    def test_the_order_of_images_does_not_count(self, loss):
        predicted, truth, valid = drawn(4, 1, 9, 9)
        assert float(loss(predicted, truth, valid)) == pytest.approx(
            float(loss(*(one.flip(0) for one in (predicted, truth, valid)))), rel=1e-5
        )


def test_a_scale_costs_less_than_noise_of_its_size():
    truth, valid = torch.full((1, 1, 20, 20), 2.0), torch.ones(1, 1, 20, 20, dtype=torch.bool)
    noise = torch.where(torch.arange(400).view(1, 1, 20, 20) % 2 == 0, 1.2, 1 / 1.2) * truth
    assert scale_invariant_loss(1.2 * truth, truth, valid, warming=False) < scale_invariant_loss(
        noise, truth, valid, warming=False
    )
