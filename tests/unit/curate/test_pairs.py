"""Near copies of a pool: searched in memory or by tasks, in any parts, they are the same; what was found is not sought twice."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from dinoforge.base.errors import RunError
from dinoforge.curate import searched
from dinoforge.curate.candidates import read_candidates, write_candidates
from dinoforge.curate.embeddings import LAYOUT, Embedder, Embeddings
from dinoforge.curate.executors.run import Lost, Shards, here
from dinoforge.curate.searched import share_of, tasks
from dinoforge.curate.stages import pairs as stage
from dinoforge.curate.stages.pairs import PAIRS, PairsConfig
from dinoforge.curate.state import State
from dinoforge.features.copies import mirrored, thumbnail
from dinoforge.features.mapped import Picked
from dinoforge.features.pairs import Candidates, centre_of
from dinoforge.features.search import SearchConfig
from pools import read_pools


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return read_pools(tmp_path_factory.mktemp("pools"))


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    for module in ("features.exact", "features.search", "features.sharded", "features.mapped", "curate.searched"):
        monkeypatch.setattr(f"dinoforge.{module}.ROWS_AT_ONCE", 16)


def colours(source):
    """Eight by eight mean colours, and zeros for an image that cannot be described."""
    small = [thumbnail(source.pixels(row)).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)) for row in range(len(source))]
    x = np.stack(small).reshape(len(small), -1).astype(np.float32)
    good = np.arange(len(x)) if len(x) < 20 else np.delete(np.arange(len(x)), 5)
    return (x - x.mean(axis=1, keepdims=True))[good], good


def found(pools, folder, *, learnt=False, background=False, **settings):
    known = Embeddings(folder / "d", Embedder("colours", "c", colours)) if learnt else None
    state = State(
        pools.pool, pools.pool.whole[2:], [pools.seeds], pools.keep_out, {}, Embeddings(folder / "e", LAYOUT),
        folder / "pairs.parts", descriptions=known, background=pools.seeds if background else None,
    )  # fmt: skip
    return PAIRS.run(state, PairsConfig(neighbours=6, **settings))


COMPRESSED = SearchConfig(exact_below=0, sample=30)
WAYS = {
    "layout": {}, "layout, compressed": {"search": COMPRESSED, "mirror": False},
    "learnt": {"learnt": True}, "learnt, compressed": {"learnt": True, "search": COMPRESSED},
    "learnt, whitened, against a background": {"learnt": True, "whiten": True, "background": True, "candidate": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_tasks_find_what_memory_does(pools, tmp_path, monkeypatch, how):
    one = found(pools, tmp_path / "memory", **how)
    sent, each = [], Shards.each
    monkeypatch.setattr(Shards, "each", lambda *words, **more: sent.append(more["title"]) or each(*words, **more))
    monkeypatch.setattr(searched, "QUERIES", 1)
    monkeypatch.setattr(stage, "PART", 50)
    other = found(pools, tmp_path / "tasks", **how)
    assert {"search pool", "search keep_out"} <= set(sent)
    assert one.facts == other.facts
    assert one.facts["pairs"] > 10
    assert (one.arrays["right"] >= len(pools.pool)).any()
    assert one.arrays.keys() == other.arrays.keys()
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(values, other.arrays[name], err_msg=name)


def test_what_an_earlier_start_sought_is_taken_over(pools, tmp_path, monkeypatch):
    """Killed when the candidates were found: nothing is sought again. Those of another pool are."""
    monkeypatch.setattr(searched, "QUERIES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_candidates", lambda *_words, **_more: (_ for _ in ()).throw(RunError("killed")))
        with pytest.raises(RunError, match="killed"):
            found(pools, tmp_path)
    (folder,) = (tmp_path / "pairs.parts").glob("search-*")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / ".pool-000000000000.npy.abcdefgh").write_bytes(b"torn")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_candidates", lambda *_words, **_more: (_ for _ in ()).throw(RunError("killed")))
        with pytest.raises(RunError, match="killed"):
            found(pools, tmp_path)
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        with pytest.raises(RunError, match="killed"):
            found(replace(pools, keep_out=pools.seeds), tmp_path)
    (another,) = (tmp_path / "pairs.parts").glob("search-*")
    assert another != folder


def test_a_share_is_whole_blocks_and_there_are_not_too_many(monkeypatch):
    monkeypatch.setattr(searched, "ROWS_AT_ONCE", 16_384)
    assert share_of(16_384, 0) is None
    assert share_of(10, 16_385) == share_of(16_385) == 16_384
    assert share_of(10**9) == 15 * 16_384  # 4,070 tasks


def test_answers_are_given_as_they_come_and_a_task_that_is_given_up_ends_the_search(monkeypatch):
    def backwards(_self, work, shards, **_words):
        for place in reversed(range(len(shards))):
            yield place, Lost("its process died") if shards[place].job[1] == 7 else work(shards[place].job, 1)

    monkeypatch.setattr(Shards, "each", backwards)
    each = tasks(here(), "search pool")
    assert list(each(str, [3, 1, 2])) == ["2", "1", "3"]
    assert next(each(str, [3, 7, 2])) == "2"
    with pytest.raises(RunError, match="search pool: part 2 of 3 is given up: its process died"):
        list(each(str, [3, 7, 2]))


@pytest.mark.parametrize("each", [1, 7, 1000])
def test_candidates_are_written_once_and_in_order(tmp_path, each):
    rng = np.random.default_rng(0)
    left, right, flip = rng.integers(0, 30, 500), rng.integers(30, 60, 500), rng.random(500) < 0.5
    parts = [Candidates(left[some], right[some], flip[some]) for some in np.array_split(np.arange(500), 4)]
    count = write_candidates(tmp_path / "c", [*parts, Candidates(left[:0], right[:0], flip[:0])], each=each)
    want = sorted(set(zip(left.tolist(), right.tolist(), flip.tolist(), strict=True)))
    assert count == len(want)
    seen = [read_candidates(tmp_path / "c", start, min(start + 100, count)) for start in range(0, count, 100)]
    lines = [
        line for one in seen for line in zip(one.left.tolist(), one.right.tolist(), one.flip.tolist(), strict=True)
    ]
    assert lines == want
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert write_candidates(tmp_path / "c", [], each=each) == 0
    assert len(read_candidates(tmp_path / "c", 0, 0)) == 0
    with pytest.raises(RunError, match="cannot be read; out= must lie where all machines see it"):
        read_candidates(tmp_path / "other", 0, 1)


def test_the_centre_is_that_of_all_rows_however_they_are_read():
    rows = np.random.default_rng(0).normal(1, 2, (100, 248)).astype(np.float16)
    some = np.arange(3, 90)
    both = np.concatenate([x := rows[some].astype(np.float64), mirrored(x)])
    np.testing.assert_allclose(centre_of(Picked(rows, some)), both.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(centre_of(Picked(rows, some)), centre_of(rows[some]))


def test_a_process_that_outlives_a_run_knows_the_thumbnails_of_another_pool_apart(pools, tmp_path):
    """As engines with nodes of their own have them: what was opened is kept by what opens it."""
    state = State(pools.pool, pools.pool.whole, [], pools.keep_out, {}, Embeddings(tmp_path, LAYOUT), tmp_path)
    sent = [pickle.dumps(stage._thumbnails(state, both=both)) for both in (False, True)]
    one, both = (pickle.loads(held).get() for held in sent)
    np.testing.assert_array_equal(one, pools.pool.thumbnails)
    np.testing.assert_array_equal(
        both[[0, len(pools.pool) + 3]], [pools.pool.thumbnails[0], pools.keep_out.thumbnails[3]]
    )
    other = replace(pools.pool, sha256=pools.pool.sha256[::-1])
    assert pickle.dumps(stage._thumbnails(replace(state, pool=other), both=False)) != sent[0]
