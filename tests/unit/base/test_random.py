"""Draws are functions of what they are for, and of nothing else."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinoforge.base.random import key, numpy_generator, torch_generator


def test_the_same_draw_is_the_same_and_any_difference_changes_it():
    keys = {key(0, "mask", 1, 2), key(1, "mask", 1, 2), key(0, "drop", 1, 2), key(0, "mask", 2, 1), key(0, "mask", 1)}
    assert len(keys) == 5
    assert key(0, "mask", 1, 2) in keys
    assert numpy_generator(3, "x", 1).random() == numpy_generator(3, "x", 1).random()
    assert torch.equal(
        torch.rand(4, generator=torch_generator(3, "x")), torch.rand(4, generator=torch_generator(3, "x"))
    )


@given(st.integers(min_value=0, max_value=2**31), st.text(max_size=8), st.integers(min_value=0, max_value=10**12))
def test_keys_fit_a_signed_word(seed, purpose, counter):
    assert 0 <= key(seed, purpose, counter) < 2**63


def test_neighbouring_draws_are_unrelated():
    draws = np.array([numpy_generator(0, "view", index).random() for index in range(2_000)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.07
