"""Published sets of videos: what is read from each, and what is refused."""

import json
from contextlib import suppress

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.sources.table import open_clips, open_source
from films import plain, write
from published import images, text


def wrote(root, rows):
    """Each row's video is of one colour that says which row it is."""
    for level, name in enumerate(rows):
        codec = "VP80" if name.endswith("webm") else "mp4v" if name.endswith("mp4") else "FFV1"
        write(root / name, plain(*[level * 20] * 3), codec)
    return rows


def ucf101(root):
    """Lists of two splits, which put the clips on other sides."""
    names = ["Archery", "BabyCrawling", "HandstandPushups"]
    text(root, "ucfTrainTestlist/classInd.txt", *(f"{n} {name}" for n, name in enumerate(names, start=1)))
    paths = [f"{name}/v_{name}_g0{n}_c01.avi" for n, name in enumerate(names)]
    for fold, order in (("01", (0, 1, 2)), ("02", (2, 0, 1))):
        a, b, c = order
        lines = (f"{paths[n]} {n + 1}" for n in (a, b))
        text(root, f"ucfTrainTestlist/trainlist{fold}.txt", *lines)
        text(root, f"ucfTrainTestlist/testlist{fold}.txt", paths[c])
    return wrote(
        root, {f"UCF-101/{path}": ("test" if n == 2 else "train", n, names[n]) for n, path in enumerate(paths)}
    )


def something_v2(root):
    names = ["Holding something", "Pushing something from left to right"]
    (root / "labels").mkdir(parents=True)
    (root / "labels/labels.json").write_text(json.dumps({names[1]: "1", names[0]: "0"}))
    bracketed = [name.replace("something", "[something]") for name in names]
    lists = {"train": [(78687, 1), (42326, 0)], "validation": [(3, 1)]}
    for name, rows in lists.items():
        held = [
            {"id": str(n), "label": "pushing a pot", "template": bracketed[c], "placeholders": ["a"]} for n, c in rows
        ]
        (root / f"labels/{name}.json").write_text(json.dumps(held))
    (root / "labels/test.json").write_text(json.dumps([{"id": "9"}]))
    of = {f"20bn-something-something-v2/{n}.webm": ("train", c, names[c]) for n, c in lists["train"]}
    of |= {
        "20bn-something-something-v2/3.webm": ("val", 1, names[1]),
        "20bn-something-something-v2/9.webm": ("test", -1, ""),
    }
    return wrote(root, of)


def kinetics400(root):
    """Files in folders of classes and flat ones; one of four is missing, and a validation clip lies in another split too."""
    head = "label,youtube_id,time_start,time_end,split"
    text(root, "annotations/train.csv", head, '"making tea, hot",-a_B,0,10,train', "abseiling,gone,7,17,train",
         "abseiling,c-d,123,133,train")  # fmt: skip
    text(root, "annotations/val.csv", head, "making tea,eee,2,12,validate")
    text(root, "annotations/test.csv", "youtube_id,time_start,time_end,split", "fff,2,12,test")
    write(root / "replacement/eee_000002_000012.mp4", plain(200, 200), "mp4v")
    return wrote(root, {
        "train/making tea, hot/-a_B_000000_000010.mp4": ("train", 2, "making tea, hot"),
        "train/c-d_000123_000133.mp4": ("train", 0, "abseiling"),
        "val/eee_000002_000012.mp4": ("val", 1, "making tea"), "fff_000002_000012.mp4": ("test", -1, ""),
    })  # fmt: skip


FILMED = {"ucf101": ucf101, "something_v2": something_v2, "kinetics400": kinetics400}


@pytest.mark.parametrize(("name", "make"), FILMED.items(), ids=FILMED)
class TestEveryLayoutOfVideos:
    def test_rows_are_those_of_the_lists(self, name, make, tmp_path, capsys):
        rows = make(tmp_path)
        found = open_clips(str(tmp_path))
        assert f"(layout={name}); ?layout=none" in capsys.readouterr().err
        assert found.columns["id"].tolist() == [*rows]
        for place, column in enumerate(("split", "label", "label_name")):
            assert found.columns[column].tolist() == [row[place] for row in rows.values()]
        assert not any(reason.startswith("a video") for _, reason in found.rejected)

    def test_frames_are_those_of_the_rows(self, name, make, tmp_path):
        rows = make(tmp_path)
        found = open_source(f"{tmp_path}?frames=2")
        assert len(found) == 2 * len(rows)
        red = np.asarray([found.pixels(row)[..., 0].mean() for row in range(len(found))])
        assert abs(red - np.arange(len(rows)).repeat(2) * 20).max() < 6
        with pytest.raises(DataError, match=r"holds . videos and no image"):
            open_source(str(tmp_path))

    def test_is_asked_for_by_name_and_left(self, name, make, tmp_path):
        rows = make(tmp_path)
        asked = open_clips(f"{tmp_path}?layout={name}&split=train")
        assert asked.columns["id"].tolist() == [one for one, row in rows.items() if row[0] == "train"]
        assert len(open_clips(f"{tmp_path}?layout=none")) == len(rows) + (name == "kinetics400")

    def test_damage_is_no_crash(self, name, make, tmp_path):
        make(tmp_path)
        for path in (
            sorted(tmp_path.rglob("*.txt")) + sorted(tmp_path.rglob("*.json")) + sorted(tmp_path.rglob("*.csv"))
        ):
            whole = path.read_bytes()
            for odd in (b"", b"\xff\xfe\xfa", whole[: len(whole) // 2], b"[1]", b'{"a": "b"}', b"1 2 3\n"):
                path.write_bytes(odd)
                with suppress(DataError):  # or it is read, as far as it goes
                    open_clips(f"{tmp_path}?layout={name}")
            path.write_bytes(whole)


def refused(root, said):
    with pytest.raises(DataError) as error:
        open_clips(str(root))
    assert said in str(error.value)


def test_folds_of_ucf(tmp_path):
    ucf101(tmp_path)
    found = open_clips(f"{tmp_path}?fold=2")
    assert [name.rpartition("_g")[2][:2] for name in found.columns["id"].tolist()] == ["02", "00", "01"]
    assert found.columns["split"].tolist() == ["train", "train", "test"]
    assert found.columns["label"].tolist() == [2, 0, 1]
    with pytest.raises(DataError, match=r"does not hold ucfTrainTestlist/trainlist03.txt"):
        open_clips(f"{tmp_path}?fold=3")
    something_v2(tmp_path / "other")
    with pytest.raises(ConfigError, match="'fold' has no effect on the lists of Something-Something v2"):
        open_clips(f"{tmp_path}/other?fold=2")
    with pytest.raises(ConfigError, match="fold"):
        open_clips(f"{tmp_path}?fold=0")


def test_damaged_lists_of_ucf(tmp_path):
    ucf101(tmp_path)
    lists = tmp_path / "ucfTrainTestlist"
    whole = (lists / "trainlist01.txt").read_text()
    (lists / "trainlist01.txt").write_text(whole.replace("avi 2", "avi 1"))
    refused(tmp_path, "gives BabyCrawling/v_BabyCrawling_g01_c01.avi the class 1, which is not its folder's")
    (lists / "trainlist01.txt").write_text(whole)
    (tmp_path / "UCF-101/BabyCrawling/v_BabyCrawling_g01_c01.avi").unlink()
    refused(tmp_path, "names UCF-101/BabyCrawling/v_BabyCrawling_g01_c01.avi, which is not there")
    (lists / "classInd.txt").write_text("0 Archery\n1 BabyCrawling\n2 HandstandPushups\n")
    refused(tmp_path, "does not number its classes 1, 2, 3")


def test_damaged_lists_of_something(tmp_path):
    something_v2(tmp_path)
    (tmp_path / "labels/labels.json").write_text(json.dumps({"Holding something": "0", "x": "2"}))
    refused(tmp_path, "does not number its templates 0, 1, 2")
    (tmp_path / "labels/labels.json").write_text(json.dumps({"Holding something": "0", "x": "1"}))
    refused(tmp_path, "the class 'Pushing something from left to right'; its 2 classes")


def test_missing_videos_of_kinetics_are_counted(tmp_path, capsys):
    kinetics400(tmp_path)
    open_clips(str(tmp_path))
    said = capsys.readouterr().err
    assert "1 of the 5 videos of the lists are not there" in said
    assert "1 videos that the lists of Kinetics-400 do not name are left out" in said
    text(tmp_path, "annotations/train.csv", "label,youtube_id,time_start", "x,y,1")
    refused(tmp_path, "has a row without 'time_end'")
    text(tmp_path, "annotations/train.csv", "label,youtube_id,time_start,time_end", "x,y,1,one")
    refused(tmp_path, "has 'one' where it takes a whole number")
    for video in tmp_path.rglob("*.mp4"):
        video.unlink()
    write(tmp_path / "other.mp4", plain(1), "mp4v")
    text(tmp_path, "annotations/train.csv", "label,youtube_id,time_start,time_end", "x,y,1,11")
    refused(tmp_path, "holds no image that its lists name")


@pytest.mark.parametrize(("name", "make"), FILMED.items(), ids=FILMED)
def test_lists_without_videos_are_no_set(name, make, tmp_path, capsys):
    for video in make(tmp_path):
        (tmp_path / video).unlink()
    (tmp_path / "replacement/eee_000002_000012.mp4").unlink(missing_ok=True)
    images(tmp_path, ["photos/1.jpg", "20bn-something-something-v2/1.jpg"])
    assert len(open_source(str(tmp_path))) == 2
    assert "layout=" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "make"), FILMED.items(), ids=FILMED)
def test_images_beside_a_set_of_videos_stay(name, make, tmp_path):
    rows = make(tmp_path)
    images(tmp_path, ["photos/1.jpg"])
    assert open_source(str(tmp_path)).columns["id"].tolist() == ["photos/1.jpg"]
    found = open_clips(str(tmp_path))
    assert found.columns["label"].tolist() == [row[1] for row in rows.values()]
    assert ("photos/1.jpg", "an image beside videos") in found.rejected


def test_a_stray_quote_in_a_list_of_kinetics_is_one_line(tmp_path):
    kinetics400(tmp_path)
    head = "label,youtube_id,time_start,time_end"
    text(tmp_path, "annotations/train.csv", head, '"x,y,1,11', *["abseiling,c-d,123,133"] * 9000)
    refused(tmp_path, "annotations/train.csv cannot be read as a table: field larger than field limit")
