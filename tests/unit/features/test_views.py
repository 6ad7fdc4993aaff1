"""Whole pictures in their own shape: which sides they are given."""

import numpy as np
import pytest
import torch

from dinoforge.base.errors import ConfigError
from dinoforge.features.views import longest, shortest


@pytest.mark.parametrize(
    ("view", "size", "seen"),
    [
        (longest(224, patch=14), (100, 200), (112, 224)),
        (longest(230, patch=14), (200, 100), (224, 112)),
        (longest(224, patch=16), (1, 900), (16, 224)),
        (shortest(480, patch=16), (480, 854), (480, 848)),
        (shortest(480, patch=14), (854, 480), (854, 476)),
        (shortest(28, patch=14), (50, 50), (28, 28)),
    ],
)
def test_sides_are_the_nearest_multiples_of_the_patch(view, size, seen):
    picture = np.full((*size, 3), 9, np.uint8)
    found = view.of(picture, 0)
    assert found.shape == (3, *seen)
    assert found.dtype == torch.uint8
    assert (found == 9).all()


def test_views_are_told_apart_and_a_patch_must_fit():
    names = {
        view.name
        for view in (longest(28, patch=14), shortest(28, patch=14), longest(28, patch=7), longest(30, patch=14))
    }
    assert len(names) == 4
    for which, view in (("long", longest), ("short", shortest)):
        with pytest.raises(ConfigError, match=f"^a {which} side of 13 pixels is less than a patch of 14.$"):
            view(13, patch=14)
