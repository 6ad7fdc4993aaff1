"""What sources of a million rows are asked for is the same, block by block, as its definition."""

import os

import numpy as np
import pytest

from dinoforge.base.config import fingerprint
from dinoforge.data.sources import source as module
from dinoforge.data.sources.numbers import numbered
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.source import Source, file_stamp
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png


class Known(Source):
    """A source without pictures."""

    def __init__(self, **columns):
        self.address, self.columns = "known", columns

    def encoded(self, row):
        return b""


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 8, 9])
def test_a_fingerprint_by_blocks_is_that_of_the_whole(rows, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    names = ["a", 'quote "', "ü", "new\nline", "bad\udcff", "\U0001f600", "\\", "h", ""][:rows]
    labels = np.arange(rows) - 1
    ids = np.asarray(names, dtype=np.str_)
    assert Known(id=ids).fingerprint == fingerprint([names, None])
    assert Known(id=ids, label=labels).fingerprint == fingerprint([names, labels.tolist()])


def test_numbers_of_names_follow_their_order():
    names = np.asarray(["b", "", "a", "ü", "b", "Z"])
    assert numbered(names).tolist() == [2, -1, 1, 3, 2, 0]
    assert numbered(names[:0]).tolist() == []
    shuffled = np.random.default_rng(0).permutation(np.asarray([f"name {n}" for n in range(300)]))
    assert numbered(shuffled).tolist() == np.unique(shuffled, return_inverse=True)[1].tolist()


def test_the_stamp_of_a_file_is_its_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"123")
    os.utime(path, ns=(7, 1_000_000_007))
    assert file_stamp(path) == file_stamp(str(path)) == "3:1000000007"
    assert file_stamp(tmp_path / "none") is None
    assert file_stamp("null\0byte") is None


def test_stamps_are_those_of_the_rows_own_source(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png(np.zeros((1, 1, 3), np.uint8)) + b"x" * ord(name))
    folder = open_source(str(tmp_path))
    own = [file_stamp(tmp_path / f"{name}.png") for name in ("a", "b", "c")]
    assert [folder.stamp(row) for row in range(3)] == own
    assert len(set(own)) == 3
    assert folder.select(np.asarray([2, 0])).stamp(0) == own[2]
    both = Several("both", [Known(id=np.asarray(["x"])), folder])
    assert [both.stamp(row) for row in range(4)] == [None, *own]
