"""Folders with everything that a disk may hold, lists, tables, Parquet read in part."""

import io
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources import parquet
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.table import open_source


def png(level, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (6, 5), (level, 0, 0) if mode == "RGB" else level).save(file, "PNG")
    return file.getvalue()


def pictures(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number * 10))
    return root


def red(source):
    return [int(source.pixels(row)[0, 0, 0]) for row in range(len(source))]


def test_loops_end_and_each_real_folder_is_read_once(tmp_path):
    root = pictures(tmp_path / "in", "z/1.png", "z/deep/2.png")
    pictures(tmp_path, "out/3.png")
    (root / "a").symlink_to(root / "z")
    (root / "z" / "deep" / "up").symlink_to(root)
    (root / "other").symlink_to(tmp_path / "out")
    (root / "self").symlink_to(root / "self")
    (root / "self.png").symlink_to(root / "self.png")
    source = open_source(str(root))
    assert source.columns["id"].tolist() == ["self.png", "other/3.png", "z/1.png", "z/deep/2.png"]
    twice = "a link to a folder that was read already"
    assert source.rejected == [
        ("a", twice), ("z/deep/up", twice), ("self", "no suffix is no image format known here"),
    ]  # fmt: skip
    with pytest.raises(Broken, match="cannot be read: Too many levels"):
        source.pixels(0)


def test_pipes_and_devices_are_never_opened(tmp_path):
    root = pictures(tmp_path / "in", "ok.png")
    os.mkfifo(root / "pipe.png")
    (root / "null.png").symlink_to("/dev/zero")
    (root / "gone.png").symlink_to("nowhere")
    source = open_source(str(root))
    assert source.columns["id"].tolist() == ["gone.png", "ok.png"]
    assert source.rejected == [("null.png", "not a regular file"), ("pipe.png", "not a regular file")]
    (tmp_path / "l.txt").write_text("in/pipe.png\nin/null.png\nin\n")
    listed = open_source(f"{tmp_path}/l.txt")
    for row in range(3):
        with pytest.raises(Broken, match=r"not a regular file|Is a directory"):
            listed.pixels(row)
    with pytest.raises(DataError, match=r"pipe.png is not a regular file"):
        open_source(f"{root}/pipe.png")


def test_names_of_any_bytes(tmp_path):
    root = pictures(tmp_path / "in", "a\nb/1\n2.png", "ü ?*[x].png")
    with open(os.fsencode(root) + b"/\xff\xfe.png", "wb") as file:  # noqa: PTH123
        file.write(png(1))
    source = open_source(str(root))
    assert source.columns["id"].tolist() == ["ü ?*[x].png", "a\nb/1\n2.png"]
    assert red(source) == [10, 0]
    assert source.rejected == [("\\xff\\xfe.png", "the name is not valid UTF-8; rename it")]


def test_what_may_not_be_read_has_a_reason(tmp_path, monkeypatch):
    root = pictures(tmp_path / "in", "a/1.png", "b/2.png")
    pictures(root, "c/deep/3.png")
    scandir, opened, stat = os.scandir, os.open, os.stat

    def refuse(real, name):
        def call(path, *words, **more):
            if name in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *words, **more)

        return call

    monkeypatch.setattr(os, "scandir", refuse(scandir, "in/b"))
    monkeypatch.setattr(os, "open", refuse(opened, "1.png"))
    monkeypatch.setattr(os, "stat", refuse(stat, "in/c/deep"))  # c may be listed (r--), and not entered
    source = open_source(str(root))
    assert source.rejected == [(name, "the folder cannot be read: Permission denied") for name in ("b", "c/deep")]
    with pytest.raises(Broken, match=r"^the file cannot be read: Permission denied$"):
        source.pixels(0)
    monkeypatch.setattr(os, "scandir", refuse(scandir, "in"))
    with pytest.raises(DataError, match=r"in cannot be opened: the file cannot be read: Permission denied"):
        open_source(str(root))


def test_a_list_names_files_relative_to_itself_and_labels_after_a_tab(tmp_path):
    pictures(tmp_path / "in", "a.png", "b.png", "x y/c.png")
    (tmp_path / "in" / "l.lst").write_bytes(
        b"\xef\xbb\xbf# mine\r\na.png\t7\r\n\r\n  b.png\t\r\n"
        + f"{tmp_path}/in/x y/c.png\t-2\r\n".encode()
        + b"a.png\t1"
    )
    source = open_source(f"{tmp_path}/in/l.lst")
    assert source.columns["id"].tolist() == ["a.png", "b.png", f"{tmp_path}/in/x y/c.png", "a.png#2"]
    assert source.columns["label"].tolist() == [7, -1, -2, 1]
    assert red(source) == [0, 10, 20, 0]
    (tmp_path / "in" / "names.txt").write_text("a.png\tant\nb.png\t5\ngone.png\n")
    named = open_source(f"{tmp_path}/in/names.txt")
    assert named.columns["label_name"].tolist() == ["ant", "5", ""]
    assert named.columns["label"].tolist() == [1, 0, -1]
    with pytest.raises(Broken, match="No such file"):
        named.pixels(2)


def test_a_line_of_a_list_that_is_endless_costs_itself_alone(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    long = "x" * 100_000
    for name, text in (
        ("l.txt", f"a.png\tant\n{long}\tant\nb.png\tbee\nb.png\t{long}\n"),
        ("t.csv", f"path,label,note\na.png,ant,{long}\n{long},ant,\nb.png,bee,\nb.png,{long},\n"),
    ):
        (tmp_path / name).write_text(text)
        source = open_source(f"{tmp_path}/{name}")
        assert source.columns["id"].tolist() == ["a.png", "b.png"]
        assert source.columns["label_name"].tolist() == ["ant", "bee"]
        assert red(source) == [0, 10]
        assert sum(column.nbytes for column in source.columns.values()) < 1000
        assert source.rejected == [
            (f"{name}:1", "its path has 100,000 characters, more than 4,096"),
            (f"{name}:3", "its label has 100,000 characters, more than 4,096"),
        ]
    (tmp_path / "l.txt").write_text(f"{long}\n")
    with pytest.raises(DataError, match=r"l.txt names no image; of its first row, its path has 100,000 characters"):
        open_source(f"{tmp_path}/l.txt")
    (tmp_path / "l.txt").write_text("x" * 4096)
    assert len(open_source(f"{tmp_path}/l.txt")) == 1


def test_a_table_of_paths_has_all_columns(tmp_path, monkeypatch):
    pictures(tmp_path, "007.png", "b.png")
    (tmp_path / "m.png").write_bytes(png(3, "L"))
    rows = [["007.png", "m.png", "ant", 4, 0, "left", "x", "1 0 0"], ["b.png", "", "", "", 1, "", "x", ""]]
    head = ["file", "mask", "kind", "group", "frame", "clip", "split", "pose"]
    for name, mark in (("t.csv", ","), ("t.tsv", "\t")):
        (tmp_path / name).write_text("\n".join(mark.join(map(str, row)) for row in [head, *rows]))
        monkeypatch.chdir(tmp_path)
        source = open_source(f"{name}?label=kind")
        assert {column: values.tolist() for column, values in source.columns.items()} == {
            "id": ["007.png", "b.png"], "label": [0, -1], "label_name": ["ant", ""], "group": [4, -1], "frame": [0, 1],
            "clip": ["left", ""], "split": ["x", "x"], "pose": ["1 0 0", ""],
        }  # fmt: skip
        assert source.extra(0, "mask").tolist() == np.full((5, 6), 3).tolist()
        assert source.extra(1, "mask") is None
        assert red(source) == [0, 10]


@pytest.mark.parametrize("word", ["NA", "null", "NaN", "N/A"])
def test_a_class_may_be_called_like_nothing(word, tmp_path):
    def labels(*lines):
        (tmp_path / "t.csv").write_text("\n".join(["file,label,weight", *lines]))
        return open_source(f"{tmp_path}/t.csv").columns

    assert labels(f"a.png,{word},1", "b.png,US,2", "c.png,,3")["label_name"].tolist() == [word, "US", ""]
    assert labels(f"a.png,{word},1", f"b.png,{word},2")["label_name"].tolist() == [word, word]
    numbers = labels(f"a.png,{word},0.5", f"b.png,7,{word}", "c.png,,")  # among numbers it is a missing one
    assert numbers["label"].tolist() == [-1, 7, -1]
    np.testing.assert_equal(numbers["weight"], [0.5, np.nan, np.nan])
    assert labels("a.png,,", "b.png,,")["label"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"", "names no image; it takes a path or an address a line"),
        ("l.txt", b"# only\n\n", "names no image"),
        ("l.txt", b"a\xff.png\n", "is no UTF-8 text: byte 1 fits none"),
        ("t.csv", b"", "cannot be read as a table: Empty CSV file"),
        ("t.csv", b"file,label\n", "names no image: it has a header and no row"),
        ("t.csv", b"name,label\na.png,1\n", "has no column 'file' or 'path' or 'image'; it has name, label"),
        ("t.csv", b"file,label\na.png,1,2\n", "cannot be read as a table: CSV parse error"),
        ("t.csv", b"file,label\na.png,0.5\n", "column 'label' holds 0.5; it takes whole numbers or texts"),
        ("t.csv?image=fil", b"file,label\na.png,1\n", "has no column 'fil'. Did you mean 'file'"),
        ("t.csv?label=kind", b"file,label\na.png,1\n", "has no column 'kind'"),
        ("t.csv?id=label", b"file,label\na.png,1\nb.png,1\n", "column 'label' does not name every row once"),
        ("l.txt?label=x", b"a.png\n", "Option 'label' has no effect on a list without columns"),
        ("l.txt?lable=x", b"a.png\n", "Unknown option of a source 'lable'. Did you mean 'label'"),
        ("l.txt?allow_private=perhaps", b"a.png\n", "allow_private takes true or false; got 'perhaps'"),
        ("x.zip", b"PK", "is a file but no Parquet file, tar, list or image; known are .csv"),
    ],
)
def test_bad_files_are_one_line(name, content, message, tmp_path):
    (tmp_path / name.partition("?")[0]).write_bytes(content)
    with pytest.raises((DataError, ConfigError)) as error:
        open_source(f"{tmp_path}/{name}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_without_effect_on_a_folder_are_errors(tmp_path):
    pictures(tmp_path / "in", "a.png")
    with pytest.raises(ConfigError, match="Option 'label' has no effect on a folder of image files; what has: split"):
        open_source(f"{tmp_path}/in?label=x")


def test_one_image_is_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(pictures(tmp_path, "a.png"))
    assert red(open_source("a.png")) == [0]
    assert open_source(f"{tmp_path}/a.png").columns["id"].tolist() == ["a.png"]


def test_of_parquet_only_the_group_of_rows_that_is_asked_for_is_held(tmp_path, monkeypatch):
    images = [png(n) for n in range(40)]
    pq.write_table(pa.table({"image": images, "mask": [png(n, "L") for n in range(40)]}), tmp_path / "p.parquet",
                   row_group_size=8)  # fmt: skip
    source = open_source(f"{tmp_path}/p.parquet")
    recent = parquet._Recent(3 * 8 * len(images[0]))
    monkeypatch.setattr(parquet, "_RECENT", recent)
    order = np.random.default_rng(0).permutation(40).tolist()
    assert [source.encoded(row) for row in order] == [images[row] for row in order]
    assert {name for _, _, name in recent._held} == {"image"}
    assert recent._bytes == sum(column.nbytes for column in recent._held.values()) <= recent._size
    assert 1 <= len(recent._held) < 5
    assert source.extra(39, "mask").max() == 39
    assert pickle.loads(pickle.dumps(source)).encoded(39) == images[39]
    assert len(pickle.dumps(source)) < 20_000


def test_ids_that_two_files_share_are_told_apart(tmp_path):
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": [png(1), png(2)], "id": ["0", "1"]}), tmp_path / f"{split}.parquet")
    source = open_source(str(tmp_path))
    assert source.columns["id"].tolist() == ["test.parquet:0", "test.parquet:1", "train.parquet:0", "train.parquet:1"]
    one = open_source(f"{tmp_path}/test.parquet")
    assert Several("twice", [one, one]).columns["id"].tolist() == ["0:test.parquet:0", "0:test.parquet:1",
                                                                   "1:test.parquet:0", "1:test.parquet:1"]  # fmt: skip
    pq.write_table(pa.table({"image": [png(1), png(2)], "id": ["0", "0"]}), tmp_path / "same.parquet")
    assert open_source(f"{tmp_path}/same.parquet").columns["id"].tolist() == ["same.parquet:0", "same.parquet:1"]


def named(kind, **more):
    """A column that names a.png and b.png."""
    return pa.array([{**more, "path": "a.png"}, {**more, "path": "b.png"}] if kind == "struct" else ["a.png", "b.png"])


@pytest.mark.parametrize(
    "column",
    [
        named("text"),
        named("text").dictionary_encode(),
        named("struct"),
        named("struct", bytes=pa.scalar(None, pa.binary())),
    ],
    ids=["text", "words", "path", "bytes or path"],
)
def test_files_that_a_parquet_file_names_are_told_unchanged(column, tmp_path):
    place = pictures(tmp_path, "a.png", "b.png")
    pq.write_table(pa.table({"image": column}), tmp_path / "p.parquet")
    before = [open_source(f"{place}/p.parquet").stamp(row) for row in range(2)]
    assert None not in before
    os.utime(tmp_path / "b.png", (0, 0))
    after = [open_source(f"{place}/p.parquet").stamp(row) for row in range(2)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]
    assert pickle.loads(pickle.dumps(open_source(f"{place}/p.parquet"))).stamp(1) == after[1]


def test_of_bytes_with_a_name_the_parquet_file_alone_counts(tmp_path):
    pictures(tmp_path, "a.png")
    rows = [{"bytes": png(1), "path": "a.png"}, {"bytes": png(2), "path": None}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet")
    before = open_source(f"{tmp_path}/p.parquet").stamp(0)
    os.utime(tmp_path / "a.png", (0, 0))
    assert open_source(f"{tmp_path}/p.parquet").stamp(0) == before is not None
    some = [{"bytes": png(1), "path": "gone.png"}, {"bytes": None, "path": "https://example.org/a.png"}]
    pq.write_table(pa.table({"image": some}), tmp_path / "p.parquet")
    source = open_source(f"{tmp_path}/p.parquet")
    assert source.stamp(0) is not None
    assert source.stamp(1) is None  # nobody can tell


def test_parquet_by_pattern(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "val_0"):
        pq.write_table(pa.table({"image": [png(1)]}), tmp_path / f"{name}.parquet")
    assert open_source(f"{tmp_path}/*.parquet").columns["split"].tolist() == ["train", "train", "val"]
    assert len(open_source(f"{tmp_path}/train-*.parquet")) == 2


def test_paths_in_a_table_that_lead_nowhere_are_broken_rows(tmp_path):
    pq.write_table(pa.table({"path": ["gone.png", None]}), tmp_path / "p.parquet")
    source = open_source(f"{tmp_path}/p.parquet")
    with pytest.raises(Broken, match="No such file"):
        source.encoded(0)
    with pytest.raises(Broken, match="holds no image"):
        source.encoded(1)


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("https://u:pw@host:8/a/b@2.txt?X-Amz-Signature=1&split=val#x", "https://host:8/a/b@2.txt?split=val"),
        ("https://host/a.txt?token=1", "https://host/a.txt"),
        ("s3://key:secret@bucket/x?split=val", "s3://bucket/x?split=val"),
        ("photos/u:p@x?split=val", "photos/u:p@x?split=val"),
    ],
)
def test_no_secret_is_shown(address, seen):
    assert shown(address) == seen
