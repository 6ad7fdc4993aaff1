"""KoLeo by hand, against its definition, and at its edges."""

import math

import pytest
import torch

from dinoforge.loss.koleo import koleo_loss


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(x):
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    found = 0.0
    for i in range(len(unit)):
        found -= math.log(min((unit[i] - unit[j]).norm().item() for j in range(len(unit)) if j != i)) / len(unit)
    return found


def test_by_hand():
    """Opposite corners of a square lie 2 apart, neighbours the root of 2: every nearest distance is sqrt(2)."""
    square = torch.tensor([[1.0, 0], [0, 3], [-2, 0], [0, -1]])
    assert koleo_loss(square, group=4).item() == pytest.approx(-math.log(2) / 2, rel=1e-6)
    assert koleo_loss(torch.tensor([[1.0, 0], [-1, 0]]), group=2).item() == pytest.approx(-math.log(2), rel=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(2, 3), (9, 4), (16, 32)])
def test_equals_its_definition(rows, width):
    x = made(rows, width)
    assert koleo_loss(x, group=rows).item() == pytest.approx(slow(x), rel=1e-5)


def test_groups_do_not_see_one_another():
    x = made(12, 5)
    parts = torch.stack([koleo_loss(part, group=4) for part in x.split(4)]).mean()
    torch.testing.assert_close(koleo_loss(x, group=4), parts)
    assert koleo_loss(x, group=12) > koleo_loss(x, group=4)  # more candidates, nearer neighbours


def test_equal_images_cost_much_but_not_infinity():
    x = torch.ones(4, 64, dtype=torch.bfloat16, requires_grad=True)
    loss = koleo_loss(x, group=4)
    assert loss.item() == pytest.approx(-math.log(math.sqrt(64) * 1e-8 + 1e-8), rel=1e-4)
    loss.backward()
    assert torch.isfinite(x.grad).all()


def test_length_does_not_matter():
    x = made(6, 8)
    torch.testing.assert_close(koleo_loss(x, group=6), koleo_loss(x * torch.rand(6, 1).add(0.5), group=6))


def test_a_group_needs_a_second_image():
    with pytest.raises(ValueError, match="at least 2 rows; got 3 rows in groups of 1"):
        koleo_loss(made(3, 4), group=1)
    with pytest.raises(ValueError, match="got 5 rows in groups of 2"):
        koleo_loss(made(5, 4), group=2)
