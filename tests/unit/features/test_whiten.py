import itertools

import faiss
import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.features.copies import unit
from dinoforge.features.whiten import fit_whitening, hash_pairs, pca_hash, score_normalised


def vectors(count=600, width=16, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.linspace(3, 0.3, width)
    return (rng.normal(size=(count, width)) @ mixing + rng.normal(size=width)).astype(np.float32)


@pytest.mark.parametrize("whiten", [True, False])
def test_equals_the_published_recipe(whiten):
    """FAISS's PCAW8,L2norm and PCA8,L2norm: the same similarities (directions may differ in sign)."""
    x = vectors()
    theirs = faiss.PCAMatrix(16, 8, -0.5 if whiten else 0.0)
    theirs.train(x)
    expected = unit(theirs.apply(x[:50]))
    ours = fit_whitening(x, width=8, whiten=whiten)(x[:50])
    np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-3)


def test_whitened_components_are_uncorrelated_with_variance_one():
    x = vectors()
    components = fit_whitening(x, width=16).project(x)
    np.testing.assert_allclose(np.cov(components.T, bias=True), np.eye(16), atol=1e-3)


def test_a_direction_without_variance_stays_finite():
    x = vectors()
    x[:, 3] = 1.0
    assert np.isfinite(fit_whitening(x, width=16)(x)).all()


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="17 channels takes 1 to the 16"):
        fit_whitening(vectors(), width=17)
    with pytest.raises(DataError, match="at least 2 vectors; got 1"):
        fit_whitening(vectors(1), width=4)


def test_score_normalisation_by_hand():
    """beta 1, ranks 0 to 2: minus the mean of the three nearest of the background."""
    similarity = np.asarray([[0.9, 0.5], [0.4, 0.3]])
    background = np.asarray([[0.6, 0.3, 0.0, -1.0], [0.2, 0.2, 0.2, 0.2]])
    np.testing.assert_allclose(score_normalised(similarity, background), [[0.6, 0.2], [0.2, 0.1]])
    np.testing.assert_allclose(score_normalised(similarity, background, beta=0.5), [[0.75, 0.35], [0.3, 0.2]])
    with pytest.raises(DataError, match="3 background neighbours; got 2"):
        score_normalised(similarity, background[:, :2])


def test_hash_is_the_signs_lowest_bit_first():
    x = vectors()
    whitening = fit_whitening(x, width=16)
    positive = whitening.project(x) > 0
    for row, value in enumerate(pca_hash(x, whitening)[:50].tolist()):
        assert [bool(value >> bit & 1) for bit in range(16)] == positive[row].tolist()


def test_hash_uses_64_components_and_survives_noise():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 80)).astype(np.float32)
    whitening = fit_whitening(x, width=80)
    noisy = x + 1e-6 * rng.normal(size=x.shape).astype(np.float32)
    assert (pca_hash(x, whitening) == pca_hash(noisy, whitening)).mean() > 0.99
    assert len(np.unique(pca_hash(x, whitening))) == 2000


@pytest.mark.parametrize("distance", [0, 1, 2, 5])
def test_hash_pairs_equal_all_comparisons(distance):
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**63, 30, dtype=np.uint64)
    hashes = centres[rng.integers(0, 30, 200)]
    for _ in range(3):  # up to three bits are flipped
        hashes = hashes ^ np.where(
            rng.random(200) < 0.5, np.uint64(1) << rng.integers(0, 64, 200).astype(np.uint64), 0
        ).astype(np.uint64)
    values, first = np.unique(hashes, return_index=True)
    of = dict(zip(values.tolist(), first.tolist(), strict=True))
    expected = {(of[value], row) for row, value in enumerate(hashes.tolist()) if of[value] != row}
    for (one, row), (other, place) in itertools.combinations(of.items(), 2):
        if (one ^ other).bit_count() <= distance:
            expected.add((min(row, place), max(row, place)))
    assert set(map(tuple, hash_pairs(hashes, distance=distance).T.tolist())) == expected
    assert len(expected) > 5


def test_hash_pairs_of_nothing_and_of_equal_hashes():
    assert hash_pairs(np.zeros(0, np.uint64)).shape == (2, 0)
    many = np.zeros(5000, np.uint64)  # no 12 million pairs
    np.testing.assert_array_equal(hash_pairs(many), [np.zeros(4999), np.arange(1, 5000)])
    with pytest.raises(ConfigError, match="0 to 7 bits; got 9"):
        hash_pairs(many, distance=9)
