"""Sources of clips: video files with and without a table, frames that are rows already, and frames of either as images."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.film import evenly
from dinoforge.data.sources import clips
from dinoforge.data.sources.clips import Stills, frame_of
from dinoforge.data.sources.source import first_rows
from dinoforge.data.sources.table import open_clips, open_source
from films import noise, plain, write
from given import Listed

SCENES = [("a.avi", 1, "wave", "train"), ("in/b.mkv", 0, "nod", "train"), ("c.avi", 0, "nod", "test")]


def folder(root):
    """Three videos and the table that names them."""
    for seed, (name, *_) in enumerate(SCENES):
        write(root / "clips" / name, noise(10 + seed, seed))
    lines = [f"clips/{name},{label},{title},{split}" for name, label, title, split in SCENES]
    (root / "labels.csv").write_text("file,label,label_name,split\n" + "\n".join(lines) + "\n")
    return str(root)


def frames(seed, count):
    return noise(10 + seed, seed)[evenly(count, 10 + seed)]


def test_a_folder_with_a_table(tmp_path):
    found = open_clips(folder(tmp_path))
    assert found.columns["id"].tolist() == ["clips/a.avi", "clips/in/b.mkv", "clips/c.avi"]
    assert [found.columns[name].tolist() for name in ("label", "label_name", "split")] == [
        [1, 0, 0], ["wave", "nod", "nod"], ["train", "train", "test"],
    ]  # fmt: skip
    some = found.frames(4)
    assert len(some) == 12
    assert some.columns["id"].tolist()[3:5] == ["clips/a.avi#3of4", "clips/in/b.mkv#0of4"]
    assert some.columns["clip"].tolist()[3:5] == ["clips/a.avi", "clips/in/b.mkv"]
    assert some.columns["frame"].tolist() == [0, 1, 2, 3] * 3
    for row in (5, 0, 11, 4):  # in any order
        assert np.array_equal(some.pixels(row), frames(row // 4, 4)[row % 4])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(some.encoded(7)))), some.pixels(7))
    assert frame_of("clips/a.avi#3of4") == ("clips/a.avi", 3)
    assert frame_of("a#3.png") == ("a#3.png", 0)


def test_the_table_itself_and_one_video(tmp_path):
    root = folder(tmp_path)
    assert open_clips(f"{root}/labels.csv").columns["id"].tolist() == open_clips(root).columns["id"].tolist()
    alone = open_source(f"{root}/clips/a.avi?frames=5")
    assert np.array_equal(alone.pixels(4), frames(0, 5)[4])
    several = open_source(f"{root}/clips/*.avi?frames=2")
    assert several.columns["id"].tolist() == ["a.avi#0of2", "a.avi#1of2", "c.avi#0of2", "c.avi#1of2"]


def test_without_a_table_folders_are_classes_and_splits(tmp_path):
    for name in ("train/wave/a.avi", "train/nod/b.avi", "test/nod/c.avi"):
        write(tmp_path / name, noise(3))
    found = open_clips(str(tmp_path))
    assert found.columns["split"].tolist() == ["test", "train", "train"]
    assert found.columns["label_name"].tolist() == ["nod", "nod", "wave"]
    frames = open_source(f"{tmp_path}?frames=2&split=train")
    assert frames.columns["label_name"].tolist() == ["nod", "nod", "wave", "wave"]


def test_videos_are_no_images(tmp_path):
    root = folder(tmp_path)
    with pytest.raises(DataError) as error:
        open_source(root)
    assert str(error.value) == (
        f"{root} holds 3 videos and no image; ?frames=8 behind it takes so many frames of each as images, tasks=video takes "
        "clips."
    )
    with pytest.raises(DataError, match="no image"):
        open_source(f"{root}?split=train")
    clip = open_clips(root)
    with pytest.raises(Broken, match="a clip, no image"):
        clip.picture(0)


def test_videos_among_images(tmp_path):
    write(tmp_path / "a.avi", plain(50, 60))
    Image.new("RGB", (8, 8), (7, 0, 0)).save(tmp_path / "b.png")
    images = open_source(str(tmp_path))
    assert images.columns["id"].tolist() == ["b.png"]
    assert images.rejected == [("a.avi", "a video among images; ?frames=8 takes so many frames of each")]
    both = open_source(f"{tmp_path}?frames=2")
    assert both.columns["id"].tolist() == ["b.png", "a.avi#0of2", "a.avi#1of2"]
    assert [both.pixels(row)[0, 0, 0] for row in range(3)] == [7, 50, 60]
    assert both.rejected == []


def test_options_that_would_be_ignored(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    for address in (tmp_path, tmp_path / "b.png"):
        with pytest.raises(ConfigError, match="'frames' has no effect on"):
            open_source(f"{address}?frames=2")
    (tmp_path / "l.csv").write_text("file\nb.png\n")
    with pytest.raises(ConfigError, match="'frames' has no effect on a list of images"):
        open_source(f"{tmp_path}/l.csv?frames=2")
    write(tmp_path / "a.avi", plain(50))
    with pytest.raises(ConfigError, match="'label' has no effect on a video"):
        open_source(f"{tmp_path}/a.avi?label=x")
    with pytest.raises(ConfigError, match=r"frames must be at least 1; got '0'|frames"):
        open_source(f"{tmp_path}/a.avi?frames=0")


def test_a_clip_that_cannot_be_used_is_set_aside(tmp_path):
    """Missing, empty and damaged ones, and a row without a name: a reason each; the others stay."""
    root = folder(tmp_path)
    (tmp_path / "clips" / "a.avi").unlink()
    (tmp_path / "clips" / "c.avi").write_bytes(b"")
    with (tmp_path / "labels.csv").open("a") as table:
        table.write(",1,wave,test\n")
    found = open_source(f"{root}?frames=2")
    for row, reason in ((0, "no such file"), (4, "empty"), (6, "names no file")):
        with pytest.raises(Broken, match=reason):
            found.pixels(row)
    assert np.array_equal(found.pixels(2), frames(1, 2)[0])


def test_odd_tables(tmp_path, capsys):
    root = folder(tmp_path)
    text = (tmp_path / "labels.csv").read_text()
    for new, reason in (
        (text.replace(",1,", ",1.5,"), "column 'label' holds 1.5; it takes whole numbers"),
        (text.replace("file,", "video,"), "has no column 'file' or 'path' or 'image'"),
        ("file,label\nb.png,1\n", "names no video; ?layout=none reads the folder without it"),
        ("file,label\n", "names no image"),
    ):
        (tmp_path / "labels.csv").write_text(new)
        with pytest.raises(DataError) as error:
            open_clips(root)
        assert reason in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert len(open_clips(f"{root}?layout=none")) == 3
    capsys.readouterr()
    (tmp_path / "labels.csv").write_text("\n".join(text.splitlines()[:3]) + "\n")
    assert len(open_clips(root)) == 2
    assert "1 videos that labels.csv does not name are left out" in capsys.readouterr().err


def test_some_clips(tmp_path):
    found = open_clips(folder(tmp_path))
    some = found.select(np.asarray([2, 0]))
    assert some.columns["id"].tolist() == ["clips/c.avi", "clips/a.avi"]
    seen = some.select(np.asarray([1])).frames(3)
    assert [np.array_equal(seen.pixels(row), frames(0, 3)[row]) for row in range(3)] == [True] * 3
    assert seen.columns["label_name"].tolist() == ["wave"] * 3
    assert some.stamp(0) == found.stamp(2) == some.frames(2).stamp(1) is not None
    assert len(first_rows(found, 2)) == 2
    assert open_clips(f"{found.address}?split=test").columns["id"].tolist() == ["clips/c.avi"]


def test_a_clip_is_decoded_once_for_all_who_ask(tmp_path, monkeypatch):
    found, asked, real = open_clips(folder(tmp_path)).frames(8), [], clips.frames_of
    monkeypatch.setattr(clips, "frames_of", lambda path, count: asked.append(path) or real(path, count))
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(found.pixels, range(24)))
    assert len(asked) == 3
    assert all(np.array_equal(seen[row], frames(row // 8, 8)[row % 8]) for row in range(24))
    assert len(found._recent) <= clips._RECENT


def test_what_is_kept_decoded_is_bounded(tmp_path):
    for number in range(7):
        write(tmp_path / f"{number}.avi", plain(number * 9))
    found = open_source(f"{tmp_path}?frames=1")
    assert [found.pixels(row)[0, 0, 0] for row in range(7)] == [number * 9 for number in range(7)]
    assert list(found._recent) == [3, 4, 5, 6]
    again = pickle.loads(pickle.dumps(found))
    assert (again.pixels(3)[0, 0, 0], list(again._recent)) == (27, [3])


def test_videos_on_the_web(tmp_path, web):
    folder(tmp_path)
    web.files = {
        f"/{path.relative_to(tmp_path)}": path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()
    }
    found = open_source(f"{web.url}/labels.csv?allow_private=true&frames=3")
    assert np.array_equal(found.pixels(4), frames(1, 3)[1])
    del web.files["/clips/c.avi"]
    with pytest.raises(Broken, match="404"):
        found.pixels(8)


def stills(**columns):
    return Stills(Listed("made", len(columns["clip"]), **columns))


def test_frames_that_are_rows(tmp_path):
    """Out of order, of two splits that use one name, and a picture that is of no clip."""
    found = stills(
        clip=["b", "a", "b", "", "a", "b", "a"], frame=[2, 0, 0, 0, 5, 1, 0], label=[1, 0, 1, 9, 0, 1, 3],
        label_name=["x", "y", "x", "z", "y", "x", "w"], split=["train"] * 6 + ["test"],
    )  # fmt: skip
    assert found.columns["id"].tolist() == ["train/b", "train/a", "test/a"]
    assert found.columns["label"].tolist() == [1, 0, 3]
    assert found.columns["split"].tolist() == ["train", "train", "test"]
    seen = found.frames(3)
    assert seen.columns["id"].tolist() == [
        "made/2", "made/5", "made/0", "made/1", "made/4", "made/4#2", "made/6", "made/6#2", "made/6#3",
    ]  # fmt: skip
    assert seen.columns["clip"].tolist() == ["b"] * 3 + ["a"] * 6
    assert found.select(np.asarray([1])).frames(1).columns["id"].tolist() == ["made/4"]


def test_frames_without_numbers_are_in_the_order_of_rows():
    seen = stills(clip=["a", "b", "a", "b"]).frames(2)
    assert seen.columns["id"].tolist() == ["made/0", "made/2", "made/1", "made/3"]


def test_odd_frames():
    with pytest.raises(DataError, match="has frame 3 of the clip a twice"):
        stills(clip=["a", "b", "a"], frame=[3, 3, 3])
    with pytest.raises(DataError, match="gives frames of the clip b different labels"):
        stills(clip=["a", "b", "b"], label=[1, 0, 1])
    with pytest.raises(DataError, match="holds no clips"):
        stills(clip=["", ""])
    with pytest.raises(DataError, match="holds no clips"):
        open_clips("toy://species?images=5&size=16")


def test_a_parquet_file_of_frames(tmp_path):
    def png(level):
        file = io.BytesIO()
        Image.new("RGB", (4, 4), (level, 0, 0)).save(file, "PNG")
        return file.getvalue()

    table = pa.table({
        "image": [png(n) for n in range(6)], "variant": ["a", "b"] * 3, "frame": [0, 0, 1, 1, 2, 2], "label": [0, 1] * 3,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "f.parquet")
    found = open_clips(f"{tmp_path}/f.parquet")
    assert (found.columns["id"].tolist(), found.columns["label"].tolist()) == (["a", "b"], [0, 1])
    seen = found.frames(2)
    assert [seen.pixels(row)[0, 0, 0] for row in range(4)] == [0, 4, 1, 5]
    assert found.stamp(0) is not None


def test_toy_clips():
    world = open_source("toy://clips?clips=10&frames=5&size=16")
    found = open_clips("toy://clips?clips=10&frames=5&size=16")
    assert len(found) == 10
    seen = found.frames(2)
    for clip in (0, 7):
        for place, frame in enumerate(evenly(2, 5).tolist()):
            assert np.array_equal(seen.pixels(2 * clip + place), world.pixels(5 * clip + frame))
        assert found.columns["label"][clip] == world.columns["label"][5 * clip]


def pictures(root, *names):
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (level, 0, 0)).save(root / name)


@pytest.mark.parametrize("table", ["file,label\na.png,1\nb.png,0\n", "x,y\n1,2\n", "file,label\ndemo.avi,1\n"])
def test_a_video_and_a_table_among_images_change_nothing(tmp_path, table):
    pictures(tmp_path, "a.png", "b.png")
    write(tmp_path / "demo.avi", plain(50, 60))
    (tmp_path / "labels.csv").write_text(table)
    found = open_source(str(tmp_path))
    assert found.columns["id"].tolist() == ["a.png", "b.png"]
    assert ("demo.avi", "a video among images; ?frames=8 takes so many frames of each") in found.rejected


def test_frames_of_videos_among_images_that_a_table_names(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    write(tmp_path / "demo.avi", plain(50, 60))
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\n")
    assert len(open_source(f"{tmp_path}?frames=2")) == 4


def test_clips_are_found_beside_images(tmp_path):
    """One picture among videos, with a table that names them and without."""
    root = folder(tmp_path)
    pictures(tmp_path, "poster.png")
    found = open_clips(root)
    assert found.columns["label"].tolist() == [1, 0, 0]
    assert found.rejected == [("poster.png", "an image beside videos")]
    (tmp_path / "labels.csv").unlink()
    found = open_clips(root)
    assert found.columns["id"].tolist() == ["clips/a.avi", "clips/c.avi", "clips/in/b.mkv"]
    assert found.rejected == [("poster.png", "an image beside videos")]
    assert len(open_clips(f"{tmp_path}/*/a.avi")) == 1
    assert open_source(root).columns["id"].tolist() == ["poster.png"]


def test_a_table_of_videos_may_name_its_rows(tmp_path, capsys):
    root = folder(tmp_path)
    text = "id,file\nx,clips/a.avi\ny,./clips/in/../in/b.mkv\n"
    (tmp_path / "labels.csv").write_text(f"{text}z,{tmp_path}/clips/c.avi\n")
    assert open_clips(root).columns["id"].tolist() == ["x", "y", "z"]
    assert "left out" not in capsys.readouterr().err
    (tmp_path / "labels.csv").write_text(text)
    assert len(open_clips(root)) == 2
    assert "1 videos that labels.csv does not name are left out" in capsys.readouterr().err


def test_a_list_is_of_videos_where_all_its_rows_are(tmp_path):
    write(tmp_path / "a.avi", plain(50, 60))
    for name, lines, videos in (
        ("l.txt", ["a.avi", "a.avi"], True),
        ("m.txt", ["image_without_suffix", "other", "a.avi"], False),
        ("n.csv", ["file,label", "a.AVI,1", ",2", ",3"], True),
        ("o.csv", ["file,label", "a.avi,1", "b.png,2"], False),
    ):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        if videos:
            assert len(open_clips(f"{tmp_path}/{name}")) == len(lines) - name.endswith("csv")
        else:
            assert len(open_source(f"{tmp_path}/{name}")) == len(lines) - name.endswith("csv")


def test_several_videos_on_the_web(tmp_path, web):
    folder(tmp_path)
    web.files = {f"/{path.name}": path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    web.files["/d.csv"] = web.files["/e.csv"] = b"file\na.avi\n"
    several = f"{web.url}/{{a,c}}.avi?allow_private=true"
    assert open_clips(several).columns["id"].tolist() == ["a.avi", "c.avi"]
    found = open_source(f"{several}&frames=2")
    assert found.columns["id"].tolist() == ["a.avi#0of2", "a.avi#1of2", "c.avi#0of2", "c.avi#1of2"]
    assert np.array_equal(found.pixels(2), frames(2, 2)[0])
    assert len(open_source(f"{web.url}/{{d,e}}.csv?allow_private=true&frames=2")) == 4
    for mixed in (f"{web.url}/{{a.avi,b.png}}?allow_private=true", f"{web.url}/{{d,e}}.csv?allow_private=true"):
        with pytest.raises(ConfigError, match="stands for videos and other files, or for lists of videos"):
            open_source(mixed)
