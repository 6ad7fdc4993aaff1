"""Axes: S seeds, N images of the pool, K neighbours."""

import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.curate.retrieval import RetrievalConfig, by_clusters, by_samples, expected, giving, method_for
from dinoforge.curate.why import together
from dinoforge.features.search import Neighbours, SearchConfig, search

# DINOv2, table 15: (images of the seed set, how, images before the cap, images that went in).
AS_IS = [14_197_086, 1_580_470, 1_434_262]
BY_SAMPLES = [(14_197_086, 4, 56_788_344), (1_281_167, 32, 40_997_344), (1_580_470, 4, 6_321_880)]
BY_CLUSTERS = [
    (3_030, 2_630_000), (5_994, 1_300_000), (1_880, 1_580_000), (3_334, 1_170_000), (1_020, 1_060_000), (75_750, 21_670_000),
    (3_680, 2_750_000), (8_144, 7_220_000), (19_850, 18_950_000), (2_501, 1_010_000), (20_210, 20_720_000),
    (2_975, 1_390_000), (1_464, 10_140_000), (23_158, 3_700_000), (24_231, 10_850_000), (4_829, 4_870_000),
    (1_231, 960_000), (1_231, 830_000), (397_121, 62_860_000), (4_993, 3_680_000), (6_322, 3_660_000),
]  # fmt: skip


def test_the_paper_s_table_adds_up():
    assert all(method_for(seeds, RetrievalConfig()) == "samples" for seeds, _, _ in BY_SAMPLES)
    assert all(method_for(seeds, RetrievalConfig()) == "clusters" for seeds, _ in BY_CLUSTERS)
    samples = [expected(seeds, 0, RetrievalConfig(neighbours=each)) for seeds, each, _ in BY_SAMPLES]
    assert samples == [printed for _, _, printed in BY_SAMPLES]
    clusters = [expected(seeds, before, RetrievalConfig()) for seeds, before in BY_CLUSTERS]
    assert clusters.count(1_000_000) == 19
    assert sum(AS_IS) + sum(samples) + sum(clusters) == 142_109_386


def test_a_million_seeds_are_not_yet_many_and_none_are_an_error():
    assert method_for(1_000_000, RetrievalConfig()) == "clusters"
    assert method_for(1_000_001, RetrievalConfig()) == "samples"
    assert method_for(5, RetrievalConfig(method="samples")) == "samples"
    with pytest.raises(DataError, match="seed set is empty"):
        method_for(0, RetrievalConfig())


def near(index, similarity):
    return Neighbours(np.asarray(index, np.int64), np.asarray(similarity, np.float32), 1.0, "exact")


NEAR = near([[4, 2, 9], [2, 4, 7]], [[0.9, 0.8, 0.1], [0.95, 0.5, 0.1]])


def test_samples_with_multiplicity_are_the_product():
    found = by_samples(NEAR, seed_set=3, config=RetrievalConfig(neighbours=2, multiplicity=True))
    assert len(found) == expected(2, 0, RetrievalConfig(method="samples", neighbours=2)) == 4
    assert found.row.tolist() == [4, 2, 2, 4]
    assert found.seed.tolist() == [0, 0, 1, 1]
    assert found.rank.tolist() == [0, 1, 0, 1]
    assert found.seed_set.tolist() == [3] * 4
    assert found.cluster.tolist() == [-1] * 4


def test_samples_once_each_are_credited_to_the_most_similar_seed():
    found = by_samples(NEAR, seed_set=0, config=RetrievalConfig(neighbours=2))
    assert found.row.tolist() == [2, 4]
    assert found.seed.tolist() == [1, 0]
    assert found.rank.tolist() == [0, 0]
    np.testing.assert_allclose(found.similarity, [0.95, 0.9], rtol=1e-6)


def test_samples_equal_a_sort_by_similarity():
    rng = np.random.default_rng(0)
    seeds, pool = (rng.normal(size=(n, 8)).astype(np.float32) for n in (20, 300))
    found = by_samples(
        search(seeds, pool, count=4, config=SearchConfig()), seed_set=0, config=RetrievalConfig(multiplicity=True)
    )
    cosine = (seeds / np.linalg.norm(seeds, axis=1)[:, None]) @ (pool / np.linalg.norm(pool, axis=1)[:, None]).T
    np.testing.assert_array_equal(found.row.reshape(20, 4), np.argsort(-cosine, axis=1)[:, :4])


def test_a_pool_smaller_than_asked_for_gives_what_it_has():
    found = by_samples(near([[1, 0, -1]], [[0.9, 0.2, -np.inf]]), seed_set=0, config=RetrievalConfig(multiplicity=True))
    assert found.row.tolist() == [1, 0]


POOL = np.repeat(np.arange(5), [10, 20, 30, 40, 50])
SEEDS = np.repeat([0, 1, 3, 4], [3, 4, 9, 1])


def test_a_cluster_gives_images_if_it_holds_more_than_three_seeds():
    assert giving(SEEDS, more_than=3).tolist() == [1, 3]
    found = by_clusters(POOL, SEEDS, seed_set=2, config=RetrievalConfig(clusters=5))
    assert found.row.tolist() == np.flatnonzero((POOL == 1) | (POOL == 3)).tolist()  # all they have
    np.testing.assert_array_equal(found.cluster, POOL[found.row])
    assert set(found.seed.tolist()) == {-1}
    assert np.isnan(found.similarity).all()


def test_a_cluster_gives_at_most_m_and_a_set_has_a_cap():
    found = by_clusters(POOL, SEEDS, seed_set=0, config=RetrievalConfig(clusters=5, per_cluster=25))
    assert np.bincount(found.cluster, minlength=5).tolist() == [0, 20, 0, 25, 0]
    assert len(np.unique(found.row)) == 45
    capped = by_clusters(POOL, SEEDS, seed_set=0, config=RetrievalConfig(clusters=5, per_cluster=25, cap=30))
    assert len(capped) == expected(17, 45, RetrievalConfig(cap=30)) == 30
    assert set(capped.row.tolist()) <= set(found.row.tolist())
    assert set(capped.cluster.tolist()) == {1, 3}


def test_what_is_drawn_is_even_and_a_function_of_the_seed():
    """Each of 40 images is drawn about equally often, over 400 seeds: chi-square of 39 degrees stays below its 0.1 % point."""
    counts = np.zeros(len(POOL))
    for seed in range(400):
        config = RetrievalConfig(clusters=5, per_cluster=10, more_than=8, seed=seed)
        counts[by_clusters(POOL, SEEDS, seed_set=0, config=config).row] += 1
    drawn = counts[POOL == 3]
    assert drawn.sum() == 4000
    assert ((drawn - 100) ** 2 / (100 * 0.75)).sum() < 72.1
    one, same, other = (
        by_clusters(POOL, SEEDS, seed_set=s, config=RetrievalConfig(clusters=5, per_cluster=10)).row.tolist()
        for s in (0, 0, 1)
    )
    assert one == same != other


def test_no_cluster_with_enough_seeds_gives_nothing():
    assert len(by_clusters(POOL, np.asarray([0, 0, 0, 2]), seed_set=0, config=RetrievalConfig(clusters=5))) == 0


def test_several_sets_together_name_each_row_once():
    sets = [by_samples(NEAR, seed_set=0, config=RetrievalConfig(neighbours=2)), by_clusters(POOL, SEEDS, seed_set=1, config=RetrievalConfig(clusters=5, per_cluster=2))]  # fmt: skip
    whole = together(sets)
    assert len(whole) == 6
    once = together([sets[0], sets[0], sets[1]]).once()
    assert sorted(once.row.tolist()) == sorted(set(whole.row.tolist()))
    assert once.row.tolist() == sorted(once.row.tolist())
