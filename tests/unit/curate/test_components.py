import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.curate.components import (
    between,
    deduplicated,
    largest,
    merged,
    representatives,
)
from dinoforge.features.pairs import DUPLICATE, NEIGHBOURS, components, pairs_of
from dinoforge.features.search import SearchConfig, self_search
from scenes import pairs


def slow(edges, images):
    """Union by relabelling, edge after edge."""
    label = list(range(images))
    for one, other in edges:
        low, high = sorted((label[one], label[other]))
        label = [low if name == high else name for name in label]
    return label


@pytest.mark.parametrize("edges", [0, 10, 40, 120])
def test_components_equal_union_by_relabelling(edges):
    rng = np.random.default_rng(edges)
    drawn = [tuple(edge) for edge in rng.integers(0, 80, (edges, 2)).tolist()]
    assert components(pairs(*drawn), images=80).tolist() == slow(drawn, 80)


def test_pairs_of_parts_give_the_components_of_the_whole():
    rng = np.random.default_rng(7)
    drawn = [tuple(edge) for edge in rng.integers(0, 200, (150, 2)).tolist()]
    whole = components(merged([pairs(*drawn[start::3]) for start in range(3)]), images=200)
    np.testing.assert_array_equal(whole, components(pairs(*drawn), images=200))
    assert len(merged([])) == 0


def test_a_chain_is_one_group_and_says_so():
    """0 ~ 1 ~ 2, but 0 is not like 2: the paper accepts that."""
    found = deduplicated(pairs((0, 1, 0.8), (1, 2, 0.7)), images=4)
    assert found.row.tolist() == [1, 2]
    assert found.against.tolist() == [0, 0]
    assert found.reason.tolist() == ["near copy", "near copy of a copy"]
    np.testing.assert_allclose(found.similarity, [0.8, np.nan], rtol=1e-6)
    assert found.kept(4).tolist() == [0, 3]
    assert largest(components(pairs((0, 1), (1, 2)), images=4)) == [(0, 3)]


def test_the_largest_picture_stays_then_the_lowest_row():
    found = deduplicated(pairs((0, 1), (1, 2), (3, 4)), images=5, size=np.asarray([10, 40, 40, 7, 7]))
    assert dict(zip(found.row.tolist(), found.against.tolist(), strict=True)) == {0: 1, 2: 1, 4: 3}
    assert representatives(np.asarray([0, 0, 2])).tolist() == [0, 0, 2]


def test_between_knows_pairs_in_either_order():
    known = pairs((2, 5, 0.7), (1, 3, 0.6))
    found = between(known, np.asarray([5, 3, 0]), np.asarray([2, 1, 1]))
    np.testing.assert_allclose(found, [0.7, 0.6, np.nan], rtol=1e-6)


def test_planted_copies_are_recovered_at_the_paper_s_threshold():
    """64 neighbours, cosine above 0.6, components: 300 originals, 200 noisy copies of some of them."""
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(300, 64))
    of = rng.integers(0, 300, 200)
    x = np.concatenate([originals, originals[of] + 0.5 * rng.normal(size=(200, 64))]).astype(np.float32)
    near = self_search(x, count=NEIGHBOURS, threshold=DUPLICATE, config=SearchConfig())
    found = deduplicated(pairs_of(near, threshold=DUPLICATE), images=500)
    assert found.row.tolist() == list(range(300, 500))
    np.testing.assert_array_equal(found.against, of)


def test_no_pairs_no_images_and_rows_that_are_not_there():
    assert len(deduplicated(pairs(), images=3)) == 0
    assert len(deduplicated(pairs(), images=0)) == 0
    with pytest.raises(DataError, match="names row 7, and there are 5"):
        components(pairs((1, 7)), images=5)
