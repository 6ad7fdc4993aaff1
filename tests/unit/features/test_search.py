import faiss
import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.features import compressed
from dinoforge.features import search as search_module
from dinoforge.features.compressed import Compressed, Width, cells_for
from dinoforge.features.recall import pair_recall
from dinoforge.features.search import SearchConfig, search, self_search

EXACT = SearchConfig()
COMPRESSED = SearchConfig(exact_below=1000, sample=300)


def clustered(count=8000, width=32, centres=800, noise=0.4, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, width))
    return (middle[rng.integers(0, centres, count)] + noise * rng.normal(size=(count, width))).astype(np.float32)


def slow(queries, database, count, *, itself=False):
    """The definition, in float64."""
    q, x = (
        rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        for rows in (queries, database)
    )
    similarity = q @ x.T
    if itself:
        np.fill_diagonal(similarity, -np.inf)
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return index, np.take_along_axis(similarity, index, axis=1)


def test_exact_search_equals_its_definition(monkeypatch):
    monkeypatch.setattr("dinoforge.features.exact.ROWS_AT_ONCE", 150)  # parts change nothing
    x, q = clustered(400), clustered(50, seed=1)
    found = search(q, x, count=7, config=EXACT)
    index, similarity = slow(q, x, 7)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-5)
    own = self_search(x, count=7, config=EXACT)
    np.testing.assert_array_equal(own.index, slow(x, x, 7, itself=True)[0])
    assert (own.recall, own.how) == (1.0, "exact")


def test_equal_vectors_come_in_order_and_never_themselves():
    x = np.repeat(clustered(3), 5, axis=0)
    found = self_search(x, count=2, config=EXACT)
    for row, near in enumerate(found.index.tolist()):
        assert near == [other for other in range(row // 5 * 5, row // 5 * 5 + 5) if other != row][:2]


def test_few_vectors_have_fewer_neighbours():
    assert self_search(clustered(3), count=64, config=EXACT).index.shape == (3, 2)
    assert self_search(clustered(1), count=64, config=EXACT).index.shape == (1, 0)
    assert search(clustered(2), np.zeros((0, 32), np.float32), count=4, config=EXACT).index.shape == (2, 0)


def test_bad_input_is_one_line():
    with pytest.raises(DataError, match="32 channels cannot be searched among those of 16"):
        search(clustered(4), clustered(4, width=16), count=1, config=EXACT)
    with pytest.raises(ConfigError, match="1 or more; got 0"):
        self_search(clustered(4), count=0, config=EXACT)
    broken = clustered(9)
    broken[5, 2] = np.nan
    with pytest.raises(DataError, match="vector 5 holds"):
        self_search(broken, count=1, config=EXACT)


def test_compressed_search_measures_and_reaches_its_recall(capfd):
    x = clustered()
    found = self_search(x, count=16, threshold=0.6, config=COMPRESSED)
    said = capfd.readouterr().err
    some = slice(0, 1500)
    index, similarity = slow(x[some], x, 17)
    true, near = (
        (index[:, 1:], similarity[:, 1:]),
        (found.index[some], found.similarity[some]),
    )  # each is nearest itself
    assert found.how.startswith("IVF64,PQ16x4fs")
    assert f"{found.recall:.4f} of the pairs found" in said
    assert "WARNING" not in said
    assert found.recall >= 0.99
    # Of all queries, not of the sample; a pair counts where either row is among the neighbours of the other.
    mine = {(i, j) for i, row in enumerate(found.index.tolist()) for j in row}
    query, rank = np.nonzero(true[1] > 0.6)
    pairs = list(zip(query.tolist(), true[0][query, rank].tolist(), strict=True))
    either = np.mean([(i, j) in mine or (j, i) in mine for i, j in pairs])
    assert either >= 0.985
    assert either == pytest.approx(found.recall, abs=0.01)
    assert pair_recall(near, true, 0.6) <= either


def test_no_index_is_made_for_queries_that_brute_force_answers_anyway(monkeypatch):
    """As many as the sample of a search: all of it would be answered so."""
    monkeypatch.setattr(search_module, "_approximate", lambda *_, **__: pytest.fail("an index was made"))
    x = clustered()
    found = search(clustered(COMPRESSED.sample, seed=1), x, count=5, config=COMPRESSED)
    assert (found.how, found.recall) == ("exact", 1.0)
    with pytest.raises(pytest.fail.Exception):
        search(clustered(COMPRESSED.sample + 1, seed=1), x, count=5, config=COMPRESSED)


def test_similarities_are_those_of_the_vectors_not_of_the_codes():
    x = clustered()
    found = self_search(x, count=8, threshold=0.6, config=COMPRESSED)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    exact = np.einsum("qd,qkd->qk", unit[:500], unit[found.index[:500]])
    there = found.index[:500] >= 0
    np.testing.assert_allclose(found.similarity[:500][there], exact[there], atol=1e-5)
    assert (found.similarity[:500][~there] == -np.inf).all()
    assert (found.index != np.arange(len(x))[:, None]).all()


def test_what_scores_below_all_pairs_above_the_threshold_is_not_compared(monkeypatch):
    """Without a threshold, or pairs above it to learn the floor from, every candidate is."""
    x, seen = clustered(3000), []
    compared = search_module.compared

    def watched(asked, candidates, database):
        seen[-1] += len(candidates) * (len(asked) == len(x))  # not those of the sample
        return compared(asked, candidates, database)

    monkeypatch.setattr(search_module, "compared", watched)
    for threshold in (-1.0, 0.8, 0.9999999):
        seen.append(0)
        found = self_search(x, count=8, threshold=threshold, config=COMPRESSED.model_copy(update={"recall": 0.01}))
        assert (found.index[:, 0] >= 0).all() == (threshold != 0.8)
    assert seen[1] < 0.6 * seen[0]
    assert seen[2] == seen[0]


def test_compressed_search_is_a_function_of_the_seed():
    x = clustered()
    one, other = (self_search(x, count=8, threshold=0.6, config=COMPRESSED) for _ in range(2))
    np.testing.assert_array_equal(one.index, other.index)
    again = self_search(x, count=8, threshold=0.6, config=COMPRESSED.model_copy(update={"seed": 5}))
    assert (one.index != again.index).any()


def test_a_narrow_search_is_widened(monkeypatch):
    """Vectors without structure: few cells miss many pairs, so it must look into more than it began with."""
    x = np.random.default_rng(0).normal(size=(6000, 16)).astype(np.float32)
    found = self_search(x, count=8, threshold=0.5, config=COMPRESSED)
    assert found.recall >= 0.99
    assert found.how != "IVF64,PQ8x4fs, 1 cells, 1 candidates a neighbour"


def test_says_when_it_cannot(monkeypatch, capfd):
    monkeypatch.setattr(Compressed, "wider", lambda self, width, **_: [])
    x = np.random.default_rng(0).normal(size=(6000, 16)).astype(np.float32)
    found = self_search(x, count=8, threshold=0.5, config=COMPRESSED)
    assert found.recall < 0.99
    assert "misses the 0.99 that was asked for" in capfd.readouterr().err


def test_pair_recall_by_hand():
    true = np.asarray([[1, 2], [5, 6]]), np.asarray([[0.9, 0.7], [0.8, 0.3]], np.float32)
    found = np.asarray([[1, 9], [5, 6]]), np.asarray([[0.9, 0.4], [0.8, 0.3]], np.float32)
    assert pair_recall(found, true, 0.5) == pytest.approx(2 / 3)
    assert pair_recall(found, true, 0.2) == pytest.approx(3 / 4)
    assert pair_recall(found, true, 0.95) == 1.0
    tied = np.asarray([[1, 9], [5, 6]]), np.asarray([[0.9, 0.7], [0.8, 0.3]], np.float32)  # 9 is as near as 2
    assert pair_recall(tied, true, 0.5) == 1.0


def test_too_few_vectors_to_train_on_are_an_error():
    with pytest.raises(DataError, match="64 cells is trained on 4096 vectors or more; got 500"):
        Compressed.train(clustered(500), training=128, seed=0, cells=64)
    with pytest.raises(ConfigError, match="multiple of 2 channels; got 31"):
        Compressed.train(clustered(5000, width=31), training=128, seed=0)


def test_training_sees_what_was_asked_for(monkeypatch):
    """FAISS takes at most 256 vectors a cell unless told otherwise."""
    seen = {}
    build = compressed.faiss.index_factory

    def watched(*args):
        index = build(*args)
        seen["index"] = index
        return index

    monkeypatch.setattr(compressed.faiss, "index_factory", watched)
    Compressed.train(clustered(5000), training=1000, seed=0, cells=4)
    assert seen["index"].cp.max_points_per_centroid * 4 >= 4000
    assert seen["index"].cp.spherical


@pytest.mark.parametrize(
    ("vectors", "cells"), [(0, 0), (63, 0), (64, 1), (8000, 64), (100_000, 512), (1_000_000, 1024)]
)
def test_cells(vectors, cells):
    assert cells_for(vectors) == cells
    assert cells * 64 <= max(vectors, 0)


def test_wider_ends():
    index = Compressed.train(clustered(1000), training=128, seed=0, cells=8)
    for first, rows in ((0, clustered(1000)),):
        index.add(rows / np.linalg.norm(rows, axis=1, keepdims=True), first=first)
    width, steps = index.narrowest, 0
    while wider := index.wider(width, count=10, total=1000):
        width, steps = wider[-1], steps + 1
    assert width.cells == 8
    assert steps < 20
    assert index.wider(Width(3, 1), count=10, total=1000) == [Width(5, 1), Width(3, 2)]
    assert Width(16, 2) not in index.wider(Width(8, 2), count=10, total=1000)


def test_threads_are_given_back():
    before = faiss.omp_get_max_threads()
    seen = []
    knn = faiss.knn

    def watched(*args, **kwargs):
        seen.append(faiss.omp_get_max_threads())
        return knn(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss, "knn", watched)
        self_search(clustered(100), count=2, config=SearchConfig(threads=2))
    assert seen == [2]
    assert faiss.omp_get_max_threads() == before
