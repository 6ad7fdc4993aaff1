"""One odd value costs its row, its column or its file, with a reason; never the files beside it."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinoforge.base.errors import DataError
from dinoforge.data.manifest import SCHEMA, write_manifest
from dinoforge.data.sources.table import open_source


def png():
    file = io.BytesIO()
    Image.new("RGB", (6, 5)).save(file, "PNG")
    return file.getvalue()


def table(path, **columns):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": [png(), png()], **columns}), path)
    return str(path)


def not_unicode():
    offsets = pa.py_buffer(np.asarray([0, 2, 4], np.int32).tobytes())
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xffbb")])


@pytest.mark.parametrize("facts", [b'{"caption": "cut \\ud83d", "label": 1}', b'{"\\ud83d": 1}'])
def test_facts_that_are_no_unicode_cost_themselves(facts, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("1.png", png()), ("1.json", facts), ("2.png", png()), ("2.cls", b"7")):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    source = open_source(f"{tmp_path}/a.tar")
    assert source.columns["label"].tolist() == [-1, 7]
    ((name, reason),) = source.rejected
    assert name == "a.tar/1.json"
    assert reason.startswith("not read: 'utf-8' codec can't encode")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": not_unicode()}, "cannot be read as Parquet: 'utf-8' codec can't decode byte 0xff"),
        ({"frame": pa.array([2**64 - 1, 1], pa.uint64())}, "column 'frame' holds 18446744073709551615, which is no"),
        ({"label": pa.array([2**64 - 1, 1], pa.uint64())}, "column 'label' holds 18446744073709551615, which is no"),
    ],
)
def test_a_table_with_an_odd_column_is_set_aside(columns, said, tmp_path):
    table(tmp_path / "in" / "odd.parquet", **columns)
    table(tmp_path / "in" / "sound.parquet")
    source = open_source(f"{tmp_path}/in")
    assert len(source) == 2
    ((name, reason),) = source.rejected
    assert (name, said in reason) == ("odd.parquet", True)


def test_bytes_of_one_length_are_no_names(tmp_path):
    source = open_source(table(tmp_path / "a.parquet", id=pa.array([b"\xff" * 16, b"\xfe" * 16], pa.binary(16))))
    assert source.columns["id"].tolist() == ["a.parquet:0", "a.parquet:1"]


def test_two_signs_are_no_number(tmp_path):
    (tmp_path / "l.txt").write_text("a.png\t--5\nb.png\t-3\n")
    assert open_source(f"{tmp_path}/l.txt").columns["label_name"].tolist() == ["--5", "-3"]


@pytest.mark.parametrize(
    ("row", "made"),
    [({"source": None}, {}), ({}, {"by_name": 3}), ({}, {"by_name": [{}]})],
    ids=["no source", "by_name a number", "by_name of no names"],
)
def test_a_damaged_manifest_is_one_line(row, made, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    sound = {field.name: None for field in SCHEMA} | {"id": "a.png", "uri": "a.png", "source": f"{tmp_path}/a.png"}
    write_manifest(tmp_path / "m.parquet", [pa.Table.from_pylist([sound], SCHEMA)], made={})
    assert len(open_source(f"{tmp_path}/m.parquet")) == 1
    write_manifest(tmp_path / "m.parquet", [pa.Table.from_pylist([sound | row], SCHEMA)], made=made)
    with pytest.raises(DataError, match=r"m\.parquet is damaged: ") as error:
        open_source(f"{tmp_path}/m.parquet")
    assert len(str(error.value).splitlines()) == 1
