"""Drift: by hand, by its laws, and what a few broken rows do to it."""

import pytest
import torch

from dinoforge.evaluate.drift import drift, turn


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    """Two images' worth of three rows: x = (-1, 0, 1), y = (1, -2, 1), both of mean 0 and at right angles; z = (-1, 1, 0)."""
    x, y, z = (torch.tensor(row).view(3, 1) for row in ((-1.0, 0.0, 1.0), (1.0, -2.0, 1.0), (-1.0, 1.0, 0.0)))
    assert drift(x, y) == 1
    assert drift(x, z) == pytest.approx(1 - 1 / (2 * 2))  # (x.z)^2 = 1, |x|^2 = |z|^2 = 2
    assert turn(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])) == pytest.approx(0.5)


def test_slow_definition():
    """HSIC of the two kernel matrices, entry by entry (Kornblith et al. 2019, eq. 3)."""
    x, y, n = made(7, 3), made(7, 5, seed=1), 7
    centre = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n

    def hsic(a, b):
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre) / (n - 1) ** 2

    assert drift(x, y) == pytest.approx(1 - (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item())


def test_turned_shifted_and_scaled_is_the_same():
    x = made(20, 4)
    turned = torch.linalg.qr(made(4, 4, seed=3)).Q
    assert drift(5 * x @ turned + 3, x) == pytest.approx(0, abs=1e-12)
    assert drift(x, x) == pytest.approx(0, abs=1e-12)
    assert 0 < drift(x + 0.3 * made(20, 4, seed=2), x) < drift(x + made(20, 4, seed=2), x) < 1
    assert drift(torch.ones(20, 4), x) == drift(x, torch.ones(20, 4)) == 1  # collapsed


def test_what_was_the_same_for_all_and_is_so_still_has_not_drifted():
    """One image alone, too: it lies to no other otherwise than it did."""
    assert drift(torch.ones(20, 4), torch.full((20, 3), 7.0)) == 0
    assert drift(made(1, 4), made(1, 4, seed=1)) == 0
