"""A run folder: which are taken, what a start that was killed leaves, what a resumed start makes of it."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import dinoforge.runs
from dinoforge.base.errors import RunError
from dinoforge.base.files import read_lines
from dinoforge.base.hardware import Choice
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction
from dinoforge.recipes.opened import labelled, training_rows
from dinoforge.recipes.quality import Quality, neighbours_of
from dinoforge.recipes.settle import settle
from dinoforge.runs import Run
from dinoforge.train.checkpoint import Checkpoints, Saved

TINY = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 4, "plan.images": 16, "plan.checkpoint_images": 8, "plan.probe_images": 8, "probe.rank_rows": 8,
    "data.augment.local_views": 1, "data": "toy://species?images=12&size=32", "workers": 0,
}  # fmt: skip


def tiny(out, *, precision=("fp32", "asked for"), probed=None, **settings):
    recipe = settle(TINY | settings).recipe
    return Run(recipe, open_source(recipe.data.source), probed, None, out, torch.device("cpu"), Choice(*precision))


def protocol(out, **settings):
    """Of what its last stage is judged by."""
    run = tiny(out, **settings)
    how = Extraction(run.device, "fp32")
    return Quality(run.stages[-1], run.source, run.probed, how, latest=None, on_broken=print).protocol


def killed(*_args, **_settings):
    raise KeyboardInterrupt


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "a.png")
    return str(root)


def test_of_splits_without_train_all_is_used_and_said(tmp_path, capsys):
    odd = folders(tmp_path / "odd", "test", "validation/x", "other")
    assert len(training_rows(odd)) == 3
    assert capsys.readouterr().err == (
        f"{odd} has no split train, only test, val: all its 3 images are used; "
        "?split=NAME behind the address chooses one.\n"
    )
    assert len(training_rows(f"{odd}?split=val")) == 1
    usual = folders(tmp_path / "usual", "train", "test")
    assert len(training_rows(usual)) == 1
    assert capsys.readouterr().err == f"{usual}: 1 of its 2 images are used, those of the split train.\n"
    assert len(training_rows(folders(tmp_path / "plain", "cat", "dog"))) == 2
    assert len(training_rows("toy://species?images=12&size=32&split=test")) > 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("writer", ["write_json", "write_text"])
def test_a_start_that_was_cut_off_at_once_can_be_repeated(tmp_path, monkeypatch, writer):
    """Whichever file a start was cut off at (kill -9, full disk), the same command goes on in the folder."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dinoforge.runs, writer, killed)
        tiny(out).go()
    assert tiny(out).go().steps == 4


def test_what_killed_writers_left_is_removed(tmp_path):
    out = tmp_path / "out"
    left = [".run.json.ab12_cde", ".config.yaml.00000000", ".backbone.zzzzzzzz/backbone.json", ".backbone.old/x",
            "checkpoints/.step_000000002.abcdefgh/state.json", "film/.images.npz.abcdefgh"]  # fmt: skip
    mine = [".notes.mine", ".DS_Store"]
    for name in left + mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("half")
    for name in ("checkpoints", "film"):  # a folder of ours beside no run.json would be a stranger's
        (out / name).rename(tmp_path / name)
    tiny(out).go()
    for name in ("checkpoints", "film"):
        for path in (tmp_path / name).iterdir():
            path.rename(out / name / path.name)
    tiny(out).go()
    found = {path.name for path in out.rglob(".*")}
    assert found == {".lock", *mine}
    assert (out / "backbone" / "backbone.json").exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"id": 7}'])
def test_a_run_json_of_something_else_is_one_line(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json was not written by dinoforge pretrain; give a new folder"):
        tiny(tmp_path).go()


def test_killed_before_the_first_checkpoint_no_row_is_doubled(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dinoforge.train.checkpoint.Checkpoints.save", killed)
        tiny(out).go()
    assert [row["step"] for row in read_lines(out / "metrics.jsonl")] == [0, 1, 2]
    tiny(out).go()
    assert [row["step"] for row in read_lines(out / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_auto_goes_on_in_the_precision_that_the_run_began_in(tmp_path, monkeypatch, capsys):
    """The timing that auto rests on may come out otherwise today; only a word of the user's changes the precision."""
    save = Checkpoints.save

    def once(*words):
        save(*words)
        raise KeyboardInterrupt

    for name, again, want, said in (
        ("auto", {"precision": ("bf16", "faster today")}, "fp32", "a new run would take bf16: faster today"),
        ("wish", {"precision": ("bf16", "asked for"), "speed.precision": "bf16"}, "bf16", "until now it was fp32"),
    ):
        out = tmp_path / name
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Checkpoints, "save", once)
            tiny(out).go()
        capsys.readouterr()
        run = tiny(out, **again)
        monkeypatch.setattr(run, "_plan", lambda run=run: [run.recipe.plan.batch])
        run.go()
        err = capsys.readouterr().err
        assert f"precision {want}" in err
        assert said in err
        newest = Checkpoints(out / "checkpoints", keep=3).all()[-1]
        assert newest.facts["precision"] == run.precision.precision == want


def test_another_probe_is_another_protocol(tmp_path):
    def asked(address, **settings):
        return protocol(tmp_path, probed=labelled(address), **settings)

    same = asked("toy://species?images=40&size=32")
    assert asked("toy://species?images=40&size=32") == same
    changed = [
        asked("toy://species?images=50&size=32"),
        asked("toy://species?images=40&size=32", **{"probe.neighbours": 3}),
        asked("toy://species?images=40&size=32", **{"probe.test_rows": 5}),
        asked("toy://species?images=40&size=32", **{"high_resolution.images": 8, "high_resolution.global_pixels": 64}),
        protocol(tmp_path),
    ]
    assert len({same, *changed}) == 6


SCORES = ("rank", "uniformity", "smoothness", "stability")


@pytest.mark.parametrize("labels", [False, True])
def test_killed_and_resumed_says_the_same_of_its_features(tmp_path, monkeypatch, labels):
    """To the last bit, the neighbours that changed since a look before the checkpoint too."""
    looks = {"plan.images": 32, "plan.probe_images": 12, "plan.checkpoint_images": 16, "plan.teacher_momentum.peak": 0.5,
             "data": "toy://species?images=40&size=32", "probe.rank_rows": 40}  # fmt: skip

    def run(out):
        return tiny(out, probed=labelled("toy://species?images=150&size=32") if labels else None, **looks)

    def measured(out):
        rows = [row for row in read_lines(out / "metrics.jsonl") if "rank" in row]
        return [(row["step"], *(row.get(name) for name in ("knn", *SCORES))) for row in rows]

    whole = run(tmp_path / "whole").go()
    want = measured(tmp_path / "whole")
    assert [(row[0], row[1] is not None, row[-1] is not None) for row in want] == [
        (0, labels, False), (3, labels, True), (6, labels, True), (8, labels, True)
    ]  # fmt: skip
    assert 0 < want[2][-1] < 1  # of the first look after the checkpoint: it is compared with one before
    assert [getattr(whole, name) for name in SCORES] == list(want[-1][2:])

    out, save = tmp_path / "killed", Checkpoints.save

    def once(*words):
        save(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", once)
        run(out).go()
    assert len(measured(out)) == 2
    assert run(out).go().resumed_from == 4
    assert measured(out) == want
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert mine["history"] == theirs["history"]
    assert mine["stability"] == theirs["stability"] == whole.stability


def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    """Its checkpoint has neither neighbours nor rows of this protocol."""
    out, save = tmp_path / "out", Checkpoints.save

    def earlier(self, module, optimizer, facts):
        del facts["neighbours"]
        facts["history"] = [{"step": row["step"], "rank": row["rank"], "protocol": "old"} for row in facts["history"]]
        save(self, module, optimizer, facts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", earlier)
        tiny(out).go()
    tiny(out).go()
    found = json.loads((out / "summary.json").read_text())
    assert [row["step"] for row in found["history"]] == [0, 2, 4]
    assert found["stability"] is None
    assert found["uniformity"] < 0


def test_a_checkpoint_holds_what_was_known_when_it_was_begun(tmp_path, monkeypatch):
    """Written in the background, it must not take in what the run measures meanwhile."""
    held, save = [], Checkpoints.save

    def later(self, module, optimizer, facts):
        held.append(facts)
        return save(self, module, optimizer, facts)

    monkeypatch.setattr(Checkpoints, "save", later)
    tiny(tmp_path).go()
    assert [[row["step"] for row in facts["history"]] for facts in held] == [[0, 2], [0, 2, 4]]


def test_other_rows_are_another_protocol_without_labels_too(tmp_path):
    one, same, other = (protocol(tmp_path, **{"probe.rank_rows": rows}) for rows in (8, 8, 9))
    assert one == same != other


def test_neighbours_of_another_probe_are_not_compared_with():
    saved = Saved(Path("step_000000004"), {"neighbours": {"protocol": "a", "rows": [[0, 1], [1, 0]]}})
    assert neighbours_of(saved, "a") == [[0, 1], [1, 0]]
    assert neighbours_of(saved, "b") is None
    assert neighbours_of(None, "a") is None
