"""Embeddings on the disk: computed once, what is lacking is added, and those of other weights never stand in."""

import shutil
from contextlib import suppress

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
from dinoforge.curate.settings import settle
from dinoforge.curate.state import State
from dinoforge.data.decode import Broken
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
    assert known.lasting  # their files are whole: another start would find the same
    again = embedder(calls := [], unusable=bad)
    np.testing.assert_array_equal(Embeddings(tmp_path / "e", again).of(pool, np.arange(20))[1], vectors)
    assert calls == []
    with pytest.raises(DataError, match=r"No image of .* could be embedded"):
        Embeddings(tmp_path / "f", embedder([], unusable=pool.source.columns["id"])).of(pool, np.arange(20))


def by_files():
    """What embeds reads the files."""

    def embed(source):
        found = {}
        for row in range(len(source)):
            with suppress(Broken):
                found[row] = np.frombuffer(source.encoded(row), np.uint8)[-64:]
        if not found:
            raise DataError("No image could be used.")
        return np.stack(list(found.values())).astype(np.float32), np.asarray(list(found))

    return Embedder("test", "a", embed)


def unread(patch, source, rows, *, times=10**9):
    """Let rows fail to be read, each so many times."""
    whole, left = source.encoded, dict.fromkeys(rows, times)

    def encoded(row):
        if left.get(row, 0):
            left[row] -= 1
            raise Broken("cannot be read: Input/output error")
        return whole(row)

    patch.setattr(source, "encoded", encoded)


@pytest.mark.parametrize("rows", [[3], range(8, 16), range(20)])
def test_rows_that_cannot_be_read_for_a_while_are_tried_again_by_the_next_start(rows, tmp_path, pool, monkeypatch):
    expected = Embeddings(tmp_path / "never failed", by_files()).of(pool, np.arange(20))
    with monkeypatch.context() as patch:
        unread(patch, pool.source, rows)
        known = Embeddings(tmp_path / "e", by_files())
        if len(rows) < 20:
            usable, vectors = known.of(pool, np.arange(20))
            assert usable.tolist() == np.setdiff1d(np.arange(20), rows).tolist()
            np.testing.assert_array_equal(vectors, expected[1][usable])
            with pytest.raises(
                RunError, match=r"images of toy\S+ have no descriptor; cannot be read: Input/output error"
            ):
                known.dense(pool, np.arange(20))
        else:
            with pytest.raises(DataError, match="could be embedded; cannot be read: Input/output error"):
                known.of(pool, np.arange(20))
        assert known.lost(pool, np.arange(20)) == dict.fromkeys(rows, "cannot be read: Input/output error")
        assert not known.lasting
    again = Embeddings(tmp_path / "e", by_files())
    for found, right in zip(again.of(pool, np.arange(20)), expected, strict=True):
        np.testing.assert_array_equal(found, right)
    assert again.lasting
    np.testing.assert_array_equal(again.dense(pool, np.arange(20)), expected[1])


def test_a_read_error_of_one_moment_costs_nothing(tmp_path, pool, monkeypatch):
    unread(monkeypatch, pool.source, [3, 9], times=1)
    known = Embeddings(tmp_path / "e", by_files())
    assert known.of(pool, np.arange(20))[0].tolist() == list(range(20))
    assert known.lasting


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


SETTINGS = {
    "embedding": {},
    "retrieval": {"retrieval.neighbours": 20},
    "balance": {"balance.images": 20, "balance.levels": [3]},
}


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda patch, _pool: loses(patch, 8), "embedding its shard failed twice: its process died"),
        (lambda patch, pool: unread(patch, pool.source, range(8, 16)), "cannot be read: Input/output error"),
    ],
)
def test_stages_of_what_was_lost_are_not_kept_and_run_again(loss, why, tmp_path, pool, monkeypatch):
    settings, _ = settle({"pool": "p", "seeds": "s", "retrieve": "samples", **{
        path: value for words in SETTINGS.values() for path, value in words.items()}})  # fmt: skip

    def go():
        known = Embeddings(tmp_path / "e", by_files())
        state = State(pool, pool.whole, [pool], None, {}, known, tmp_path / "parts")
        return run_stages(state, settings, list(SETTINGS), tmp_path / "stages")[1]

    with monkeypatch.context() as patch:
        loss(patch, pool)
        lost = go()[0]
    assert lost.result.dropped.row.tolist() == list(range(8, 16))
    assert set(lost.result.arrays["detail"]) == {why}
    assert not (tmp_path / "stages").exists()
    again = go()
    assert not any(one.reused for one in again)
    assert not len(again[0].result.dropped)
    assert all(one.reused for one in go())
    # Their parts may go; where they cannot be made again, no stage takes what is left for all.
    for name in ("retrieval", "balance"):
        shutil.rmtree(tmp_path / "e")
        shutil.rmtree(tmp_path / "stages" / name)
        with monkeypatch.context() as patch:
            loss(patch, pool)
            go()
        assert not (tmp_path / "stages" / name).exists()
        go()
