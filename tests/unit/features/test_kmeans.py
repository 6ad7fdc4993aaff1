import tracemalloc

import numpy as np
import pytest
from sklearn.cluster import KMeans

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.features.kmeans import KmeansConfig, assigned, kmeans


def blobs(counts=(300, 40, 200), seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(n, 2)) + 20 * np.asarray([i, i % 2]) for i, n in enumerate(counts)]).astype(
        np.float32
    )


def test_finds_what_another_library_finds():
    x = blobs()
    found = kmeans(x, clusters=3, seed=1, config=KmeansConfig())
    theirs = KMeans(3, n_init=3, random_state=0).fit(x)
    ours = found.centres[np.lexsort(found.centres.T)]
    np.testing.assert_allclose(ours, theirs.cluster_centers_[np.lexsort(theirs.cluster_centers_.T)], atol=1e-3)
    assert found.distance.sum() == pytest.approx(theirs.inertia_, rel=1e-4)


def test_good_even_with_many_clusters():
    """Greedy k-means++ and Lloyd against scikit-learn's, which does the same: the sums of squares are alike."""
    x = np.random.default_rng(3).normal(size=(1500, 4)).astype(np.float32)
    ours = np.mean([kmeans(x, clusters=40, seed=s, config=KmeansConfig()).distance.sum() for s in range(3)])
    theirs = np.mean([KMeans(40, n_init=1, random_state=s).fit(x).inertia_ for s in range(3)])
    assert ours <= 1.03 * theirs


def test_at_the_end_nothing_moves():
    x = blobs()
    found = kmeans(x, clusters=7, seed=0, config=KmeansConfig(rounds=500))
    means = np.stack([x[found.assignment == cluster].mean(axis=0) for cluster in range(7)])
    np.testing.assert_allclose(found.centres, means, atol=1e-4)
    distances = ((x[:, None] - found.centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found.assignment, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distance, distances.min(axis=1), atol=1e-2)


def test_spherical_centres_have_length_one_and_lengths_do_not_count():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    config = KmeansConfig(spherical=True)
    found = kmeans(x, clusters=5, seed=0, config=config)
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1, rtol=1e-5)
    longer = kmeans(x * rng.uniform(0.5, 9, (400, 1)).astype(np.float32), clusters=5, seed=0, config=config)
    np.testing.assert_array_equal(found.assignment, longer.assignment)


def test_is_a_function_of_the_seed_and_shards_are_assigned_alike():
    x = blobs()
    one, same = (kmeans(x, clusters=9, seed=4, config=KmeansConfig()) for _ in range(2))
    np.testing.assert_array_equal(one.centres, same.centres)
    other = kmeans(x, clusters=9, seed=5, config=KmeansConfig())
    assert not np.array_equal(one.centres, other.centres)
    parts = [assigned(part, one.centres, config=KmeansConfig()).assignment for part in np.array_split(x, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), one.assignment)


def test_learns_from_as_many_as_were_asked_for(monkeypatch):
    seen = []
    from dinoforge.features import kmeans as module

    first = module._first_centres
    monkeypatch.setattr(module, "_first_centres", lambda x, *rest: seen.append(len(x)) or first(x, *rest))
    found = kmeans(blobs(), clusters=4, seed=0, config=KmeansConfig(sample=50))
    assert seen == [200]
    assert len(found.assignment) == 540


def test_copies_leave_clusters_empty_and_keep_their_centres():
    x = np.ones((20, 3), np.float32)
    found = kmeans(x, clusters=4, seed=0, config=KmeansConfig())
    assert np.isfinite(found.centres).all()
    assert (found.distance == 0).all()


def test_too_many_clusters_are_an_error():
    with pytest.raises(ConfigError, match="as many as there are vectors, 20; got 21"):
        kmeans(np.ones((20, 3), np.float32), clusters=21, seed=0, config=KmeansConfig())


def test_very_many_clusters_begin_at_random_and_end_well(monkeypatch):
    """Against scikit-learn's random beginnings; and k-means++, which is slow then, is not asked."""
    from dinoforge.features import kmeans as module

    x = np.random.default_rng(3).normal(size=(1500, 4)).astype(np.float32)
    monkeypatch.setattr(module, "GREEDY", 39)
    monkeypatch.setattr(module, "_first_centres", None)
    found = [kmeans(x, clusters=40, seed=s, config=KmeansConfig()) for s in (0, 1, 2, 0)]
    theirs = np.mean([KMeans(40, init="random", n_init=1, random_state=s).fit(x).inertia_ for s in range(3)])
    assert np.mean([one.distance.sum() for one in found[:3]]) <= 1.03 * theirs
    np.testing.assert_array_equal(found[0].centres, found[3].centres)
    assert not np.array_equal(found[0].centres, found[1].centres)


def test_channels_at_once_change_nothing(monkeypatch):
    x = blobs()
    one = kmeans(x, clusters=9, seed=0, config=KmeansConfig())
    monkeypatch.setattr("dinoforge.features.kmeans._NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr("dinoforge.features.kmeans._ROWS_AT_ONCE", 50)
    other = kmeans(x, clusters=9, seed=0, config=KmeansConfig())
    np.testing.assert_array_equal(one.assignment, other.assignment)
    np.testing.assert_allclose(one.centres, other.centres, rtol=1e-6)


@pytest.mark.parametrize("spherical", [True, False])
def test_vectors_on_the_disk_are_not_all_held(tmp_path, spherical):
    """A tenth of them are learned from; what is alive at once stays below a quarter of the file; the clusters are the same."""
    x = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped, config = np.load(tmp_path / "x.npy", mmap_mode="r"), KmeansConfig(spherical=spherical, sample=100, rounds=2)
    want = kmeans(x, clusters=100, seed=0, config=config)
    tracemalloc.start()
    found = kmeans(mapped, clusters=100, seed=0, config=config)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found.assignment, want.assignment)
    np.testing.assert_array_equal(found.centres, want.centres)
    assert most < x.nbytes * 0.6


def test_a_number_that_is_not_finite_is_named():
    x = blobs()
    x[7, 1] = np.nan
    with pytest.raises(DataError, match="vector 7 holds a number that is not finite"):
        assigned(x, x[:2], config=KmeansConfig(spherical=True))
