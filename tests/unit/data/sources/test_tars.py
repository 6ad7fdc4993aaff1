"""Tar shards: what is read, what is refused with which reason, and the index that is kept beside them."""

import io
import json
import os
import pwd
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources import tarindex
from dinoforge.data.sources.table import open_source


def png(level, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (6, 5), (level, 0, 0) if mode == "RGB" else level).save(file, "PNG")
    return file.getvalue()


def tar(path, members, *, kind=tarfile.USTAR_FORMAT):
    """Members are (name, bytes) or finished headers, in order."""
    with tarfile.open(path, "w", format=kind) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return str(path)


def test_a_sample_is_what_shares_a_name_up_to_the_first_dot(tmp_path):
    facts = {"label": 3, "label_name": "fern", "group": 8, "caption": "x" * 9_000, "nested": {"a": 1}, "split": "val"}
    depth = np.asarray([[5, 40_000]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(depth).save(file, "PNG")
    source = open_source(
        tar(tmp_path / "a.tar", [
            ("x/1.jpg.txt", b"a caption"), ("x/1.PNG", png(10)), ("x/1.json", json.dumps(facts).encode()),
            ("x/1.seg.png", png(4, "L")), ("x/1.depth.png", file.getvalue()), ("x/2.png", png(20)), ("x/2.cls", b"5\n"),
        ])
    )  # fmt: skip
    columns = {name: column.tolist() for name, column in source.columns.items()}
    assert columns == {
        "id": ["a.tar/x/1.PNG", "a.tar/x/2.png"], "label": [3, 5], "label_name": ["fern", ""], "group": [8, -1],
        "split": ["val", ""],
    }  # fmt: skip
    assert [int(source.pixels(row)[0, 0, 0]) for row in (1, 0)] == [20, 10]
    assert source.extra(0, "mask").tolist() == np.full((5, 6), 4).tolist()
    assert source.extra(0, "depth").tolist() == depth.tolist()
    assert source.extra(1, "mask") is None
    other = open_source(f"{tmp_path}/a.tar?image=seg.png&label=group")
    assert other.columns["id"].tolist() == ["a.tar/x/1.seg.png"]
    assert other.columns["label"].tolist() == [8]
    with pytest.raises(ConfigError, match=r"no member with ending 'sge.png'. Did you mean 'seg.png'"):
        open_source(f"{tmp_path}/a.tar?mask=sge.png")
    with pytest.raises(ConfigError, match=r"has no column 'lable'. Did you mean 'label'"):
        open_source(f"{tmp_path}/a.tar?label=lable")


def test_no_image_is_lost_for_a_second_dot_in_its_name(tmp_path):
    shots = [f"Shot at 10.0{n}.00.png" for n in range(3)]
    facts, cut = (
        ("b.json", b'{"label": 1, "id": "bee"}'),
        "another image of its sample is used; ?image= names an ending",
    )
    where = tar(tmp_path / "a.tar", [
        *((name, png(n)) for n, name in enumerate(shots)), ("7.jpg", png(8)), ("7.png", png(9)), ("7.depth.png", png(1)),
        ("b.v1.png", png(4)), ("b.v2.png", png(5)), facts, ("c.v1.png", png(6)), ("c.v2.png", png(7)), ("c.seg.png", png(1, "L")),
        ("d.mask.jpg", png(1)),
    ])  # fmt: skip
    source = open_source(where)
    assert source.columns["id"].tolist() == [f"a.tar/{name}" for name in (*shots, "7.jpg", "b.v1.png", "c.v1.png")]
    assert source.columns["label"].tolist() == [-1, -1, -1, -1, 1, -1]
    assert [int(source.pixels(row)[0, 0, 0]) for row in range(6)] == [0, 1, 2, 8, 4, 6]
    assert [source.extra(row, "mask") is None for row in (0, 4, 5)] == [True, True, False]
    assert source.rejected == [
        ("a.tar/d", "no image among .mask.jpg; ?image= names an ending"),
        *((f"a.tar/{name}", cut) for name in ("7.png", "b.v2.png", "c.v2.png")),
    ]  # fmt: skip
    assert "a.tar/7.png" not in dict(open_source(f"{where}?mask=.PNG").rejected)
    assert open_source(f"{where}?image=v2.png").columns["id"].tolist() == ["a.tar/b.v2.png", "a.tar/c.v2.png"]


def test_what_could_lead_out_is_refused_and_nothing_is_written(tmp_path):
    link, hard, device, pipe = (tarfile.TarInfo(name) for name in ("l.png", "h.png", "d.png", "p.png"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../x.png"
    device.type, pipe.type = tarfile.CHRTYPE, tarfile.FIFOTYPE
    inner = tmp_path / "in"
    inner.mkdir()
    source = open_source(tar(inner / "a.tar", [
        ("../../out.png", png(1)), ("/abs.png", png(1)), ("a/../../b.png", png(1)), ("..\\c.png", png(1)),
        link, hard, device, pipe, ("ok.png", png(9)), ("ok.png", png(8)), ("notes.md", b"text"),
    ]))  # fmt: skip
    assert source.columns["id"].tolist() == ["a.tar/ok.png"]
    assert source.pixels(0)[0, 0, 0] == 9
    reasons = dict(source.rejected)
    out = "the name leads out of the archive"
    assert reasons == {
        "a.tar/../../out.png": out, "a.tar//abs.png": out, "a.tar/a/../../b.png": out, "a.tar/..\\c.png": out,
        "a.tar/l.png": "a link, not a file", "a.tar/h.png": "a link, not a file",
        "a.tar/d.png": "not a regular file", "a.tar/p.png": "not a regular file",
        "a.tar/ok.png": "the name is in the archive twice; the first is used",
        "a.tar/notes": "no image among .md; ?image= names an ending",
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".a.tar.index", "a.tar", "in"]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_with_an_endless_name_costs_itself_alone(kind, tmp_path):
    class_file = ("b.cls", b"ant" * 9_000)
    members = [("a.png", png(1)), ("d/" + "x" * 100_000 + ".png", png(2)), ("b.png", png(3)), class_file]
    where = tar(tmp_path / "a.tar", members, kind=kind)
    for _ in range(2):  # made, then kept
        source = open_source(where)
        assert source.columns["id"].tolist() == ["a.tar/a.png", "a.tar/b.png"]
        assert [int(source.pixels(row)[0, 0, 0]) for row in range(2)] == [1, 3]
        assert sum(column.nbytes for column in source.columns.values()) < 1000
        (name, reason), (other, unread) = source.rejected
        assert re.fullmatch(r"a.tar/d/x{62}… at byte \d[\d,]*", name)
        assert reason == "the name has 100,006 characters, more than 4,096"
        assert (other, unread) == ("a.tar/b.cls", "not read: 27,000 characters are no name of a class")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("cut", ["within a member", "within a header", "before the end mark"])
def test_of_a_cut_archive_the_whole_members_are_read(kind, cut, tmp_path):
    name = "é" * 60 if kind != tarfile.USTAR_FORMAT else "n"
    path = tar(tmp_path / "a.tar", [(f"{name}{n}.png", png(n * 50)) for n in range(3)], kind=kind)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    ends = {"within a member": last.offset_data + 40, "within a header": last.offset + 100,
            "before the end mark": last.offset_data + 512}  # fmt: skip
    os.truncate(path, ends[cut])
    source = open_source(path)
    assert len(source) == (3 if cut == "before the end mark" else 2)
    assert [int(source.pixels(row)[0, 0, 0]) for row in range(len(source))] == [0, 50, 100][: len(source)]
    assert any("cut off" in reason for _, reason in source.rejected), source.rejected


def test_a_damaged_header_ends_the_reading_with_a_reason(tmp_path):
    path = tar(tmp_path / "a.tar", [(f"{n}.png", png(n)) for n in range(3)])
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(1024)
        file.write(b"\xff" * 200)
    source = open_source(path)
    assert (len(source), dict(source.rejected)) == (
        1, {"a.tar/a.tar": "damaged header at byte 1,024; what follows is not read"},
    )  # fmt: skip


def test_the_index_is_kept_used_and_made_anew_when_the_tar_changed(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", [("1.png", png(1)), ("../x.png", b"")])
    assert len(open_source(path)) == 1
    monkeypatch.setattr(tarindex, "_made", None)  # reading headers again would fail
    again = open_source(path)
    assert (len(again), len(again.rejected)) == (1, 1)
    monkeypatch.undo()
    tar(tmp_path / "a.tar", [("1.png", png(1)), ("2.png", png(2))])
    assert len(open_source(path)) == 2
    (tmp_path / ".a.tar.index").write_bytes(b"PAR1 damaged")
    assert len(open_source(path)) == 2


def test_where_nothing_may_be_written_the_index_goes_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tar(tmp_path / "a.tar", [("1.png", png(1))])
    (tmp_path / ".a.tar.index").mkdir()
    assert len(open_source(path)) == 1
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 1
    (tmp_path / "cache" / "dinoforge" / "tar").rename(tmp_path / "aside")
    (tmp_path / "cache" / "dinoforge" / "tar").write_text("in the way")
    assert len(open_source(path)) == 1


def test_a_user_without_a_home_reads_tars(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert len(open_source(tar(tmp_path / "a.tar", [("1.png", png(1))]))) == 1


def test_a_tar_that_shrank_after_it_was_opened_is_a_broken_row(tmp_path):
    path = tar(tmp_path / "a.tar", [("1.png", png(1))])
    source = open_source(path)
    os.truncate(path, 520)
    with pytest.raises(Broken, match="the archive is shorter than when it was indexed"):
        source.pixels(0)


def test_shards_by_braces_and_by_star(tmp_path):
    for number in range(9, 12):
        tar(tmp_path / f"train-{number:03}.tar", [(f"{number}.png", png(number))])
    ids = ["train-009.tar/9.png", "train-010.tar/10.png", "train-011.tar/11.png"]
    for pattern in ("train-{009..011}.tar", "*.tar", "train-{009,010,011}.tar", "train-0[01][0-9].tar", "**/*.tar"):
        assert open_source(f"{tmp_path}/{pattern}").columns["id"].tolist() == ids, pattern
    with pytest.raises(DataError, match=r"is not all there: 2 files are missing, the first train-012.tar"):
        open_source(f"{tmp_path}/train-{{009..013}}.tar")
    with pytest.raises(DataError, match=r"fits none of the 3 files in"):
        open_source(f"{tmp_path}/val-*.tar")
    with pytest.raises(ConfigError, match=r"stands for too many files"):
        open_source(f"{tmp_path}/{{0..99999999999}}.tar")


def test_folders_in_a_tar_are_classes(tmp_path):
    source = open_source(tar(tmp_path / "a.tar", [("cat/1.png", png(1)), ("dog/2.png", png(2)), ("dog/._2.png", b"x")]))
    assert source.columns["label_name"].tolist() == ["cat", "dog"]
    assert source.by_name == {"label"}


def test_what_is_no_tar_is_one_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match=r"a.tar cannot be read as a tar: .* It may be compressed"):
        open_source(f"{tmp_path}/a.tar")
    tar(tmp_path / "b.tar", [("x.md", b"text")])
    with pytest.raises(DataError, match=r"b.tar holds no image; the first of 1 reasons: no image among .md"):
        open_source(f"{tmp_path}/b.tar")
    with pytest.raises(DataError, match=r"holds no image; 2 other files are in it, the first a.tar: cannot be read"):
        open_source(str(tmp_path))
