"""Embeddings on the disk: computed once, what is lacking is added, and those of other weights never stand in."""

import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.curate import embeddings as stored
from dinoforge.curate import images as reading
from dinoforge.curate.embeddings import LAYOUT, Embedder, Embeddings
from dinoforge.curate.images import read_images
from dinoforge.data.sources.table import open_source


@pytest.fixture
def pool(tmp_path, monkeypatch):
    for module in (reading, stored):
        monkeypatch.setattr(module, "SHARD", 8)
    source = open_source("toy://species?images=20&size=16")
    return read_images(source, tmp_path / "read", name="pool", workers=1)


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
    assert not (tmp_path / "e").exists()
