"""Neighbours by hand, and where there are fewer than asked for."""

import torch

from dinoforge.features.nearest import nearest


def test_neighbours_by_hand():
    """Rows at known angles: 0, 10, 90, 95 degrees and a longer vector at 5."""
    angles = torch.tensor([0.0, 10.0, 90.0, 95.0, 5.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 1, 1, 1, 40]).unsqueeze(1)
    assert nearest(features, queries=3, count=5).tolist() == [[4, 1, 2, 3], [4, 0, 2, 3], [3, 1, 4, 0]]
    assert nearest(features[:1], queries=1, count=5).shape == (1, 0)
    assert nearest(features, queries=9, count=1)[:4].tolist() == [[4], [4], [3], [2]]


def test_of_equal_ones_the_first():
    """So that features that have all become one still have the same neighbours at the next look."""
    assert nearest(torch.ones(500, 3), queries=3, count=2).tolist() == [[1, 2], [0, 2], [0, 1]]
