"""A search over files is the search in all of them at once, however they are divided and whatever runs its tasks."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.curate.components import merged
from dinoforge.features import exact, sharded
from dinoforge.features.compressed import best
from dinoforge.features.mapped import Stacked, UnreadError, mapped
from dinoforge.features.pairs import pairs_of
from dinoforge.features.search import SearchConfig, search, self_search
from dinoforge.features.sharded import ShardedConfig, sharded_search, sharded_self_search

COMPRESSED = SearchConfig(exact_below=1000, sample=200)
SMALL = ShardedConfig(queries=1)
WORDS = {"count": 8, "threshold": 0.6}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    for module in ("exact", "search", "sharded"):
        monkeypatch.setattr(f"dinoforge.features.{module}.ROWS_AT_ONCE", 512)


@pytest.fixture
def vectors():
    """Clusters, and many rows that are equal, so that more score alike than a query takes."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(200, 16))
    x = middle[rng.integers(0, 200, 2000)] + 0.4 * rng.normal(size=(2000, 16))
    x[rng.permutation(2000)[:240]] = np.repeat(x[:3], 80, axis=0)
    return x.astype(np.float16)


def divided(x, cuts, folder):
    paths = []
    for number, part in enumerate(np.split(x, cuts)):
        paths.append(folder / f"{number}.npy")
        np.save(paths[-1], part)
    return paths


def all_of(found):
    parts = [near for _, near in found]
    return np.concatenate([x.index for x in parts]), np.concatenate([x.similarity for x in parts])


CUTS = {"one": [], "two": [1000], "many": [300, 700, 701, 1500], "one row and none": [1, 1, 900, 900, 1999]}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("count", [8, 100])
def test_pairs_are_those_of_one_search(vectors, tmp_path, cuts, count):
    whole = self_search(vectors, count=count, threshold=0.6, config=COMPRESSED)
    paths = divided(vectors, cuts, tmp_path)
    with ThreadPoolExecutor(2) as executor:
        found = sharded_self_search(
            paths, count=count, threshold=0.6, config=COMPRESSED, sharded=SMALL, folder=tmp_path / "made", each=executor.map
        )  # fmt: skip
    assert (found.recall, found.how) == (whole.recall, whole.how)
    assert len(found.parts) == 4
    index, similarity = all_of(found)
    np.testing.assert_array_equal(index, whole.index)
    np.testing.assert_array_equal(similarity, whole.similarity)
    pairs = merged([pairs_of(near, threshold=0.6, first=first) for first, near in found])
    want = pairs_of(whole, threshold=0.6)
    np.testing.assert_array_equal([pairs.left, pairs.right], [want.left, want.right])


@pytest.mark.parametrize("config", [SearchConfig(), COMPRESSED], ids=["exact", "compressed"])
def test_queries_of_others(vectors, tmp_path, config):
    asked = vectors[::3] + np.float16(0.01)
    whole = search(asked, vectors, config=config, count=5)
    (tmp_path / "q").mkdir()
    with ThreadPoolExecutor(1) as executor:
        found = sharded_search(
            divided(asked, [100, 100], tmp_path / "q"), divided(vectors, [700], tmp_path), count=5, config=config,
            sharded=SMALL, folder=tmp_path / "made", each=executor.map,
        )  # fmt: skip
    for mine, want in zip(all_of(found), (whole.index, whole.similarity), strict=True):
        np.testing.assert_array_equal(mine, want)


@pytest.mark.parametrize("config", [SearchConfig(), COMPRESSED], ids=["exact", "compressed"])
def test_answers_in_any_order_are_taken_one_by_one(vectors, tmp_path, monkeypatch, config):
    """Candidates of the sample are those of all shards together, of which never more than a few are held."""
    words = {"count": 3, "threshold": 0.6, "config": config}
    whole = self_search(vectors, **words)
    kept, known, shards, folded = [], sharded._keep, 8, 0

    def keep(held, more, most, *, queries):
        nonlocal folded
        known(held, more, most, queries=queries)
        kept.append(more)
        assert sum(map(len, held)) <= 4 * most * queries
        if sampling and len(kept) == shards:
            folded += len(held) < shards
            for name in ("query", "row", "score"):
                np.testing.assert_array_equal(getattr(best(held, most), name), getattr(best(kept, most), name))

    def each(work, jobs):
        nonlocal sampling
        sampling = work.func is sharded._proposed
        kept.clear()
        for number, job in enumerate(reversed(jobs), start=1):
            yield work(job)
            assert not sampling or len(kept) == number

    sampling = False
    monkeypatch.setattr(sharded, "_keep", keep)
    found = sharded_self_search(
        divided(vectors, list(range(250, 2000, 250)), tmp_path), **words, sharded=SMALL, folder=tmp_path / "made",
        each=each,
    )  # fmt: skip
    assert (found.recall, found.how) == (whole.recall, whole.how)
    for mine, want in zip(all_of(found), (whole.index, whole.similarity), strict=True):
        np.testing.assert_array_equal(mine, want)
    assert bool(folded) == (config is COMPRESSED)


def test_processes_find_the_same_and_make_nothing_twice(vectors, tmp_path, monkeypatch):
    monkeypatch.undo()  # other processes have the blocks that the module has
    paths, made = divided(vectors, [900], tmp_path), tmp_path / "made"
    words = {**WORDS, "config": COMPRESSED, "sharded": ShardedConfig(), "folder": made}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        one = sharded_self_search(paths, **words, each=executor.map)
    index, similarity = all_of(one)
    whole = self_search(vectors, **WORDS, config=COMPRESSED)
    np.testing.assert_array_equal(index, whole.index)
    before = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    one.parts[0].write_bytes(one.parts[0].read_bytes()[:100])  # cut off
    with pytest.raises(DataError, match="damaged"):
        all_of(one)
    with ThreadPoolExecutor(1) as executor:
        again = sharded_self_search(paths, **words, each=executor.map)
    np.testing.assert_array_equal(all_of(again)[1], similarity)
    changed = {path for path in made.iterdir() if before.get(path) != path.stat().st_mtime_ns}
    assert changed == {one.parts[0]}
    with ThreadPoolExecutor(1) as executor:
        other = sharded_search(
            paths[:1], paths, count=3, config=COMPRESSED, sharded=SMALL, folder=made, each=executor.map
        )
    new = {path.name for path in made.iterdir()} - {path.name for path in before}
    assert new == {path.name for path in other.parts}  # the codes were there


def test_what_was_made_of_other_vectors_is_not_taken(vectors, tmp_path):
    paths = divided(vectors, [900], tmp_path)
    words = {**WORDS, "config": COMPRESSED, "sharded": SMALL, "folder": tmp_path / "made"}
    with ThreadPoolExecutor(1) as executor:
        first = all_of(sharded_self_search(paths, **words, each=executor.map))
        np.save(paths[1], np.roll(vectors[900:], 7, axis=0))
        second = all_of(sharded_self_search(paths, **words, each=executor.map))
    assert (first[0] != second[0]).any()
    want = self_search(np.concatenate([vectors[:900], np.roll(vectors[900:], 7, axis=0)]), **WORDS, config=COMPRESSED)
    np.testing.assert_array_equal(second[0], want.index)


def test_bad_input_is_one_line(vectors, tmp_path):
    paths = divided(vectors, [900], tmp_path)
    np.save(tmp_path / "narrow.npy", vectors[:, :8])
    np.save(tmp_path / "ints.npy", np.zeros((3, 16), np.int64))
    (tmp_path / "text.npy").write_text("no vectors")
    words = {"config": COMPRESSED, "sharded": SMALL, "folder": tmp_path / "made"}
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(DataError, match=r"narrow.npy holds vectors of 8 channels, .*0.npy of 16"):
            sharded_self_search([*paths, tmp_path / "narrow.npy"], **WORDS, **words, each=executor.map)
        with pytest.raises(DataError, match="vectors are floats in two axes"):
            sharded_self_search([tmp_path / "ints.npy"], **WORDS, **words, each=executor.map)
        with pytest.raises(DataError, match=r"text.npy is no .npy file of vectors"):
            sharded_self_search([tmp_path / "text.npy"], **WORDS, **words, each=executor.map)
        with pytest.raises(ConfigError, match="1 or more; got 0"):
            sharded_self_search(paths, count=0, **words, each=executor.map)
    assert not (tmp_path / "made").exists()


def test_rows_of_files_are_rows_of_one_array(vectors, tmp_path):
    stacked = Stacked(divided(vectors, [0, 5, 5, 1999], tmp_path))
    rows = np.asarray([1999, 0, 5, 4, 5, 1998])
    np.testing.assert_array_equal(stacked[rows], vectors[rows].astype(np.float32))
    np.testing.assert_array_equal(stacked[3:1999], vectors[3:1999].astype(np.float32))
    assert stacked.shape == (2000, 16)


def test_a_file_that_this_machine_cannot_read_is_no_bad_file(tmp_path, monkeypatch):
    """One line for who reads it here, and a fault of the machine for who sent a task."""
    with pytest.raises(DataError, match=r"gone\.npy cannot be read: No such file or directory\.$") as error:
        mapped(tmp_path / "gone.npy")
    assert isinstance(error.value, OSError)
    np.save(tmp_path / "x.npy", np.zeros(3))

    def broken(*_args, **_words):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np, "load", broken)
    with pytest.raises(UnreadError, match=r"x\.npy cannot be read: Input/output error\.$") as error:
        Stacked([tmp_path / "x.npy"])
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    monkeypatch.undo()
    (tmp_path / "text.npy").write_text("text")
    with pytest.raises(DataError, match=r"is no \.npy file") as error:
        mapped(tmp_path / "text.npy")
    assert not isinstance(error.value, OSError)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open(vectors, tmp_path):
    """A process may have a thousand, and a large pool has more."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    stacked = Stacked(divided(vectors, list(range(0, 2000, 40)), tmp_path))
    assert len(stacked[0:2000]) == 2000
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_gpu_is_used_where_faiss_has_one(vectors, monkeypatch):
    """A stand-in: what is asked of the GPU build, not what it answers."""
    seen = []

    def knn(resources, asked, rows, count, *, metric):
        seen.append((resources, len(asked), len(rows)))
        return exact.faiss.knn(asked, rows, count, metric=metric)

    want = search(vectors[:30], vectors, count=3, config=SearchConfig())
    monkeypatch.setattr(exact.faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(exact.faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(exact.faiss, "knn_gpu", knn)
    found = search(vectors[:30], vectors, count=3, config=SearchConfig())
    np.testing.assert_array_equal(found.index, want.index)
    assert seen == [("resources", 30, 512)] * 3 + [("resources", 30, 464)]
