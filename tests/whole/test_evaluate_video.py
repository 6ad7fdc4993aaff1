"""Videos as a user has them: evaluated as clips, frames of them embedded, and what cannot be used is one line."""

import json

import numpy as np
import pytest

import dinoforge
from dinoforge.cli import execute
from dinoforge.data import film
from dinoforge.data.sources import clips
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import save_backbone
from films import plain, write
from perturbed import perturbed


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "b"
    save_backbone(path, perturbed(VitConfig(width=16, depth=2, heads=2, patch=8, pixels=16), short_side=16, side=16))
    return str(path)


def folder(root, *, train=8, test=4):
    """Clips that grow brighter, and clips that grow darker, each from a level of its own."""
    rng, lines = np.random.default_rng(0), ["file,label,label_name,split"]
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            label = number % 2
            levels = int(rng.integers(0, 60)) + np.arange(0, 190, 10)
            write(root / split / f"{number}.avi", plain(*(levels[::-1] if label else levels)))
            lines.append(f"{split}/{number}.avi,{label},{('brighter', 'darker')[label]},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def words(backbone, data, **more):
    return {
        "backbone": backbone,
        "tasks": "video",
        "data": str(data),
        "precision": "fp32",
        "video.iterations": 300,
        **more,
    }


def test_a_second_evaluation_reads_no_video(backbone, tmp_path, monkeypatch, capsys):
    data = folder(tmp_path / "data")
    given = words(backbone, data, features=str(tmp_path / "f"), out=str(tmp_path / "s.jsonl"))
    first = dinoforge.evaluate(**given, **{"video.join": "concatenate"})
    assert {score.name: score.value for score in first.scores} == {"accuracy": 1.0, "mean_class_accuracy": 1.0}
    assert "video: 8 clips known, 4 asked." in capsys.readouterr().err
    monkeypatch.setattr(clips, "frames_of", None)
    average = dinoforge.evaluate(**given)
    assert (average.scores[0].n, average.reused) == (4, [])
    assert dinoforge.evaluate(**given).reused == ["video"]
    monkeypatch.setattr(clips, "frames_of", film.frames_of)
    write(data / "test" / "0.avi", plain(1, 2, 3))
    assert dinoforge.evaluate(**given).reused == []


def test_broken_clips_are_set_aside_once_each(backbone, tmp_path, capsys):
    data = folder(tmp_path / "data")
    (data / "train" / "0.avi").write_bytes(b"no video")
    (data / "test" / "1.avi").unlink()
    found = dinoforge.evaluate(**words(backbone, data, features="none"))
    said = capsys.readouterr().err.splitlines()
    aside = [line for line in said if line.startswith("Set aside")]
    assert [line.partition(":")[0] for line in aside] == ["Set aside train/0.avi", "Set aside test/1.avi"]
    assert f"{data}: 1 of 8 clips are left out." in said
    assert found.scores[0].n == 3


def refused(capsys, **given):
    """The one line on standard error."""
    code = execute(["evaluate", *(f"{name}={value}" for name, value in given.items())])
    said = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said[-1].startswith("dinoforge: ")
    assert sum(line.startswith(("dinoforge: ", "Traceback")) for line in said) == 1
    return said[-1]


def changed(data, **columns):
    lines = (data / "labels.csv").read_text().splitlines()
    for name, of in columns.items():
        place = lines[0].split(",").index(name)
        for number, line in enumerate(lines[1:], start=1):
            cells = line.split(",")
            cells[place] = of(cells)
            lines[number] = ",".join(cells)
    (data / "labels.csv").write_text("\n".join(lines) + "\n")


def test_what_cannot_be_asked_is_one_line(backbone, tmp_path, capsys):
    def given(name, **columns):
        data = folder(tmp_path / name, train=4, test=2)
        changed(data, **columns)
        return words(backbone, data, features="none")

    assert "has no labels" in refused(capsys, **given("one", label=lambda _: "0", label_name=lambda _: "x"))
    other = given("other", label=lambda cells: "7" if cells[3] == "test" else cells[1],
                  label_name=lambda cells: "new" if cells[3] == "test" else cells[2])  # fmt: skip
    assert "has classes that" in (said := refused(capsys, **other))
    assert said.endswith("lacks: new.")
    half = given("half", label=lambda cells: "" if cells[3] == "test" else cells[1])
    address = half.pop("data")
    assert "not for every clip" in refused(capsys, **half, train=address, test=address)
    assert "has no split 'tset'; it has test, train." in refused(
        capsys, **half, train=address, test=f"{address}?split=tset"
    )
    gone = given("gone")
    for path in (tmp_path / "gone" / "test").iterdir():
        path.unlink()
    assert "No image of" in refused(capsys, **gone)
    assert "holds no clips" in refused(capsys, **words(backbone, "toy://species?images=20&size=16", features="none"))
    assert "videos and no image" in refused(capsys, backbone=backbone, tasks="linear", data=gone["data"])


def test_without_splits_every_fifth_clip_is_asked(backbone, tmp_path):
    data = folder(tmp_path / "data", train=10, test=0)
    changed(data, split=lambda _: "")
    assert dinoforge.evaluate(**words(backbone, data, features="none")).scores[0].n == 2


def test_frames_of_videos_are_embedded_and_videos_are_not(backbone, tmp_path, capsys):
    data = folder(tmp_path / "data", train=2, test=2)
    assert execute(["embed", f"backbone={backbone}", f"data={data}", f"out={tmp_path / 'a'}"]) == 2
    assert "holds 4 videos and no image; ?frames=8 behind it" in capsys.readouterr().err.splitlines()[-1]
    assert execute(["pretrain", f"data={data}", f"out={tmp_path / 'r'}", "recipe=vit_micro.toy"]) == 2
    assert "holds 4 videos and no image; ?frames=8 behind it" in capsys.readouterr().err.splitlines()[-1]
    assert execute(["embed", f"backbone={backbone}", f"data={data}?frames=3", f"out={tmp_path / 'a'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 12


def test_frames_of_videos_are_trained_on(tmp_path):
    data = folder(tmp_path / "data", train=6, test=2)
    done = dinoforge.pretrain(data=f"{data}?frames=4", out=str(tmp_path / "r"), recipe="vit_micro.toy",
                              **{"plan.images": 48, "plan.batch": 16, "speed.workers": 0})  # fmt: skip
    assert done.images == 48


def test_frames_are_scanned_and_found_again(backbone, tmp_path):
    data = folder(tmp_path / "data", train=2, test=1)
    dinoforge.scan(data=f"{data}?frames=2", out=str(tmp_path / "m.parquet"))
    done = dinoforge.embed(backbone=backbone, data=str(tmp_path / "m.parquet"), out=str(tmp_path / "e"))
    assert done.rows == 6
