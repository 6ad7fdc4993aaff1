"""The grid of linear heads: each equals one trained alone by torch's own layer, loss, optimiser and schedule."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.heads import HeadGrid, Inputs
from dinoforge.evaluate.linear import LinearConfig, extent, fit_linear
from dinoforge.evaluate.metrics import ranks
from given import GivenEyes, Made

CPU, CLASSES, CHANNELS = torch.device("cpu"), 3, 6
EVERY = [Inputs(layers, pool) for layers in (1, 4) for pool in (False, True)]


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(count=20, size=8):
    return [(made(size, 5, CHANNELS, seed=n), torch.arange(size) * (n + 1) % CLASSES) for n in range(count)]


def grid(inputs=EVERY, rates=(0.01, 0.1, 1.0), seed=0):
    return HeadGrid(inputs, channels=CHANNELS, classes=CLASSES, rates=rates, seed=seed, device=CPU)


def factors(count):
    return [(1 + math.cos(math.pi * done / count)) / 2 for done in range(count)]


def test_inputs_by_hand():
    """Tokens are 10, 20, 30 and 40 of the last four blocks, in the network's order, and 5 of the mean patch."""
    blocks = torch.tensor([10.0, 20, 30, 40, 5]).view(1, 5, 1).expand(2, 5, 2)
    want = {(1, False): [40], (1, True): [40, 5], (4, False): [10, 20, 30, 40], (4, True): [10, 20, 30, 40, 5]}
    for (layers, pool), values in want.items():
        assert Inputs(layers, pool).of(blocks).tolist() == [[v for v in values for _ in range(2)]] * 2
    assert Inputs(1, True).of(blocks[:, 3:]).tolist() == [[40, 40, 5, 5]] * 2  # a backbone that shows one block


def test_heads_equal_those_of_torch_trained_one_by_one():
    """The layer, cross-entropy, SGD with momentum and cosine of torch, in float64."""
    together, steps = grid(), batches()
    starts = [together.head(number) for number in range(12)]
    for (blocks, labels), factor in zip(steps, factors(len(steps)), strict=True):
        together.step(blocks, labels, factor=factor)
    for number, (inputs, rate, weight, _) in enumerate(starts):
        layer = nn.Linear(weight.shape[1], CLASSES).double()
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.zero_()
        optimiser = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(steps), eta_min=0)
        for blocks, labels in steps:
            optimiser.zero_grad()
            F.cross_entropy(layer(inputs.of(blocks).double()), labels).backward()
            optimiser.step()
            schedule.step()
        found = together.head(number)
        assert found[:2] == (inputs, rate)
        torch.testing.assert_close(found[2].double(), layer.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[3].double(), layer.bias.detach(), rtol=1e-3, atol=1e-4)


def test_nothing_of_a_head_depends_on_the_others():
    together = grid()
    for blocks, labels in batches(5):
        together.step(blocks, labels, factor=0.5)
    for number in range(12):
        inputs, rate, weight, bias = together.head(number)
        alone = grid([inputs], [rate])
        for blocks, labels in batches(5):
            alone.step(blocks, labels, factor=0.5)
        torch.testing.assert_close(alone.head(0)[2], weight)
        torch.testing.assert_close(alone.head(0)[3], bias)


def test_first_weights():
    wide = HeadGrid(EVERY, channels=200, classes=50, rates=(0.1, 0.2), seed=0, device=CPU)
    for number in range(8):
        _, _, weight, bias = wide.head(number)
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(weight.mean().item()) < 3e-4
        assert not bias.any()
    assert torch.equal(wide.head(0)[2], wide.head(1)[2])  # of two learning rates
    assert not torch.equal(wide.head(2)[2][0, :200], wide.head(0)[2][0])  # of two inputs
    assert not torch.equal(grid(seed=1).head(0)[2], grid().head(0)[2])


def test_ranks_are_those_of_each_head():
    together, blocks, labels = grid(), made(9, 5, CHANNELS), torch.arange(9) % CLASSES
    together.step(blocks, labels, factor=1.0)
    for number, found in enumerate(together.ranks(blocks, labels)):
        inputs, _, weight, bias = together.head(number)
        assert found.tolist() == ranks(F.linear(inputs.of(blocks), weight, bias), labels).tolist()


@pytest.mark.parametrize(
    ("images", "want"),
    [(1_281_167, (1024, 12_510)), (50_000, (512, 970)), (5_000, (64, 780)), (100, (16, 60)), (9, (9, 10))],
)
def test_updates_of_sets_of_any_size(images, want):
    assert extent(LinearConfig(), images) == want


def test_schedule_equals_a_slow_loop(monkeypatch):
    """Every update's share of the learning rate, one after the other: of the batch over 256, falling along a cosine to 0."""
    seen = []
    monkeypatch.setattr(HeadGrid, "step", lambda self, blocks, labels, *, factor: seen.append((len(labels), factor)))
    labels = torch.arange(40) % CLASSES
    source = Made(labels.numpy(), blocks=made(40, 5, CHANNELS))
    for batch, iterations, many in ((8, None, 50), (16, None, 20), (16, 7, 7), (40, 3, 3)):
        seen.clear()
        fit_linear(GivenEyes(), Sides(source, source), LinearConfig(batch=batch, iterations=iterations))
        assert len(seen) == many
        for done, (size, factor) in enumerate(seen):
            assert size == batch
            assert factor == pytest.approx(batch / 256 * 0.5 * (1 + math.cos(math.pi * done / many)))


def test_a_pass_shows_every_image_once_in_a_new_order(monkeypatch):
    seen = []
    monkeypatch.setattr(HeadGrid, "step", lambda self, blocks, labels, *, factor: seen.append(blocks[:, 0, 0].tolist()))
    source = Made([0, 1] * 11, blocks=torch.arange(22.0).view(22, 1, 1).expand(22, 5, 2).contiguous())

    def fit(seed):
        seen.clear()
        fit_linear(GivenEyes(), Sides(source, source), LinearConfig(batch=5, iterations=9, seed=seed))
        return [[row for rows in seen[start : start + 4] for row in rows] for start in (0, 4, 8)]

    passes = fit(0)
    assert [len({*one}) for one in passes] == [20, 20, 5]  # of 22 two are left over, others in another pass
    assert passes[0] != passes[1] != sorted(passes[1])
    assert fit(0) == passes != fit(1)
