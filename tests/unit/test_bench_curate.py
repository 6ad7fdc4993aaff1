"""What the bench of the self-join plants is there, and what it counts is counted."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
SPEC = importlib.util.spec_from_file_location("bench_curate", BENCH / "curate.py")
CURATE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CURATE)


def test_planted_pairs_are_near_and_others_are_not():
    vectors, planted = CURATE.made(2000)
    x = vectors.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-3)
    assert planted.shape == (200, 2)
    assert len(np.unique(planted)) == 400
    cosine = (x[planted[:, 0]] * x[planted[:, 1]]).sum(axis=1)
    assert cosine.min() > 0.61
    assert cosine.max() < 0.99
    near = x @ x.T > 0.6
    near[planted[:, 0], planted[:, 1]] = near[planted[:, 1], planted[:, 0]] = False
    np.fill_diagonal(near, False)
    assert near.sum() < 3 * len(x)  # few beside them: no cluster is a heap of copies


def test_a_pair_counts_once_either_of_the_two_finds_the_other():
    index = np.asarray([[1, 2], [3, 2], [0, 1], [0, 2], [5, 0], [0, 1]])
    similarity = np.asarray([[0.9, 0.1]] * 6, np.float32)
    assert CURATE.found_share(index, similarity, np.asarray([[0, 1], [1, 3], [4, 5]])) == 1
    assert CURATE.found_share(index, similarity, np.asarray([[0, 2], [1, 2]])) == pytest.approx(0.5)
