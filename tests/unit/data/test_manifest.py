"""The manifest is columnar, is written whole or not at all, and old ones open."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoforge.base.errors import DataError
from dinoforge.data import manifest as module
from dinoforge.data.manifest import (
    SCHEMA,
    Manifest,
    firsts,
    is_manifest,
    read_made,
    read_manifest,
    texts,
    write_manifest,
)


def table(**columns):
    rows = len(next(iter(columns.values())))
    return pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in SCHEMA], SCHEMA
    )


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    path = tmp_path / "new" / "m.parquet"
    parts = [table(id=["a", "new\nline", "ü"], label=[1, None, -5]), table(id=["d"], label=[2])]
    assert write_manifest(path, parts, made={"verb": "scan", "rejected": []}) == 4
    assert pq.ParquetFile(path).num_row_groups == 3
    found = read_manifest(path)
    assert len(found) == 4
    assert found.column("id").tolist() == ["a", "new\nline", "ü", "d"]
    assert found.column("label").tolist() == [1, -1, -5, 2]
    assert found.column("split").tolist() == [""] * 4
    assert np.isnan(found.column("similarity")).all()
    assert (found.holds("label"), found.holds("split"), found.holds("nothing")) == (True, False, False)
    assert found.made == read_made(path) == {"verb": "scan", "rejected": []}
    assert json.loads(pq.read_schema(path).metadata[b"dinoforge"]) == found.made
    some = found.select(np.asarray([3, 0, 3]))
    assert [row["id"] for row in some.rows()] == ["d", "a", "d"]
    assert some.replaced("reason", "why").column("reason").tolist() == ["why"] * 3
    assert some.replaced("label", pa.array([7, 8, 9])).column("label").tolist() == [7, 8, 9]
    assert found.column("label").tolist() == [1, -1, -5, 2]
    assert sorted(child.name for child in path.parent.iterdir()) == ["m.parquet"]


def test_a_manifest_may_have_no_row(tmp_path):
    assert write_manifest(tmp_path / "m.parquet", [], made={"verb": "scan"}) == 0
    assert len(read_manifest(tmp_path / "m.parquet")) == 0


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "m.parquet"
    write_manifest(path, [table(id=["a"])], made={"verb": "scan"})

    def parts():
        yield table(id=["b"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, parts(), made={})
    assert read_manifest(path).column("id").tolist() == ["a"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_manifest_of_an_earlier_version_opens(tmp_path):
    path = tmp_path / "m.parquet"
    old = pa.table({"id": ["a", "b"], "label": pa.array([1, 2], pa.int32()), "reason": ["", "exact copy of a"],
                    "clarity": [0.5, 1.5]})  # fmt: skip
    pq.write_table(old.replace_schema_metadata({b"dinoforge": b'{"verb": "scan"}'}), path)
    found = read_manifest(path)
    assert found.table.schema.names == [*SCHEMA.names, "clarity"]
    assert found.column("label").dtype == np.int64
    assert found.column("clarity").tolist() == [0.5, 1.5]
    assert (found.column("stamp").tolist(), found.holds("stamp")) == (["", ""], False)
    some = read_manifest(path, columns=["id", "stamp"])
    assert (some.column("id").tolist(), some.holds("reason")) == (["a", "b"], False)


@pytest.mark.long
def test_the_reasons_of_a_million_rejected_fit_in(tmp_path):
    """Parquet readers refuse texts of 100 million bytes in a file's footer unless they are told."""
    path = tmp_path / "m.parquet"
    write_manifest(path, [table(id=["a"])], made={"verb": "scan", "rejected": ["x" * 90_000_000]})
    with pytest.raises(OSError, match="limit"):
        pq.read_schema(path)
    assert is_manifest(path)
    assert len(read_made(path)["rejected"][0]) == 90_000_000


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 no"), "cannot be read as a manifest"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "is a Parquet file but no manifest"),
        (lambda path: pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"dinoforge": b"{"}), path),
         "damaged manifest: it does not say how"),
        (lambda path: pq.write_table(pa.table({"id": [[1]]}).replace_schema_metadata({b"dinoforge": b"{}"}), path),
         "is a damaged manifest"),
        (lambda _path: None, "cannot be read as a manifest"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_one_line(write, message, tmp_path):
    path = tmp_path / "m.parquet"
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert len(str(caught.value).splitlines()) == 1


@given(st.lists(st.sampled_from(["a", "b", "c", None])))
def test_firsts_by_definition(values):
    assert firsts(pa.array(values, pa.string())).tolist() == [values.index(value) for value in values]
    chunks = pa.chunked_array([values[:2], values[2:]], pa.string())
    assert firsts(chunks).tolist() == [values.index(value) for value in values]


def test_names_that_are_no_unicode_are_null():
    names = np.asarray(["ok", "bad\udcff", "new\nline", "\U0001f600"])
    assert texts(names).to_pylist() == ["ok", None, "new\nline", "\U0001f600"]


def test_a_manifest_is_not_changed_by_what_is_made_of_it():
    manifest = Manifest(table(id=["a", "b"], reason=["x", "y"]), {})
    manifest.replaced("reason", None)
    assert manifest.column("reason").tolist() == ["x", "y"]
