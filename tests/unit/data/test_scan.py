"""A scan names every image once, and reads it again only if it may have changed."""

import hashlib
import os

import numpy as np
import pyarrow as pa
import pytest

from dinoforge.base.errors import DataError, RunError
from dinoforge.data import journal as journal_module
from dinoforge.data import scan as scan_module
from dinoforge.data.decode import Broken
from dinoforge.data.journal import FACTS, Journal
from dinoforge.data.manifest import Manifest, read_manifest, write_manifest
from dinoforge.data.scan import scan
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png


def scanned(source, folder, *, earlier=None, workers=2):
    """What a scan finds, and the manifest that comes of it."""
    folder.mkdir(exist_ok=True)
    with Journal(folder / "journal.arrow", about={"fingerprint": source.fingerprint}) as journal:
        found = scan(source, earlier=earlier, journal=journal, workers=workers)
    made = {"verb": "scan", "data": source.address, "by_name": sorted(source.by_name), "rejected": found.rejected()}
    return found, Manifest(pa.concat_tables([*found.tables()]), made)


def counts(found):
    return {name: getattr(found, name) for name in ("read", "reused", "new", "changed", "vanished")}


def picture(path, level, size=(7, 5)):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(png(np.full((size[1], size[0], 3), level, np.uint8)))


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    picture(root / "cat" / "a.png", 0)
    picture(root / "cat" / "b.png", 0)
    picture(root / "dog" / "c.png", 1, size=(6, 8))
    picture(root / "dog" / "d.png", 0)
    (root / "dog" / "e.png").write_bytes((root / "dog" / "c.png").read_bytes()[:40])
    (root / "dog" / "f.png").symlink_to("nowhere")
    return root


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_found_of_an_image(photos, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(scan_module, "ROWS_AT_ONCE", 3)
    found, manifest = scanned(open_source(str(photos)), tmp_path / "j", workers=workers)
    rows = {row["id"]: row for row in manifest.rows()}
    assert list(rows) == ["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"]
    data = (photos / "cat" / "a.png").read_bytes()
    status = (photos / "cat" / "a.png").stat()
    assert rows["cat/a.png"] == {
        "id": "cat/a.png", "sha256": hashlib.sha256(data).hexdigest(), "uri": "cat/a.png",
        "stamp": f"{len(data)}:{status.st_mtime_ns}", "width": 7, "height": 5, "channels": 3, "bytes": len(data),
        "label": 0, "label_name": "cat", "split": None, "group": None, "group_name": None, "frame": None,
        "clip": None, "variant": None, "pose": None, "weight": None, "source": str(photos), "copy_of": None, "reason": "", "similarity": None, "cluster": None,
        "seed": None,
    }  # fmt: skip
    assert [row["copy_of"] for row in rows.values()] == [None, "cat/a.png", None, "cat/a.png"]
    assert (rows["dog/c.png"]["width"], rows["dog/c.png"]["height"]) == (6, 8)
    assert found.exact_duplicates == 2
    cut, gone = found.rejected()
    assert cut["id"] == "dog/e.png"
    assert cut["reason"]
    assert cut["stamp"].startswith("40:")
    assert gone == {"id": "dog/f.png", "reason": "the file cannot be read: No such file or directory"}
    assert counts(found) == {"read": 5, "reused": 0, "new": 6, "changed": 0, "vanished": 0}


def test_only_what_is_new_or_changed_is_read(photos, tmp_path):
    _, first = scanned(open_source(str(photos)), tmp_path / "1")
    again, second = scanned(open_source(str(photos)), tmp_path / "2", earlier=first)
    assert counts(again) == {"read": 0, "reused": 5, "new": 0, "changed": 0, "vanished": 0}
    assert second.table.equals(first.table)
    assert second.made == first.made

    picture(photos / "cat" / "b.png", 9)  # the same size, other bytes
    picture(photos / "cat" / "new.png", 1, size=(6, 8))
    (photos / "dog" / "d.png").unlink()
    (photos / "dog" / "e.png").unlink()
    os.utime(photos / "cat" / "a.png", ns=(1, 1))  # touched, and yet the same
    picture(photos / "dog" / "f.png", 3)  # now it can be read: the link leads somewhere
    third, manifest = scanned(open_source(str(photos)), tmp_path / "3", earlier=second)
    assert counts(third) == {"read": 4, "reused": 1, "new": 1, "changed": 2, "vanished": 1}
    assert manifest.column("id").tolist() == ["cat/a.png", "cat/b.png", "cat/new.png", "dog/c.png", "dog/f.png"]
    assert manifest.column("copy_of").tolist() == ["", "", "", "cat/new.png", ""]
    assert found_afresh(photos, tmp_path / "4").equals(manifest.table)


def found_afresh(photos, folder):
    return scanned(open_source(str(photos)), folder)[1].table


def test_a_manifest_of_another_source_helps_nothing(photos, tmp_path):
    _, other = scanned(open_source(str(photos)), tmp_path / "1")
    (tmp_path / "link").symlink_to(photos)
    found, _ = scanned(open_source(str(tmp_path / "link")), tmp_path / "2", earlier=other)
    assert counts(found) == {"read": 5, "reused": 0, "new": 6, "changed": 0, "vanished": 0}


class Named(Source):
    """Pictures of given names, which know no stamps; ``reads`` lists those that were read."""

    def __init__(self, names, log, **columns):
        self.address, self.log = "named", log
        self.columns = {"id": np.asarray(names, dtype=np.str_), **columns}

    def encoded(self, row):
        with self.log.open("a") as file:
            file.write(f"{row}\n")
        return png(np.full((1, 1, 3), row, np.uint8))

    def reads(self):
        return sorted(map(int, self.log.read_text().split())) if self.log.exists() else []


def test_names_that_no_manifest_can_hold(tmp_path):
    names = ["ok", "bad\udcff", "new\nline", "bad\udcff", "\U0001f600"]
    source = Named(names, tmp_path / "log")
    found, manifest = scanned(source, tmp_path / "j")
    assert manifest.column("id").tolist() == ["ok", "new\nline", "\U0001f600"]
    assert source.reads() == [0, 2, 4]
    assert found.rejected() == [
        {"id": "bad\\udcff", "reason": "its name is no Unicode text; rename it"},
        {"id": "bad\\udcff", "reason": "its name is no Unicode text; rename it"},
    ]
    write_manifest(tmp_path / "m.parquet", found.tables(), made={"verb": "scan"})
    assert read_manifest(tmp_path / "m.parquet").column("id").tolist() == ["ok", "new\nline", "\U0001f600"]


def test_rows_of_the_same_id_are_told_apart(tmp_path):
    source = Named(["a", "b", "a", "a#2", "a", "a"], tmp_path / "log")
    found, manifest = scanned(source, tmp_path / "j")
    assert manifest.column("id").tolist() == ["a", "b", "a", "a", "a"]
    assert manifest.column("uri").tolist() == ["a", "b", "a#2", "a#3", "a#4"]
    assert len(set(manifest.column("sha256").tolist())) == 5
    assert found.rejected() == [{"id": "a#2", "reason": "its id and number are those of an earlier row"}]


def test_what_a_source_knows_comes_along(tmp_path):
    columns = {
        "label": np.asarray([3, -1]), "label_name": np.asarray(["c", ""]), "split": np.asarray(["", "test"]),
        "group": np.asarray([-1, 0]), "frame": np.asarray([7, 8]), "variant": np.asarray(["night", ""]),
        "copy_of": np.asarray(["what a toy world planted", ""]),
    }  # fmt: skip
    _, manifest = scanned(Named(["a", "b"], tmp_path / "log", **columns), tmp_path / "j")
    a, b = manifest.rows()
    known = ("label", "label_name", "split", "group", "group_name", "frame", "variant", "copy_of")
    assert [a[name] for name in known] == [3, "c", None, None, None, 7, "night", None]
    assert [b[name] for name in known] == [None, None, "test", 0, None, 8, None, None]


def test_a_scan_without_stamps_reads_all_but_what_the_journal_holds(tmp_path):
    source = Named([str(n) for n in range(20)], tmp_path / "log")
    whole, manifest = scanned(source, tmp_path / "1")
    assert counts(whole)["read"] == 20
    again, _ = scanned(source, tmp_path / "2", earlier=manifest)
    assert counts(again) == {"read": 20, "reused": 0, "new": 0, "changed": 0, "vanished": 0}
    on, after = scanned(source, tmp_path / "1")
    assert counts(on)["reused"] == 20
    assert after.table.equals(manifest.table)
    (tmp_path / "log").unlink()
    other = Named([str(n) for n in range(19)], tmp_path / "log")  # another fingerprint: the journal is of other images
    assert counts(scanned(other, tmp_path / "1")[0])["read"] == 19


class Refusing(Named):
    """Every other picture cannot be read, though it has a stamp."""

    def encoded(self, row):
        if row % 2:
            raise Broken("permission denied")
        return super().encoded(row)

    def stamp(self, row):
        return "the same"


def test_what_could_not_be_read_is_tried_again(tmp_path):
    source = Refusing(["a", "b", "c"], tmp_path / "log")
    first, manifest = scanned(source, tmp_path / "1")
    assert first.rejected() == [{"id": "b", "reason": "permission denied"}]
    again, _ = scanned(source, tmp_path / "2", earlier=manifest)
    assert counts(again) == {"read": 0, "reused": 2, "new": 0, "changed": 0, "vanished": 0}
    source.__class__ = type("Allowed", (Named,), {"stamp": Refusing.stamp})
    healed, _ = scanned(source, tmp_path / "3", earlier=manifest)
    assert counts(healed) == {"read": 1, "reused": 2, "new": 0, "changed": 1, "vanished": 0}


def test_a_scan_goes_on_after_being_killed_at_any_byte(photos, tmp_path):
    for number in range(60):
        picture(photos / "cat" / f"{number:02}.png", number)
    source = open_source(str(photos))
    _, wanted = scanned(source, tmp_path / "whole")
    journal = (tmp_path / "whole" / "journal.arrow").read_bytes()
    for cut in [0, 5, 700, *range(len(journal) // 2, len(journal), len(journal) // 7), len(journal) - 1]:
        folder = tmp_path / f"cut {cut}"
        folder.mkdir()
        (folder / "journal.arrow").write_bytes(journal[:cut])
        found, manifest = scanned(source, folder)
        assert manifest.table.equals(wanted.table)
        assert found.read + found.reused >= 65


def test_a_stamp_outdates_the_journal(photos, tmp_path):
    scanned(open_source(str(photos)), tmp_path / "j")
    picture(photos / "cat" / "a.png", 200)
    found, manifest = scanned(open_source(str(photos)), tmp_path / "j")
    assert (found.read, found.reused) == (1, 5)
    assert manifest.table.equals(found_afresh(photos, tmp_path / "2"))


def rows(*names):
    return [(name, "s", "k", 1, 1, 3, 9, None) for name in names]


def test_the_journal_keeps_what_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "_ROWS", 2)
    path = tmp_path / "journal.arrow"
    with Journal(path, about={"data": "x"}) as journal:
        journal.add(rows("a", "b"))
        size = path.stat().st_size
        journal.add(rows("c", "d"))
        journal.add(rows("e"))
        assert journal.found().column("id").to_pylist() == ["a", "b", "c", "d", "e"]
    whole = path.read_bytes()
    for cut in range(size, len(whole), 97):
        path.write_bytes(whole[:cut])
        with Journal(path, about={"data": "x"}) as journal:
            assert journal.same
            found = journal.found()["id"].to_pylist()
            assert found == ["a", "b", "c", "d", "e"][: len(found)]
            assert len(found) >= 2
            journal.add(rows("z"))
        with Journal(path, about={"data": "x", "fingerprint": "other"}) as journal:
            assert not journal.same
            assert journal.found().column("id").to_pylist() == [*found, "z"]
        with Journal(path, about={"data": "y"}) as journal:  # files elsewhere, which may look the same
            assert not journal.same
            assert not len(journal.found())
    path.write_bytes(os.urandom(5000))
    with Journal(path, about={"data": "x"}) as journal:
        assert len(journal.found()) == 0
        assert journal.found().schema == FACTS


def test_a_full_disk_is_one_line_and_the_journal_stays_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "_ROWS", 1)
    path = tmp_path / "journal.arrow"
    with pytest.raises(RunError, match="no space left"), Journal(path, about={}) as journal:
        journal.add(rows("a"))
        journal._file.close()
        journal._file = open("/dev/full", "ab", buffering=0)  # noqa: PTH123, SIM115
        journal.add(rows("b"))
    with Journal(path, about={}) as journal:
        assert journal.found().column("id").to_pylist() == ["a"]


def test_a_manifest_as_a_source(photos, tmp_path):
    _, manifest = scanned(open_source(str(photos)), tmp_path / "j")
    path = tmp_path / "m.parquet"
    table = manifest.replaced("cluster", pa.array([5, None, 6, 7])).table.append_column(
        "clarity", pa.array([1.0, 2, 3, 4])
    )
    write_manifest(path, [table.take([3, 0, 3, 1])], made=manifest.made)
    listed = open_source(str(path))
    assert listed.columns["id"].tolist() == ["dog/d.png", "cat/a.png", "dog/d.png", "cat/b.png"]
    assert listed.columns["label"].tolist() == [1, 0, 1, 0]
    assert listed.columns["cluster"].tolist() == [7, 5, 7, -1]
    assert listed.columns["clarity"].tolist() == [4.0, 1.0, 4.0, 2.0]
    assert not {"split", "group", "seed", "similarity"} & listed.columns.keys()
    assert listed.by_name == {"label"}
    assert listed.stamp(1) == manifest.rows()[0]["stamp"]
    assert listed.encoded(0) == (photos / "dog" / "d.png").read_bytes()
    (photos / "dog" / "d.png").unlink()
    with pytest.raises(DataError, match=r"lists dog/d.png and 1 more, which .*photos no longer holds; scan it again"):
        open_source(str(path))


def test_a_manifest_of_two_sources_in_any_order(photos, tmp_path):
    picture(tmp_path / "other" / "a.png", 50)
    picture(tmp_path / "other" / "z.png", 60)
    parts = [scanned(open_source(str(root)), tmp_path / root.name[0])[1].table for root in (photos, tmp_path / "other")]
    mixed = pa.concat_tables(parts).take([4, 0, 5, 2])
    write_manifest(tmp_path / "m.parquet", [mixed], made={"verb": "x"})
    listed = open_source(str(tmp_path / "m.parquet"))
    assert [hashlib.sha256(listed.encoded(row)).hexdigest() for row in range(4)] == mixed["sha256"].to_pylist()


def test_manifests_that_list_each_other_are_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        row = pa.table({"id": ["x"], "uri": ["x"], "source": [str(tmp_path / f"{other}.parquet")]})
        write_manifest(tmp_path / f"{name}.parquet", [row], made={"verb": "scan"})
    with pytest.raises(DataError, match="lists images of a manifest that lists its own"):
        open_source(str(tmp_path / "a.parquet"))
