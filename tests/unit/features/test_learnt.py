"""Copies by learnt descriptors: against all pairs one after the other, whitened and score-normalised as published."""

import itertools

import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.features.learnt import Measure, fit_measure, learnt_across, learnt_pairs
from dinoforge.features.search import SearchConfig

WIDTH = 12


def vectors(count, seed=0):
    """Groups of near ones around common directions, of unequal lengths."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 3, WIDTH))
    x = centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, WIDTH)) + 0.5
    return (x * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)


def slow(x, y, background, *, whiten, above):
    """Similarity of every pair by the published recipe in float64: PCAW, length 1, minus the mean of the three nearest."""

    def placed(v):
        v = v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True)
        if whiten:
            pool = x / np.linalg.norm(x, axis=1, keepdims=True)
            values, axes = np.linalg.eigh(np.cov(pool.T.astype(np.float64), bias=True))
            v = (v - pool.mean(axis=0)) @ axes / np.sqrt(values)
            v = v / np.linalg.norm(v, axis=1, keepdims=True)
        return v

    a, b, found = placed(x), placed(y), {}
    bias = np.zeros(len(a))
    if background is not None:
        bias = np.sort(a @ placed(background).T, axis=1)[:, ::-1][:, :3].mean(axis=1)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        cosine = float(a[i] @ b[j])
        if cosine > above:
            found[i, j] = cosine - bias[i]
    return found


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_equals_its_definition(whiten, normalised):
    x, y, background = vectors(60), vectors(25, seed=4), vectors(20, seed=7) if normalised else None
    measure = Measure.of(fit_measure(x, whiten=whiten, background=background).arrays())  # as read from a file
    expected = slow(x, y, background, whiten=whiten, above=0.45)
    found = learnt_across(x, y, measure, above=0.45, config=SearchConfig())
    assert set(zip(found.left.tolist(), found.right.tolist(), strict=True)) == set(expected)
    assert len(expected) > 20
    for i, j, similarity in zip(found.left.tolist(), found.right.tolist(), found.similarity.tolist(), strict=True):
        assert similarity == pytest.approx(expected[i, j], abs=2e-3)
    within, recall = learnt_pairs(x, measure, above=0.45, config=SearchConfig())
    each = slow(x, x, background, whiten=whiten, above=0.45)
    both = {(i, j): max(each[i, j], each[j, i]) for i, j in each if i < j}
    assert recall == 1
    assert set(zip(within.left.tolist(), within.right.tolist(), strict=True)) == set(both)
    for i, j, similarity in zip(within.left.tolist(), within.right.tolist(), within.similarity.tolist(), strict=True):
        assert similarity == pytest.approx(both[i, j], abs=2e-3)


def test_no_more_neighbours_than_are_asked_for():
    x = np.ones((9, 4), np.float32)
    found = learnt_across(x, x, Measure(), above=0.6, config=SearchConfig(), count=2)
    assert len(found.left) == 18


def test_an_image_that_could_not_be_described_is_a_copy_of_nothing():
    x = vectors(60)
    x[3] = x[8] = 0
    measure = fit_measure(x, whiten=True, background=None)
    assert not measure.placed(x)[[3, 8]].any()
    found, _ = learnt_pairs(x, measure, above=0.4, config=SearchConfig())
    assert not np.isin([3, 8], np.concatenate([found.left, found.right])).any()


def test_bad_input_is_named():
    with pytest.raises(DataError, match="fitted to more images than a descriptor has numbers, 12; got 12"):
        fit_measure(vectors(12), whiten=True, background=None)
    with pytest.raises(DataError, match="background= takes at least 3 images; got 2"):
        fit_measure(vectors(30), whiten=False, background=vectors(20)[:2])
    with pytest.raises(DataError, match="width 12 and of width 5 cannot be compared"):
        learnt_across(vectors(4), np.ones((2, 5)), Measure(), above=0.4, config=SearchConfig())
