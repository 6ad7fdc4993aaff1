"""What every source promises, and how addresses are read."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.journal import Journal
from dinoforge.data.manifest import read_manifest, write_manifest
from dinoforge.data.scan import scan
from dinoforge.data.sources.numbers import agreed
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.data.sources.table import SOURCES, has_split, open_source
from dinoforge.data.sources.toy import ClipsConfig, ToyConfig
from dinoforge.verbs.sides import Named, opened_sides
from films import plain, write


def png(level, size=(12, 9)):
    file = io.BytesIO()
    Image.new("RGB", size, (level, 0, 255 - level)).save(file, "PNG")
    return file.getvalue()


def folder(root):
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            path = root / split / ("cats" if number % 2 else "dogs") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number * 20))
    return str(root)


def videos(root):
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            write(root / split / ("cats" if number % 2 else "dogs") / f"{number}.avi", plain(number * 20))
    return f"{root}?frames=1"


def parquet(root):
    root.mkdir(exist_ok=True)
    for split, count in (("train", 6), ("test", 3)):
        table = pa.table(
            {
                "image": [png(n * 20) for n in range(count)],
                "label": pa.array([n % 2 for n in range(count)], pa.int32()),
                "label_name": ["dog", "cat"] * (count // 2) + ["dog"] * (count % 2),
                "coarse_label": [0] * count,
            }
        )
        pq.write_table(table, root / f"{split}.parquet")
    return str(root)


def manifest(root, of=None):
    """A manifest of a source's pictures, as ``scan`` writes one; of a folder's where none is given."""
    address, path = of or folder(root), root.parent / "m.parquet"
    source = open_source(address)
    with Journal(root.parent / ".journal.arrow", about={}) as journal:
        found = scan(source, earlier=None, journal=journal, workers=1)
    write_manifest(path, found.tables(), made={"verb": "scan"})
    return str(path)


def files(root):
    """Pictures by their split and file name, and what tables say of them."""
    folder(root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return paths, ["cat" if "cats" in path else "dog" for path in paths], [path.split("/")[0] for path in paths]


def list_file(root):
    paths, labels, _ = files(root)
    lines = [f"{path}\t{label}" for path, label in zip(paths, labels, strict=True)]
    (root / "all.txt").write_text("# photos\n\n" + "\n".join(lines) + "\n")
    return f"{root}/all.txt"


def csv_file(root):
    paths, labels, splits = files(root)
    rows = [f"{path},{label},{split}" for path, label, split in zip(paths, labels, splits, strict=True)]
    (root / "all.csv").write_text("file,label,split\n" + "\n".join(rows))
    return f"{root}/all.csv"


def parquet_paths(root):
    paths, labels, splits = files(root)
    pq.write_table(pa.table({"path": paths, "label": labels, "split": splits}), root / "all.parquet")
    return f"{root}/all.parquet"


def tar_file(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def tars(root):
    """WebDataset shards: two of train, one of test."""
    for shard, numbers in (("train-000", (0, 1, 2)), ("train-001", (3, 4, 5)), ("test-000", (0, 1, 2))):
        members = {}
        for number in numbers:
            facts = {"label_name": ("dog", "cat")[number % 2], "frame": number}
            members |= {
                f"{number:05}.png": png(number * 20), f"{number:05}.cls": str(number % 2).encode(),
                f"{number:05}.json": json.dumps(facts).encode(), f"{number:05}.mask.png": mask(number),
            }  # fmt: skip
        tar_file(root / f"{shard}.tar", members)
    return f"{root}/*.tar"


def mask(number):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def saved_dataset(root):
    """What the library ``datasets`` saves, a split each."""
    import datasets

    root.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    splits = {
        split: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": png(n * 20), "path": None} for n in range(count)],
                "label": [n % 2 for n in range(count)],
            },
            features=features,
        )
        for split, count in (("train", 6), ("test", 3))
    }
    datasets.DatasetDict(splits).save_to_disk(str(root / "saved"))
    return f"hf://{root / 'saved'}"


def stored(make):
    """The same, in object storage."""

    def put(root):
        inside = make(root).removeprefix(str(root))
        STORAGE[0].put("contract", root.parent)
        return f"s3://contract/{root.name}{inside}"

    return put


STORAGE = []
MEMBERS = {
    "folder": folder,
    "videos": videos,
    "manifest": manifest,
    "manifest of tars": lambda root: manifest(root, of=tars(root)),
    "manifest of s3": lambda root: manifest(root, of=stored(folder)(root)),
    "parquet": parquet,
    "parquet with paths": parquet_paths,
    "list": list_file,
    "table": csv_file,
    "tars": tars,
    "hf": saved_dataset,
    "s3 folder": stored(folder),
    "s3 parquet": stored(parquet),
    "s3 table": stored(csv_file),
    "s3 tars": stored(tars),
    "toy species": lambda _root: "toy://species?images=45&size=24",
    "toy minerals": lambda _root: (
        "toy://minerals?images=45&size=24&objects=3&imbalance=5&copies=0.2&leaks=0.1&junk=0.05"
    ),
    "toy clips": lambda _root: "toy://clips?clips=15&frames=3&size=24",
}
KINDS = {
    "id": "U", "label": "i", "label_name": "U", "split": "U", "group": "i", "group_name": "U", "frame": "i", "clip": "U",
    "variant": "U", "pose": "U",
}  # fmt: skip
"""Columns that mean the same in every source, and what they hold."""


@pytest.fixture
def source(request, tmp_path):
    if "s3" in request.param:
        STORAGE[:] = [request.getfixturevalue("object_storage")]
    root = tmp_path / f"data-{request.node.name.replace('[', '-').replace(']', '').replace(' ', '-')}"
    return open_source(MEMBERS[request.param](root))


def test_every_scheme_is_here():
    assert set(SOURCES) == {"", "s3", "gs", "az", "http", "https", "hf", "toy"}


@pytest.mark.parametrize("source", MEMBERS, indirect=True)
class TestEverySource:
    def test_rows_and_columns_agree(self, source):
        assert len(source) == (45 if "toy" in source.address else 9)
        assert all(len(column) == len(source) for column in source.columns.values())
        assert len(set(source.columns["id"].tolist())) == len(source)
        assert {name: column.dtype.kind for name, column in source.columns.items() if name in KINDS} == {
            name: kind for name, kind in KINDS.items() if name in source.columns
        }
        assert source.columns["label"].dtype == np.int64

    def test_classes_and_splits_come_along(self, source):
        if "toy" in source.address:
            return
        assert sorted(source.columns["split"].tolist()) == ["test"] * 3 + ["train"] * 6
        names = [name.rstrip("s") for name in source.columns["label_name"].tolist()]
        assert sorted(names) == ["cat"] * 4 + ["dog"] * 5
        red = [int(source.pixels(row)[0, 0, 0]) for row in range(9)]
        assert [("dog", "cat")[level // 20 % 2] for level in red] == names

    def test_order_is_fixed(self, source):
        again = open_source(source.address)
        assert again.columns["id"].tolist() == source.columns["id"].tolist()
        assert again.fingerprint == source.fingerprint
        assert np.array_equal(again.pixels(3), source.pixels(3))

    def test_pixels_are_those_of_the_encoded_file(self, source):
        pixels = source.pixels(2)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.encoded(2)))), pixels)

    def test_splits(self, source):
        assert has_split(source, "train")
        train, test = (open_source(source.address, split) for split in ("train", "test"))
        assert len(train) + len(test) == len(source)
        assert set(train.columns["split"]) == {"train"}
        mark = "&" if "?" in source.address else "?"
        named = open_source(f"{source.address}{mark}split=test")
        assert named.columns["id"].tolist() == test.columns["id"].tolist()

    def test_selected_rows_are_the_same_images(self, source):
        some = source.select(np.asarray([4, 1]))
        assert some.columns["id"].tolist() == source.columns["id"][[4, 1]].tolist()
        assert np.array_equal(some.pixels(1), source.pixels(1))
        assert np.array_equal(some.select(np.asarray([1])).pixels(0), source.pixels(1))
        assert some.fingerprint != source.fingerprint

    def test_goes_to_another_process(self, source):
        source.pixels(0)
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(again.pixels(3), source.pixels(3))


def test_a_moved_folder_has_the_same_fingerprint(tmp_path):
    before = open_source(folder(tmp_path / "a")).fingerprint
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert open_source(str(tmp_path / "b")).fingerprint == before


def test_folder_labels_are_class_folders(tmp_path):
    source = open_source(folder(tmp_path / "a"), "train")
    assert set(source.columns["label_name"]) == {"cats", "dogs"}
    by_name = dict(zip(source.columns["label_name"].tolist(), source.columns["label"].tolist(), strict=True))
    assert by_name == {"cats": 0, "dogs": 1}


def test_a_folder_without_classes_has_no_labels(tmp_path):
    (tmp_path / "x.png").write_bytes(png(3))
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert set(source.columns) == {"id"}
    assert source.rejected == [
        ("notes.txt", ".txt is no image format known here; a list of images is given by its own path")
    ]


def test_another_label_column(tmp_path):
    source = open_source(parquet(tmp_path / "p") + "?label=coarse_label")
    assert set(source.columns["label"].tolist()) == {0}
    with pytest.raises(ConfigError, match=r"has no column 'coarse_labl'. Did you mean 'coarse_label'"):
        open_source(parquet(tmp_path / "p") + "?label=coarse_labl")


def test_images_and_tables_in_one_folder(tmp_path):
    parquet(tmp_path / "mixed")
    (tmp_path / "mixed" / "extra.png").write_bytes(png(200))
    source = open_source(str(tmp_path / "mixed"))
    assert len(source) == 10
    row = source.columns["id"].tolist().index("extra.png")
    assert source.pixels(row)[0, 0].tolist() == [200, 0, 55]
    assert source.columns["label"][row] == -1


def test_a_vanished_file_is_broken_not_a_crash(tmp_path):
    source = open_source(folder(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(Broken, match="cannot be read"):
        source.pixels(0)


class Known(Source):
    """A source without pictures."""

    def __init__(self, **columns):
        self.address, self.columns = "known", columns

    def encoded(self, row):
        return b""


def test_sources_side_by_side_say_what_they_do_not_know():
    short = Known(id=np.asarray(["a"]), strength=np.asarray([0.5]), label=np.asarray([3]))
    long = Known(id=np.asarray(["b", "c"]), role=np.asarray(["plain", "a copy"]), group=np.asarray([7, 8]))
    columns = Several("both", [short, long]).columns
    assert columns["id"].tolist() == ["a", "b", "c"]
    assert columns["role"].tolist() == ["", "plain", "a copy"]
    assert (columns["label"].tolist(), columns["group"].tolist()) == ([3, -1, -1], [-1, 7, 8])
    assert (columns["label"].dtype, columns["strength"].dtype) == (np.int64, np.float64)
    np.testing.assert_equal(columns["strength"], [0.5, np.nan, np.nan])


def classes(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(png(9))
    return open_source(str(root))


def table(path, **columns):
    path.parent.mkdir(exist_ok=True, parents=True)
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [png(n) for n in range(rows)], **columns}), path)
    return open_source(str(path))


def names_and_numbers(*sources, column="label"):
    pairs = [zip(*(s.columns[c].tolist() for c in (f"{column}_name", column)), strict=True) for s in sources]
    return [dict(sorted(pair)) for pair in pairs]


def test_a_class_has_one_number_in_sources_that_number_names(tmp_path):
    a, b = classes(tmp_path / "a", "ant", "bee", "cat"), classes(tmp_path / "b", "bee", "cat", "dog")
    assert names_and_numbers(*agreed([a, b])) == [{"ant": 0, "bee": 1, "cat": 2}, {"bee": 1, "cat": 2, "dog": 3}]
    assert agreed([a, b])[1].pixels(0).tolist() == b.pixels(0).tolist()
    both = Several("both", [a, b])
    assert names_and_numbers(both) == [{"ant": 0, "bee": 1, "cat": 2, "dog": 3}]
    assert names_and_numbers(agreed([both, a])[1]) == [{"ant": 0, "bee": 1, "cat": 2}]
    assert agreed([a, a.select(np.asarray([2]))])[1].columns["label"].tolist() == [2]


def test_classes_that_are_asked_have_the_numbers_of_those_that_vote(tmp_path):
    for name in ("a", "b"):
        classes(tmp_path / name, *("ant", "bee", "cat")[name == "b" :])
    sides = opened_sides(Named(train=str(tmp_path / "a"), test=str(tmp_path / "b")), "classes")
    assert names_and_numbers(sides.known, sides.asked) == [
        {"ant": 0, "bee": 1, "cat": 2}, {"bee": 1, "cat": 2}
    ]  # fmt: skip


def test_labels_that_are_texts_agree_over_the_files_of_a_folder(tmp_path):
    table(tmp_path / "train.parquet", label=["ant", "bee", "cat"], group=["p1", "p2", "p2"])
    table(tmp_path / "test.parquet", label=["cat", "bee", None], group=["p2", None, "p3"])
    columns = open_source(str(tmp_path)).columns
    assert columns["label_name"].tolist() == ["cat", "bee", "", "ant", "bee", "cat"]
    assert columns["label"].tolist() == [2, 1, -1, 0, 1, 2]
    assert columns["group"].tolist() == [1, -1, 2, 0, 1, 1]


def test_numbers_that_were_given_stay_and_names_follow_them(tmp_path):
    given = table(tmp_path / "a.parquet", label=[7, 3], label_name=["bee", "cat"])
    named = classes(tmp_path / "f", "ant", "bee", "cat")
    found = agreed([named, given])
    assert names_and_numbers(*found) == [{"ant": 8, "bee": 7, "cat": 3}, {"bee": 7, "cat": 3}]
    nameless = table(tmp_path / "b.parquet", label=[1, 0])
    assert [s.columns["label"].tolist() for s in agreed([named, nameless])] == [[0, 1, 2], [1, 0]]


def test_labels_that_were_given_again_are_numbered_as_the_labels_are(tmp_path):
    """Two of a thousand classes: what an image shows besides is no class of theirs, and stays so."""
    found = classes(tmp_path / "f", "bee", "cat")
    found.columns = {**found.columns, "label": np.asarray([5, 7]), "real": np.asarray(["7 5", "0\n7"])}
    one, other = agreed([found, found.select(np.asarray([1]))])
    assert one.columns["label"].tolist() == [0, 1]
    first, second = ([int(word) for word in text.split()] for text in one.columns["real"].tolist())
    assert first == [1, 0]
    assert second[1] == 1
    assert second[0] not in {0, 1}
    assert other.columns["real"].tolist()[0].split()[1] == "1"
    # A class that only the other source has, where both number alike; and where they do not.
    more = classes(tmp_path / "g", "ant", "bee", "cat")
    for labels, right in (([0, 5, 7], "0"), ([1, 5, 6], None)):
        more.columns = {**more.columns, "label": np.asarray(labels)}
        found.columns = {**found.columns, "real": np.asarray(["0 7", "5"])}
        first, second = agreed([more, found])[1].columns["real"].tolist()
        assert first.split()[1] == str(["ant", "bee", "cat"].index("cat"))
        assert second == "1"
        assert first.split()[0] == right if right else int(first.split()[0]) > 2


def test_whole_floats_are_labels_and_others_are_one_line(tmp_path):
    found = table(tmp_path / "a.parquet", label=[1.0, 10.0, float("nan"), None], group=[2.0, 2.0, None, 3.0])
    assert found.columns["label"].tolist() == [1, 10, -1, -1]
    assert found.columns["group"].tolist() == [2, 2, -1, 3]
    with pytest.raises(DataError, match=r"column 'label' holds 0.5; it takes whole numbers or texts"):
        table(tmp_path / "b.parquet", label=[0.5, 1.0])


def test_image_columns_without_pictures_are_one_line(tmp_path):
    pq.write_table(pa.table({"image": [{"width": 5}]}), tmp_path / "struct.parquet")
    with pytest.raises(DataError, match=r"no image bytes in its column 'image' but struct<width: int64>"):
        open_source(str(tmp_path / "struct.parquet"))


def test_a_struct_of_the_hub_holds_bytes_or_a_path(tmp_path):
    (tmp_path / "b.png").write_bytes(png(80))
    pictures = pa.array([{"bytes": png(4), "path": "a.png"}, {"bytes": None, "path": "b.png"}])
    truths = pa.array([{"bytes": mask(7), "path": None}, None])
    features = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    table = pa.table({"image": pictures, "mask": truths, "label": [1, None]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "hub.parquet")
    hub = open_source(str(tmp_path / "hub.parquet"))
    assert [hub.pixels(row)[0, 0].tolist() for row in range(2)] == [[4, 0, 251], [80, 0, 175]]
    assert hub.extra(0, "mask").tolist() == np.full((9, 12), 7).tolist()
    assert hub.extra(1, "mask") is None
    assert hub.columns["label_name"].tolist() == ["cat", ""]


def test_odd_tables_in_a_folder_are_set_aside_with_the_reason(tmp_path):
    manifest(tmp_path / "in" / "data")  # writes in/m.parquet beside the pictures
    shutil.rmtree(tmp_path / "in" / "data")
    table(tmp_path / "in" / "GOOD.PARQUET", label=[0, 1])
    (tmp_path / "in" / "cut.parquet").write_bytes((tmp_path / "in" / "GOOD.PARQUET").read_bytes()[:-20])
    pq.write_table(pa.table({"id": ["a"], "row": [1]}), tmp_path / "in" / "ids.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "in" / "none.parquet")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path / "in"))
    assert source.columns["id"].tolist() == ["GOOD.PARQUET:0", "GOOD.PARQUET:1"]
    reasons = dict(source.rejected)
    assert reasons["m.parquet"] == "is a manifest: give its own path, on this machine."
    assert reasons["cut.parquet"].startswith("cannot be read as Parquet")
    assert reasons["ids.parquet"] == "has no column 'file' or 'path' or 'image'; it has id, row. ?image= names another."
    assert reasons["none.parquet"] == "has no row."
    assert len(reasons) == 5
    (tmp_path / "in" / "x.png").write_bytes(png(1))
    assert len(open_source(str(tmp_path / "in")).rejected) == 5
    (tmp_path / "in" / "x.png").unlink()
    (tmp_path / "in" / "GOOD.PARQUET").unlink()
    (tmp_path / "in" / "notes.txt").unlink()
    with pytest.raises(DataError, match=r"holds no image; 4 other files are in it, the first cut.parquet: cannot be"):
        open_source(str(tmp_path / "in"))


def test_a_cut_reaches_every_class_of_a_sorted_source():
    def known(labels, **columns):
        return Known(id=np.asarray([str(n) for n in range(len(labels))]), label=np.asarray(labels), **columns)

    label = np.repeat(np.arange(10), 100)
    cut = first_rows(known(label), 200)
    counts = np.bincount(cut.columns["label"], minlength=10)
    assert len(cut) == 200
    assert counts.min() >= 8  # 20 a class expected, deviation 4
    rows = cut.columns["id"].astype(int)
    assert (np.diff(rows) > 0).all()
    assert first_rows(known(label), 200).columns["id"].tolist() == cut.columns["id"].tolist()
    both = first_rows(known(np.tile(label, 2), split=np.repeat(["test", "train"], 1000)), 400)
    assert set(both.columns["split"]) == {"test", "train"}
    mixed = first_rows(known(np.random.default_rng(0).permutation(label)), 200)
    assert mixed.columns["id"].tolist() == [str(n) for n in range(200)]
    assert first_rows(Known(id=np.asarray(["a", "b"])), 1).columns["id"].tolist() == ["a"]
    assert len(first_rows(known(label), 5000)) == 1000


def test_a_polluted_world_keeps_its_columns_when_joined_and_selected(tmp_path):
    world = open_source("toy://species?images=30&size=16&copies=0.3&junk=0.2")
    both = Several("both", [open_source(folder(tmp_path / "a")), world])
    assert both.columns["copy_of"][9:].tolist() == world.columns["copy_of"].tolist()
    np.testing.assert_equal(both.columns["copy_strength"][9:], world.columns["copy_strength"])
    assert np.isnan(both.columns["copy_strength"][:9]).all()
    some = both.select(np.flatnonzero(both.columns["copy_kind"] == "flip"))
    for row, number in enumerate(np.flatnonzero(world.columns["copy_kind"] == "flip").tolist()):
        assert np.array_equal(some.extra(row, "depth"), world.extra(number, "depth"))
        assert some.columns["copy_of"][row] == world.columns["copy_of"][number]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{}/nowhere", "does not exist; data takes a folder of images"),
        ("{}/empty", "holds no image; it is empty"),
        ("{}/texts", "holds no image; 1 other files are in it"),
        ("{}/texts/a.md", "is a file but no Parquet file"),
        ("{}/bad.parquet", "cannot be read as Parquet"),
        ("{}/other.parquet", "has no column 'file' or 'path' or 'image'; it has x"),
        ("{}/p?split=gallery", "has no split 'gallery'; it has test, train"),
        ("{}/q?split=train", "asks for split 'train', but the source has no splits"),
    ],
)
def test_bad_addresses_are_one_line(address, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    parquet(tmp_path / "p")
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "x.png").write_bytes(png(1))
    with pytest.raises(DataError, match=message):
        open_source(address.format(tmp_path))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket", "Unknown kind of source 's4'"),
        ("toy://specis", "Unknown toy world 'specis'. Did you mean 'species'"),
        ("toy://species?image=5", "Unknown option of toy://species 'image'. Did you mean 'images'"),
        ("toy://species?images=many", "images takes a whole number; got 'many'"),
        ("toy://species?split=val", "Unknown split of toy://species 'val'"),
        ("toy://minerals?split=tset", "Unknown split of toy://minerals 'tset'. Did you mean 'test'"),
        ("toy://minerals?objekts=2", "Unknown option of toy://minerals 'objekts'. Did you mean 'objects'"),
        ("toy://minerals?objects=5", "toy://minerals?objects must be at most 4; got 5"),
        ("toy://clips?images=5", "Unknown option of toy://clips 'images'"),
        ("toy://clips?frames=0", "toy://clips?frames must be at least 1; got 0"),
        ("toy://species?size=4", "toy://species?size must be at least 8; got 4"),
        ("toy://species?views=two", "toy://species?views takes a whole number; got 'two'"),
        ("toy://species?copies=30%", "toy://species?copies takes a number; got '30%'"),
        ("toy://species?copies=1.5", "toy://species?copies must be below 1; got 1.5"),
        ("toy://species?junk=-0.1", "toy://species?junk must be at least 0; got -0.1"),
        ("toy://species?imbalance=0.5", "toy://species?imbalance must be at least 1; got 0.5"),
        ("toy://species?imbalance=nan", "toy://species?imbalance"),
        (
            "toy://species?copies=0.5&junk=0.5",
            "must be below 1 together and leave a picture; got 0.5 + 0 + 0.5 of 4000",
        ),
        (
            "toy://species?images=1&junk=0.6",
            "must be below 1 together and leave a picture; got 0 + 0 + 0.6 of 1 images",
        ),
        ("toy://species?images=5&leaks=0.2", "leaks=0.2 needs a test picture to copy, .* images=5 leaves 4 of those"),
        (".?colour=red", "Unknown option of a source 'colour'"),
    ],
)
def test_bad_options_are_one_line(address, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("+", r"\+")):
        open_source(address)


TOYS = {"species": ToyConfig, "minerals": ToyConfig, "clips": ClipsConfig}
NAMES = st.sampled_from(sorted({*ToyConfig.model_fields, *ClipsConfig.model_fields})) | st.text(
    "imagesxyz_=&", max_size=8
)
VALUES = st.one_of(st.integers(-3, 60).map(str), st.floats(-1, 3).map(str), st.text(max_size=6), st.just("1" * 30))


@settings(max_examples=200, deadline=None)
@given(world=st.sampled_from(sorted(TOYS)), options=st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_toy_address_opens_or_is_one_line(world, options):
    query = "&".join(f"{name}={value}" for name, value in options.items())
    try:
        source = open_source(f"toy://{world}?size=8&{query}")
    except (ConfigError, DataError) as error:
        lines = str(error).splitlines()
        assert len(lines) == 1
        assert f"toy://{world}" in lines[0]
        return
    assert all(len(column) == len(source) for column in source.columns.values())


def test_splits_of_a_column_go_by_their_usual_names(tmp_path):
    (tmp_path / "t.csv").write_text("file,split\na.png,training\nb.png,validation\nc.png,Test\n")
    source = open_source(str(tmp_path / "t.csv"))
    assert source.columns["split"].tolist() == ["train", "val", "test"]
    assert open_source(f"{tmp_path / 't.csv'}?split=validation").columns["id"].tolist() == ["b.png"]


@pytest.mark.parametrize("header", ["file,label,label", "file,file,label"])
def test_two_columns_of_one_name_are_refused(tmp_path, header):
    (tmp_path / "t.csv").write_text(f"{header}\na.png,b,c\n")
    with pytest.raises(DataError, match=r"has two columns '(file|label)'; every column takes a name of its own"):
        open_source(str(tmp_path / "t.csv"))


def test_addresses_that_are_none(tmp_path):
    for address, said in (("~nobody-of-that-name/x", "not known here"), ("a\0b", "zero byte")):
        with pytest.raises((ConfigError, DataError), match=said):
            open_source(address)
    with pytest.raises(ConfigError, match="too many files"):
        open_source(f"{tmp_path}/" + "{1..999}{1..999}{1..999}.tar")


@pytest.mark.parametrize("option", ["allow_private=true", "allow%5Fprivate=true"])
def test_a_manifest_cannot_allow_itself_private_addresses(option, tmp_path):
    path = manifest(tmp_path / "photos")
    held = read_manifest(Path(path))
    forged = held.replaced("source", f"{tmp_path}/l.txt?{option}")
    write_manifest(Path(path), [forged.table], made=held.made)
    with pytest.raises(DataError, match="only its user may allow private addresses"):
        open_source(path)


def test_weights_come_along_into_a_manifest(tmp_path):
    folder(tmp_path / "photos")
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    lines = [f"{path},{number + 0.5}" for number, path in enumerate(paths)]
    (tmp_path / "t.csv").write_text("\n".join(["file,weight", *lines]) + "\n")
    listed = open_source(manifest(tmp_path / "photos", of=str(tmp_path / "t.csv")))
    assert listed.columns["weight"].tolist() == [number + 0.5 for number in range(len(paths))]
