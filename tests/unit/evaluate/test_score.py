"""Bootstrap intervals of items that share what they were measured on: against slow definitions and known cases."""

import itertools

import numpy as np
import pytest

from dinoforge.base.random import numpy_generator
from dinoforge.evaluate.score import interval, mean_interval, shared_interval


def test_items_with_a_unit_each_are_drawn_like_any_others():
    rng = np.random.default_rng(0)
    parts, wholes = rng.random(12), rng.integers(1, 9, 12).astype(float)
    units = rng.permutation(12)
    ranked = np.argsort(units)  # numbers of units say which item a draw means
    found = shared_interval(parts, wholes, units[:, None])
    assert found == pytest.approx(
        interval(lambda rows: parts[ranked][rows].sum(1) / wholes[ranked][rows].sum(1), len(parts))
    )
    assert shared_interval(parts, np.ones(12), np.arange(12)[:, None] * 5) == pytest.approx(mean_interval(parts))


def test_equal_objects_of_a_clip_are_no_more_than_one():
    values = np.random.default_rng(1).random(10)
    often, clips = values.repeat(8), np.arange(10).repeat(8)[:, None]
    low, high = shared_interval(often, np.ones(80), clips)
    assert (low, high) == pytest.approx(mean_interval(values))
    narrow = mean_interval(often)
    assert high - low > 2 * (narrow[1] - narrow[0])


def slow_mean(drawn, share):
    """Every two draws whose pictures are a pair."""
    found = [share[one, other] for one, other in itertools.product(drawn, drawn) if (one, other) in share]
    return np.mean(found) if found else np.nan


def test_pairs_are_those_of_the_drawn_pictures():
    rng = np.random.default_rng(2)
    pairs = [(0, 1), (1, 0), (0, 2), (3, 1), (2, 3), (4, 0)]
    share = dict(zip(pairs, rng.random(6).tolist(), strict=True))
    samples = numpy_generator(0, "bootstrap").integers(0, 5, (1000, 5)).tolist()
    want = [slow_mean(drawn, share) for drawn in samples]
    assert np.isnan(want).any()  # samples that no pair lies in are passed over
    found = shared_interval(np.asarray(list(share.values())), np.ones(6), np.asarray(pairs))
    assert found == pytest.approx(np.nanquantile(want, [0.025, 0.975]).tolist())


@pytest.mark.parametrize("units", [[[3], [3]], [[0, 1], [1, 0]], [[7, 7]]])
def test_items_of_the_same_units_have_no_interval(units):
    assert shared_interval(np.arange(len(units)) * 1.0, np.ones(len(units)), np.asarray(units)) is None
