"""Embeddings on the disk: computed once, what is lacking is added, and those of other weights never stand in."""

import numpy as np
import pytest

import shard_works as works
from dinoforge.base.errors import DataError, RunError
from dinoforge.curate import embeddings as stored
from dinoforge.curate import images as reading
from dinoforge.curate.embeddings import LAYOUT, Embedder, Embeddings
from dinoforge.curate.engine import run_stages
from dinoforge.curate.executors.run import Lost, Shards, here
from dinoforge.curate.images import read_images
from dinoforge.curate.settings import Curation
from dinoforge.curate.state import State
from dinoforge.data.sources.table import open_source


@pytest.fixture
def pool(tmp_path, monkeypatch):
    for module in (reading, stored):
        monkeypatch.setattr(module, "SHARD", 8)
    source = open_source("toy://species?images=20&size=16")
    return read_images(source, tmp_path / "read", name="pool", crew=here())


def embedder(calls, *, weights="a", unusable=(), width=4):
    def embed(source):
        rows = np.asarray([int(key[:4], 16) % 97 for key in map(hashed, source.columns["id"])])
        calls.append(len(source))
        good = np.flatnonzero(~np.isin(source.columns["id"], list(unusable)))
        if not len(good):
            raise DataError("No image could be used.")
        return np.outer(rows[good], np.arange(1, width + 1)).astype(np.float32), good

    return Embedder("test", weights, embed)


def hashed(name):
    import hashlib

    return hashlib.sha256(str(name).encode()).hexdigest()


def test_rows_are_embedded_once_and_missing_ones_are_added(tmp_path, pool):
    calls = []
    known = Embeddings(tmp_path / "e", embedder(calls))
    some = np.asarray([0, 3, 9, 17])
    rows, vectors = known.of(pool, some)
    assert rows.tolist() == some.tolist()
    assert calls == [2, 1, 1]
    calls.clear()
    everything, whole = Embeddings(tmp_path / "e", embedder(calls)).of(pool, np.arange(20))
    assert everything.tolist() == list(range(20))
    assert calls == [6, 7, 3]
    np.testing.assert_array_equal(whole[some], vectors)
    calls.clear()
    again = Embeddings(tmp_path / "e", embedder(calls)).of(pool, some)
    assert calls == []
    np.testing.assert_array_equal(again[1], vectors)


def test_rows_whose_answer_was_lost_are_not_embedded_again(tmp_path, pool, monkeypatch):
    works.twice(monkeypatch)
    calls = []
    Embeddings(tmp_path / "e", embedder(calls)).of(pool, np.asarray([0, 3, 9, 17]))
    assert calls == [2, 1, 1]


def test_rows_that_another_run_took_away_are_no_zeros(tmp_path, pool, monkeypatch):
    """A job of a run that was killed may write a file once more, of other rows, after this one has looked at it."""
    calls, gathered = [], Embeddings._gathered
    Embeddings(tmp_path / "e", embedder(calls)).of(pool, np.asarray([0, 1]))
    (file,) = (tmp_path / "e").rglob("*.npz")
    fewer = file.read_bytes()

    def overtaken(self, *words):
        file.write_bytes(fewer)
        return gathered(self, *words)

    monkeypatch.setattr(Embeddings, "_gathered", overtaken)
    monkeypatch.setattr(reading, "_SHOWN", 0.1)
    with pytest.raises(RunError, match="is not seen here"):
        Embeddings(tmp_path / "e", embedder(calls)).of(pool, np.arange(4))


def test_other_weights_are_never_taken_for_these(tmp_path, pool, capsys):
    calls = []
    Embeddings(tmp_path / "e", embedder(calls)).of(pool, np.arange(20))
    calls.clear()
    _, wide = Embeddings(tmp_path / "e", embedder(calls, weights="b", width=6)).of(pool, np.arange(20))
    assert calls == [8, 8, 4]
    assert wide.shape == (20, 6)
    said = capsys.readouterr().err
    assert said.count("embeddings by other weights; made anew") == 1
    _, back = Embeddings(tmp_path / "e", embedder(calls)).of(pool, np.arange(20))
    assert back.shape == (20, 4)


def test_images_that_cannot_be_embedded_are_left_out(tmp_path, pool):
    bad = pool.source.columns["id"][[1, 8, 9, 10, 11, 12, 13, 14, 15]]  # a whole shard among them
    known = Embeddings(tmp_path / "e", embedder([], unusable=bad))
    rows, vectors = known.of(pool, np.arange(20))
    assert rows.tolist() == [0, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19]
    assert vectors.shape == (11, 4)
    with pytest.raises(DataError, match=r"No image of .* could be embedded"):
        Embeddings(tmp_path / "f", embedder([], unusable=pool.source.columns["id"])).of(pool, np.arange(20))


def test_without_weights_the_descriptor_serves(tmp_path, pool):
    rows, vectors = Embeddings(tmp_path / "e", LAYOUT).of(pool, np.asarray([2, 5]))
    np.testing.assert_array_equal(vectors, pool.descriptors[[2, 5]].astype(np.float32))
    assert rows.tolist() == [2, 5]
    assert list((tmp_path / "e").iterdir()) == []


def loses(monkeypatch, first):
    """Let every start give up the shards whose rows begin with this one."""
    each = Shards.each

    def lossy(self, work, shards, **words):
        bad = {place for place, shard in enumerate(shards) if int(shard.job.rows[0]) == first}
        good = [shard for place, shard in enumerate(shards) if place not in bad]
        places = [place for place in range(len(shards)) if place not in bad]
        yield from ((place, Lost("its process died")) for place in bad)
        yield from ((places[number], answer) for number, answer in each(self, work, good, **words))

    monkeypatch.setattr(Shards, "each", lossy)


def test_a_shard_that_is_given_up_is_told_and_is_no_vector_of_zeros(tmp_path, pool, monkeypatch):
    loses(monkeypatch, 8)
    known = Embeddings(tmp_path / "e", embedder([]))
    rows, _ = known.of(pool, np.arange(20))
    assert rows.tolist() == [*range(8), *range(16, 20)]
    assert known.lost(pool, np.arange(20)) == dict.fromkeys(
        range(8, 16), "embedding its shard failed twice: its process died"
    )
    with pytest.raises(
        RunError, match=r"8 images of toy\S+ have no descriptor; embedding its shard failed twice: its pro"
    ):
        known.dense(pool, np.arange(20))


def test_a_stage_that_lost_a_shard_is_not_kept_and_runs_again(tmp_path, pool, monkeypatch):
    settings = Curation(pool="toy", seeds=["toy"], stages=["embedding"])

    def go():
        known = Embeddings(tmp_path / "e", embedder([]))
        state = State(pool, pool.whole, [pool], None, {}, known, tmp_path / "parts")
        return run_stages(state, settings, ["embedding"], tmp_path / "stages")[1][0]

    with monkeypatch.context() as patch:
        loses(patch, 8)
        lost = go()
    assert lost.result.dropped.row.tolist() == list(range(8, 16))
    assert set(lost.result.arrays["detail"]) == {"embedding its shard failed twice: its process died"}
    assert not (tmp_path / "stages" / "embedding").exists()
    again = go()
    assert not again.reused
    assert not len(again.result.dropped)
    assert go().reused
