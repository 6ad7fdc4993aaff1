import numpy as np
import pytest

from dinoforge.base.errors import ConfigError
from dinoforge.curate.balance import (
    BalanceConfig,
    Hierarchy,
    LevelConfig,
    balanced,
    evenness,
    hierarchy,
    nearest_members,
    water_filling,
)
from dinoforge.features.kmeans import Clusters

RNG = np.random.default_rng


def levels(*settings, **others):
    made = tuple(LevelConfig(clusters=c, resampled=rounds, nearest=near) for c, rounds, near in settings)
    return BalanceConfig(levels=made, **others)


def slow_water_filling(sizes, total):
    """Drop by drop: each goes to a cluster that has most room of those that have least; how much each level holds."""
    taken = np.zeros(len(sizes), dtype=int)
    for _ in range(min(total, int(sum(sizes)))):
        open_ = [j for j in range(len(sizes)) if taken[j] < sizes[j]]
        taken[min(open_, key=lambda j: taken[j])] += 1
    return taken


@pytest.mark.parametrize("seed", range(30))
def test_water_filling_equals_pouring_drop_by_drop(seed):
    rng = RNG(seed)
    sizes = rng.integers(0, [3, 10, 400][seed % 3], rng.integers(1, 12))
    total = int(rng.integers(0, sizes.sum() + 5))
    found = water_filling(sizes, total, rng)
    slow = slow_water_filling(sizes.tolist(), total)
    assert found.sum() == min(total, sizes.sum()) == slow.sum()
    assert (found <= sizes).all()
    # The same but for who gets the last drops.
    np.testing.assert_array_equal(np.sort(found), np.sort(slow))
    assert np.abs(found - slow).max(initial=0) <= 1


def test_water_filling_by_hand():
    assert water_filling(np.asarray([2, 10, 10]), 12, RNG(0)).tolist() == [2, 5, 5]
    assert water_filling(np.asarray([2, 10, 3]), 99, RNG(0)).tolist() == [2, 10, 3]
    assert water_filling(np.asarray([0, 4]), 3, RNG(0)).tolist() == [0, 3]
    assert sorted(water_filling(np.asarray([9, 9, 9]), 10, RNG(0)).tolist()) == [3, 3, 4]
    assert water_filling(np.zeros(0, np.int64), 3, RNG(0)).tolist() == []


def test_the_last_drops_are_random():
    got = sum(water_filling(np.asarray([9, 9, 9]), 10, RNG(seed)) for seed in range(300)) - 900
    assert got.sum() == 300
    assert got.min() > 70


def rings(counts=(6000, 1500, 400, 150, 100), seed=0):
    """Five rings of one size side by side, each far emptier than the one before."""
    rng = RNG(seed)
    label = np.repeat(np.arange(len(counts)), counts)
    angle, radius = rng.uniform(0, 2 * np.pi, len(label)), 1 + 0.1 * rng.normal(size=len(label))
    return np.stack([radius * np.cos(angle) + 4 * label, radius * np.sin(angle)], axis=1).astype(np.float32), label


@pytest.mark.parametrize("seed", [0, 1])
def test_resampled_hierarchy_is_flatter_than_flat_kmeans_is_flatter_than_chance(seed):
    """The example of Vo et al.: how evenly a balanced sample, and the centres, fall on the five rings."""
    x, label = rings(seed=seed)

    def even(config):
        tree = hierarchy(x, config=config)
        ring = np.clip(np.round(tree.levels[-1].centres[:, 0] / 4), 0, 4).astype(int)
        sample = label[balanced(tree, images=300, config=config)]
        return np.asarray([evenness(sample, classes=5), evenness(ring, classes=5)])

    flat = even(levels((100, 0, 1), seed=seed))
    once = even(levels((300, 10, 9), seed=seed))
    tower = even(levels((300, 0, 1), (100, 0, 1), seed=seed))
    resampled = even(levels((300, 10, 9), (100, 10, 2), seed=seed))
    assert evenness(label, classes=5) + 0.2 < flat.min()
    assert (flat + 0.04 < once).all()
    assert (flat + 0.04 < tower).all()
    assert (np.maximum(once, tower) + 0.01 < resampled).all()


def hand_made():
    """Ten images in four clusters (6, 1, 2, 1) in two (7, 3)."""
    low = Clusters(
        np.zeros((4, 2), np.float32),
        np.repeat(np.arange(4), [6, 1, 2, 1]),
        np.asarray([5, 4, 3, 2, 1, 0, 0, 1, 0, 0], np.float32),
    )
    high = Clusters(np.zeros((2, 2), np.float32), np.asarray([0, 0, 1, 1]), np.zeros(4, np.float32))
    return Hierarchy((low, high))


def test_shares_run_from_the_top_down_by_hand():
    """Of six, three to each side. Left 3 = 2 + 1 of (6, 1); right 3 = 2 + 1 of (2, 1)."""
    config = levels((4, 0, 1), (2, 0, 1), closest=True)
    rows = balanced(hand_made(), images=6, config=config)
    assert rows.tolist() == [4, 5, 6, 7, 8, 9]  # of the six the two nearest
    assert hand_made().cluster(1).tolist() == [0] * 7 + [1] * 3


def test_all_where_there_are_fewer_and_several_times_where_allowed():
    config = levels((4, 0, 1), (2, 0, 1))
    assert balanced(hand_made(), images=50, config=config).tolist() == list(range(10))
    assert balanced(hand_made(), images=0, config=config).tolist() == []
    twice = levels((4, 0, 1), (2, 0, 1), repeats=2)
    assert balanced(hand_made(), images=50, config=twice).tolist() == np.repeat(np.arange(10), 2).tolist()
    assert np.bincount(balanced(hand_made(), images=17, config=twice), minlength=10).max() == 2
    with pytest.raises(ConfigError, match="0 images or more; got -1"):
        balanced(hand_made(), images=-1, config=config)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_any_number_of_levels_gives_exactly_what_was_asked_for(depth):
    x, _ = rings((300, 100, 30, 10, 6))
    config = levels(*((80, 2, 3), (20, 2, 2), (5, 2, 2))[:depth])
    tree = hierarchy(x, config=config)
    for images in (1, 77, 300):
        rows = balanced(tree, images=images, config=config)
        assert len(rows) == len(np.unique(rows)) == images
    np.testing.assert_array_equal(
        balanced(tree, images=77, config=config), balanced(hierarchy(x, config=config), images=77, config=config)
    )
    assert (
        balanced(tree, images=77, config=config).tolist()
        != balanced(tree, images=77, config=levels(*((80, 2, 3), (20, 2, 2), (5, 2, 2))[:depth], seed=1)).tolist()
    )


def test_nearest_members_equal_a_sort_of_each_cluster():
    rng = RNG(0)
    clusters = Clusters(
        np.zeros((7, 2), np.float32), rng.integers(0, 7, 100), rng.integers(0, 9, 100).astype(np.float32)
    )
    expected = []
    for cluster in range(7):
        members = np.flatnonzero(clusters.assignment == cluster).tolist()
        expected += sorted(members, key=lambda row: (clusters.distance[row], row))[:4]
    assert nearest_members(clusters, 4).tolist() == sorted(expected)


def test_too_many_clusters_name_the_level():
    with pytest.raises(ConfigError, match=r"levels.1.clusters must be at most the 5 clusters below it; got 9"):
        hierarchy(rings((30, 1, 1, 1, 1))[0], config=levels((5, 0, 1), (9, 0, 1)))


def test_evenness_by_hand():
    assert evenness(np.asarray([0, 1, 2, 3]), classes=4) == pytest.approx(1)
    assert evenness(np.zeros(9, np.int64), classes=4) == 0
    assert evenness(np.asarray([0, 0, 1, 1]), classes=4) == pytest.approx(0.5)
