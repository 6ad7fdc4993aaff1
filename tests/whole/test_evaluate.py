"""Evaluations as a user runs them: nothing is computed twice, leaks are told, and what cannot be asked is one line."""

import json
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dinoforge
from dinoforge.base.errors import ConfigError, DataError, Interrupted
from dinoforge.base.files import read_lines
from dinoforge.cli import execute
from dinoforge.data.sources.parquet import Parquet
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import save_backbone
from perturbed import perturbed

COLOURS = {"red": (200, 30, 30), "green": (30, 190, 40), "blue": (40, 40, 210), "grey": (120, 120, 120)}


def pictures(folder, count, *, seed, classes=COLOURS):
    """Folders of pictures of one colour with noise of their own."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = rng.normal(0, 40, (24, 24, 3)) + COLOURS[name]
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{seed}-{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluate")
    config = VitConfig(width=16, depth=2, heads=2, patch=8, pixels=16)
    save_backbone(place / "b", perturbed(config, short_side=16, side=16))
    pictures(place / "data" / "train", 6, seed=0)
    pictures(place / "data" / "test", 4, seed=1)
    return place


def scores(done):
    return {(score.task, score.name): score.value for score in done.scores}


def test_a_second_evaluation_reads_no_image(place, tmp_path, monkeypatch, capsys):
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "features": str(tmp_path / "f"),
             "tasks": "knn,linear,health", "precision": "fp32", "linear.iterations": 20}  # fmt: skip
    first = dinoforge.evaluate(**words)
    assert scores(first)["knn", "accuracy"] > 0.8
    assert {score.task for score in first.scores} == {"knn", "linear", "health"}
    assert len({score.backbone for score in first.scores}) == 1

    def read(*_):
        raise AssertionError("an image was read")

    from dinoforge.data.sources import files

    sources = [kind for kind in vars(files).values() if isinstance(kind, type) and hasattr(kind, "encoded")]
    for kind in sources:
        monkeypatch.setattr(kind, "encoded", read)
        monkeypatch.setattr(kind, "picture", read)
    again = dinoforge.evaluate(**words)
    assert again.scores == first.scores
    assert again.reused == []
    capsys.readouterr()
    with pytest.raises(DataError, match=r"No image of .* AssertionError: an image was read"):
        dinoforge.evaluate(**words | {"features": "none"})


def test_several_seeds_are_told_together(place, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "features": "none", "precision": "fp32",
             "linear.iterations": 20, "linear.layers": [1], "linear.pool": [False], "linear.learning_rates": [3.0]}  # fmt: skip
    alone = [
        scores(dinoforge.evaluate(**words, tasks="linear", **{"linear.seed": seed}))["linear", "accuracy"]
        for seed in (2, 3, 4)
    ]
    together = words | {"tasks": "knn,linear", "linear.seed": 2, "seeds": 3, "out": str(out)}
    done = dinoforge.evaluate(**together)
    found = {(score.task, score.name): score for score in done.scores}
    assert found["linear", "accuracy"].value == pytest.approx(np.mean(alone))
    assert found["linear", "accuracy"].spread == pytest.approx(np.std(alone, ddof=1))
    assert np.std(alone) > 0
    assert found["knn", "accuracy"].spread is None
    assert dinoforge.evaluate(**together).reused == ["knn", "linear"]
    assert dinoforge.evaluate(**together | {"seeds": 2}).reused == ["knn"]
    with pytest.raises(
        ConfigError, match=r"robustness.reference=base.jsonl has pictures of one seed; leave out seeds=2"
    ):
        dinoforge.evaluate(
            backbone=words["backbone"],
            data=words["data"],
            tasks="robustness",
            seeds=2,
            **{"robustness.reference": "base.jsonl"},
        )
    capsys.readouterr()


def test_a_changed_image_is_read_again(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    words = {"backbone": str(place / "b"), "data": str(tmp_path / "data"), "features": str(tmp_path / "f")}
    assert scores(dinoforge.evaluate(**words))["knn", "accuracy"] > 0.8
    for folder, name in (("red", "blue"), ("blue", "red")):
        for path in (tmp_path / "data" / "test" / folder).iterdir():
            shutil.copy(place / "data" / "test" / name / path.name, path)
    assert scores(dinoforge.evaluate(**words))["knn", "accuracy"] <= 0.5


def test_scores_that_are_put_down_are_taken_over(place, tmp_path):
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "out": str(tmp_path / "s.jsonl")}
    first = dinoforge.evaluate(**words, tasks="knn,fewshot")
    rows = read_lines(tmp_path / "s.jsonl")
    assert [(row["task"], row["name"], row["value"]) for row in rows] == [
        (score.task, score.name, score.value) for score in first.scores
    ]
    again = dinoforge.evaluate(**words, tasks="fewshot,health")
    assert again.reused == ["fewshot"]
    assert [score for score in again.scores if score.task == "fewshot"] == [
        score for score in first.scores if score.task == "fewshot"
    ]
    other = dinoforge.evaluate(**words, tasks="knn", **{"knn.neighbours": 3})  # other settings are another question
    assert other.reused == []
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    (tmp_path / "s.jsonl").write_text("\n".join(lines[:2]) + "\n")  # killed while it wrote the scores of the first task
    assert dinoforge.evaluate(**words, tasks="knn").reused == []


def test_scores_are_not_taken_over_when_a_set_that_a_setting_names_changed(place, tmp_path):
    pictures(tmp_path / "also", 3, seed=5)
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "out": str(tmp_path / "s.jsonl"), "features": "none",
             "tasks": "robustness", "robustness.corruptions": "fog", "robustness.severities": "1",
             "robustness.iterations": 20, "robustness.also": str(tmp_path / "also")}  # fmt: skip
    assert dinoforge.evaluate(**words).reused == []
    assert dinoforge.evaluate(**words).reused == ["robustness"]
    shutil.copy(tmp_path / "also" / "red" / "5-0.png", tmp_path / "also" / "blue" / "5-9.png")
    assert dinoforge.evaluate(**words).reused == []


def test_an_address_from_another_working_directory_is_another(place, tmp_path, monkeypatch):
    """The same names, sizes and times, as an archive may give them; without the folder in the key nothing tells them apart."""
    for where, order in (("a", "red green"), ("b", "green red")):
        for split in ("train", "test"):
            for name, colour in zip(
                ("red", "green"), order.split() if split == "test" else ("red", "green"), strict=True
            ):
                (tmp_path / where / "in" / split / name).mkdir(parents=True)
                for number in range(4):
                    path = tmp_path / where / "in" / split / name / f"{number}.bmp"
                    Image.new("RGB", (24, 24), COLOURS[colour]).save(path)
                    os.utime(path, (0, 0))
    words = {"backbone": "pixels:4", "tasks": "knn", "features": str(tmp_path / "f"), "out": str(tmp_path / "s.jsonl")}
    for where, accuracy in (("a", 1), ("b", 0)):
        monkeypatch.chdir(tmp_path / where)
        assert scores(dinoforge.evaluate(**words, data="in"))["knn", "accuracy"] == accuracy
    assert dinoforge.evaluate(**words, data=str(tmp_path / "b" / "in")).reused == ["knn"]


@pytest.fixture
def tabled(place, tmp_path):
    """The words for pictures that a Parquet file names, of red and of blue; and what replaces each by one of the other."""
    for name in ("red", "blue"):
        shutil.copytree(place / "data" / "train" / name, tmp_path / "in" / name)
    paths = sorted(path.relative_to(tmp_path / "in") for path in (tmp_path / "in").glob("*/*"))
    rows = [
        {"path": str(path), "label": path.parts[0], "split": "train" if "-5" in path.name else "test"} for path in paths
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "t.parquet")

    def swap():
        for path in (path for path in paths if "-5" not in path.name and path.parts[0] == "red"):
            one, other = tmp_path / "in" / path, tmp_path / "in" / "blue" / path.name
            held = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(held)

    return {"backbone": "pixels:4", "data": str(tmp_path / "in" / "t.parquet"), "tasks": "knn", "knn.neighbours": 1,
            "out": str(tmp_path / "s.jsonl"), "features": str(tmp_path / "f")}, swap  # fmt: skip


def test_scores_are_not_taken_over_when_files_that_a_table_names_changed(tabled):
    words, swap = tabled
    assert scores(dinoforge.evaluate(**words))["knn", "accuracy"] == 1
    assert dinoforge.evaluate(**words).reused == ["knn"]
    swap()
    assert scores(dinoforge.evaluate(**words))["knn", "accuracy"] == 0


def test_scores_are_not_taken_over_where_nobody_can_tell_of_a_change(tabled, monkeypatch, capsys):
    monkeypatch.setattr(Parquet, "stamp", lambda *_: None)  # as of the web
    words, swap = tabled
    assert scores(dinoforge.evaluate(**words))["knn", "accuracy"] == 1
    assert "tell" not in capsys.readouterr().err
    swap()
    assert scores(dinoforge.evaluate(**words))["knn", "accuracy"] == 0
    assert f"knn: {words['data']} does not tell when its images were changed" in capsys.readouterr().err


def test_nor_where_nobody_can_tell_of_a_set_that_a_setting_names(place, tabled, monkeypatch):
    monkeypatch.setattr(Parquet, "stamp", lambda *_: None)
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "out": tabled[0]["out"], "features": "none",
             "tasks": "robustness", "robustness.corruptions": "fog", "robustness.severities": "1",
             "robustness.iterations": 20, "robustness.also": tabled[0]["data"]}  # fmt: skip
    assert dinoforge.evaluate(**words).reused == []
    assert dinoforge.evaluate(**words).reused == []


@pytest.mark.parametrize("held", [b"\xff\x00\xfe binary", b"3.5\n", b"my notes\n", b'{"mine": 1}\n'])
def test_scores_are_not_put_into_a_file_of_something_else(held, place, tmp_path, capsys):
    (tmp_path / "o").write_bytes(held)
    words = ["evaluate", f"backbone={place / 'b'}", f"data={place / 'data'}", f"out={tmp_path / 'o'}", "tasks=knn"]
    assert execute(words) == 2
    assert f"out={tmp_path / 'o'} holds something else than scores; give another file." in capsys.readouterr().err
    assert (tmp_path / "o").read_bytes() == held


def test_copies_of_what_was_trained_on_are_told_and_left_out(place, tmp_path):
    """Of sixteen test images two are in the pool that was trained on, under other names."""
    pictures(tmp_path / "pool", 5, seed=2)
    for name in ("red", "blue"):
        shutil.copy(place / "data" / "test" / name / "1-0.png", tmp_path / "pool" / name / "seen.png")
    dinoforge.scan(data=str(tmp_path / "pool"), out=str(tmp_path / "m.parquet"))
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "workers": 1}
    done = dinoforge.evaluate(**words, trained_on=str(tmp_path / "m.parquet"))
    found = scores(done)
    assert found["knn", "leaked"] == 2 / 16
    counted = {score.name: score.n for score in done.scores}
    assert (counted["accuracy"], counted["accuracy_without_leaks"]) == (16, 14)
    pictures(tmp_path / "others", 5, seed=3)
    dinoforge.scan(data=str(tmp_path / "others"), out=str(tmp_path / "n.parquet"))
    clean = scores(dinoforge.evaluate(**words, trained_on=str(tmp_path / "n.parquet")))
    assert clean["knn", "leaked"] == 0
    assert ("knn", "accuracy_without_leaks") not in clean


def test_a_suite_leaves_out_what_the_images_have_nothing_for(place, tmp_path, capsys):
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, path in enumerate(sorted((place / "data" / "test").rglob("*.png"))):
        shutil.copy(path, plain / f"{number}.png")
    done = dinoforge.evaluate(backbone=str(place / "b"), data=str(plain), tasks="quick")
    assert {score.task for score in done.scores} == {"health"}
    assert "Left out knn: " in capsys.readouterr().err
    assert execute(["evaluate", f"backbone={place / 'b'}", f"data={plain}", "tasks=knn"]) == 2


def test_for_a_person_it_is_a_table(place, capsys):
    words = ["evaluate", f"backbone={place / 'b'}", f"data={place / 'data'}", "tasks=knn,health"]
    assert execute(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["task", "score", "value"]
    assert lines[1].startswith("knn     accuracy")
    assert any(line.startswith("knn: k=") for line in lines)
    assert execute([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"task", "name", "value", "unit", "higher_is_better", "n"} <= facts["scores"][0].keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks="], "tasks= is empty; it takes "),
        (["tasks=quick,knn"], "tasks=quick is a suite and stands alone"),
        (["tasks=knn", "linear.iterations=3"], "linear.iterations has no effect: tasks=knn does not name linear"),
        (["tasks=knn", "knn.neighbours=25"], "knn.neighbours must be at most 24"),
        (["tasks=knn", "workers=2"], "workers=2 has no effect without trained_on="),
        (["tasks=knn", "trained_on=nowhere"], "trained_on=nowhere does not exist"),
        (["tasks=knn", "test_rows=0"], "test_rows must be at least 1; got 0"),
        (["tasks=knn", "seeds=3"], "seeds=3 has no effect: nothing is drawn in knn"),
        (["tasks=linear", "seeds=0"], "seeds must be at least 1; got 0"),
        (["tasks=retrieval", "train_rows=5"], "train_rows=5 has no effect: retrieval look at one set"),
        (["tasks=knn", "features={place}/data/test/red/1-0.png"], "is a file; give a folder, or none"),
        (
            ["features={place}/data/f"],
            "features={place}/data/f lies within data={place}/data; give a folder beside it.",
        ),
        (["tasks=linear", "save_heads={place}/data/h"], "save_heads={place}/data/h lies within data="),
        (
            ["tasks=robustness", "robustness.also={place}/b,{place}", "features={place}/f"],
            "lies within robustness.also={place};",
        ),
        (
            ["tasks=copies", "copies.background={place}", "copies.whiten=true", "features={place}/f"],
            "lies within copies.background={place};",
        ),
        (["tasks=knn", "data={place}/data/test/red"], "has no labels"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words, said, place, capsys):
    given = [word.format(place=place) for word in words]
    data = [] if any(word.startswith("data=") for word in given) else [f"data={place / 'data'}"]
    assert execute(["evaluate", f"backbone={place / 'b'}", *data, *given]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dinoforge: ")]
    assert len(lines) == 1
    assert said.format(place=place) in lines[0]
    assert sorted(path.name for path in place.rglob("*") if path.is_dir() and path.name in {"f", "h"}) == []


def test_neither_side_takes_in_what_is_written(place, capsys):
    for side, other in (("train", "test"), ("test", "train")):
        images = [f"{name}={place / 'data' / name}" for name in (side, other)]
        words = [f"backbone={place / 'b'}", *images, f"features={place / 'data' / side}"]
        assert execute(["evaluate", *words]) == 2
        assert f" lies within {side}={place / 'data' / side}; give" in capsys.readouterr().err


def test_classes_that_differ_are_named(place, tmp_path, capsys):
    pictures(tmp_path / "test", 2, seed=4, classes=["red", "grey"])
    (tmp_path / "test" / "grey").rename(tmp_path / "test" / "violet")
    words = ["evaluate", f"backbone={place / 'b'}", f"train={place / 'data' / 'train'}", f"test={tmp_path / 'test'}"]
    assert execute(words) == 2
    assert "has classes that" in (err := capsys.readouterr().err)
    assert "violet" in err
    assert "Traceback" not in err


def test_a_suite_goes_on_after_a_task_that_the_images_have_nothing_for(place, monkeypatch, capsys):
    """Labelled folders have no groups to be found."""
    monkeypatch.setitem(dinoforge_suites(), "both", ("knn", "retrieval", "health"))
    done = dinoforge.evaluate(backbone=str(place / "b"), data=str(place / "data"), tasks="both")
    assert {score.task for score in done.scores} == {"knn", "health"}
    assert "Left out retrieval: " in capsys.readouterr().err


def dinoforge_suites():
    from dinoforge.evaluate.table import SUITES

    return SUITES


def test_other_groups_are_another_question(place, tmp_path):
    """The same images and labels; what belongs together has changed."""
    paths = sorted((place / "data" / "test").rglob("*.png"))
    words = {"backbone": str(place / "b"), "data": str(tmp_path / "t.csv"), "tasks": "retrieval",
             "out": str(tmp_path / "s.jsonl"), "features": str(tmp_path / "f")}  # fmt: skip

    def listed(group):
        rows = [f"{path},{group(number, path)}" for number, path in enumerate(paths)]
        (tmp_path / "t.csv").write_text("\n".join(["image,group", *rows]) + "\n")

    listed(lambda number, path: ["blue", "green", "grey", "red"].index(path.parent.name))
    first = scores(dinoforge.evaluate(**words))["retrieval", "mAP"]
    listed(lambda number, path: number % 4)
    other = dinoforge.evaluate(**words)
    assert other.reused == []
    assert scores(other)["retrieval", "mAP"] < first
    assert dinoforge.evaluate(**words).reused == ["retrieval"]


def test_val_is_asked_where_there_is_no_test(place, tmp_path):
    for name, split in (("train", "train"), ("test", "val")):
        shutil.copytree(place / "data" / name, tmp_path / "s" / split)
    both = str(tmp_path / "s")
    done = dinoforge.evaluate(backbone=str(place / "b"), train=both, test=both, tasks=["knn"])
    assert {score.n for score in done.scores} == {16}


def test_a_backbone_that_gives_no_numbers_is_one_line(place, tmp_path, capsys):
    config = VitConfig(width=16, depth=2, heads=2, patch=8, pixels=16)
    broken = perturbed(config, short_side=16, side=16)
    broken.module.norm.weight.data[0] = float("nan")
    save_backbone(tmp_path / "n", broken)
    assert execute(["evaluate", f"backbone={tmp_path / 'n'}", f"data={place / 'data'}", "tasks=health"]) == 2
    assert "are not finite; a backbone that gives such is broken" in capsys.readouterr().err


def test_scores_without_leaks_that_cannot_be_had_cost_none_of_the_others(place, tmp_path, capsys):
    """Of every pair one image was trained on: of what is left nothing belongs together."""
    paths = sorted((place / "data" / "test").rglob("*.png"))
    (tmp_path / "seen").mkdir()
    for path in paths[::2]:
        shutil.copy(path, tmp_path / "seen" / f"{path.parent.name}{path.name}")
    dinoforge.scan(data=str(tmp_path / "seen"), out=str(tmp_path / "m.parquet"))
    rows = [f"{path},{number // 2}" for number, path in enumerate(paths)]
    (tmp_path / "t.csv").write_text("\n".join(["image,group", *rows]) + "\n")
    done = dinoforge.evaluate(
        backbone=str(place / "b"), data=str(tmp_path / "t.csv"), tasks="retrieval,health", workers=1,
        trained_on=str(tmp_path / "m.parquet"),
    )  # fmt: skip
    found = scores(done)
    assert found["retrieval", "leaked"] == found["health", "leaked"] == 0.5
    assert ("health", "effective_rank_without_leaks") in found
    assert ("retrieval", "mAP_without_leaks") not in found
    assert "retrieval is not given without the leaked images: " in capsys.readouterr().err


def test_what_a_later_task_lacks_is_said_before_an_earlier_one_is_measured(place, monkeypatch, capsys):
    monkeypatch.setattr("dinoforge.evaluate.linear.fit_linear", lambda *_: pytest.fail("hours went into a head"))
    words = ["evaluate", f"backbone={place / 'b'}", f"data={place / 'data'}"]
    for tasks, said in (
        (["tasks=linear,retrieval"], "has no groups"), (["tasks=linear,copies"], "has no groups"),
        (["tasks=linear,knn", "knn.neighbours=25"], "knn.neighbours must be at most 24"),
        (["tasks=linear,tracking"], "has no clips"), (["tasks=linear,correspondence"], "no two images"),
        (["tasks=linear", "linear.batch=25"], "linear.batch must be at most 24"),
    ):  # fmt: skip
        assert execute([*words, *tasks]) == 2
        assert said in capsys.readouterr().err


def test_words_of_settings_are_no_files(place, tmp_path, monkeypatch):
    """A folder that happens to be called as a setting's value changes nothing."""
    monkeypatch.chdir(tmp_path)
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "out": "s.jsonl", "features": "none",
             "tasks": "linear", "linear.iterations": 20}  # fmt: skip
    assert dinoforge.evaluate(**words).reused == []
    (tmp_path / "test").mkdir()
    assert dinoforge.evaluate(**words).reused == ["linear"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "scores are not kept without out=, features of whole images are kept."),
        ({"out": "s.jsonl"}, "scores so far are in s.jsonl, features of whole images are kept."),
        ({"out": "s.jsonl", "features": "none"}, "scores so far are in s.jsonl."),
        ({"features": "none"}, "nothing is kept, for that needs out= or features=."),
    ],
)
def test_an_interruption_says_what_is_kept(words, said, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("dinoforge.verbs.evaluate.measured", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        dinoforge.evaluate(backbone=str(place / "b"), data=str(place / "data"), tasks="knn", **words)
    assert f"SIGTERM received; {said} Run the same command to go on." in str(caught.value)


def test_heads_of_classes_of_one_name_are_kept(place, tmp_path):
    rows = [f"{path},{number % 3},{'ab'[number % 3 == 2]},{path.parts[-3]}"
            for number, path in enumerate(sorted((place / "data").rglob("*.png")))]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(["image,label,label_name,split", *rows]) + "\n")
    words = {"backbone": str(place / "b"), "data": str(tmp_path / "list.csv"), "features": "none", "tasks": "linear",
             "linear.iterations": 20}  # fmt: skip
    assert dinoforge.evaluate(**words, save_heads=str(tmp_path / "h")).scores
    facts = json.loads((tmp_path / "h" / "linear" / "head.json").read_text())
    assert facts["classes"] == ["a (0)", "a (1)", "b"]


def test_an_interval_that_is_no_number_is_read_back_as_none(place, tmp_path):
    out = tmp_path / "s.jsonl"
    words = {"backbone": str(place / "b"), "data": str(place / "data"), "tasks": "knn", "out": str(out)}
    dinoforge.evaluate(**words)
    rows = [row | {"interval": [None, None]} for row in read_lines(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = dinoforge.evaluate(**words)
    assert (again.reused, {score.interval for score in again.scores}) == (["knn"], {None})
