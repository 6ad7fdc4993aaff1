"""The speed-run: its task cannot be changed by a setting, and its line says what a record needs."""

import importlib.util
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SPEC = importlib.util.spec_from_file_location("bench_speedrun", BENCH / "speedrun.py")
SPEEDRUN = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SPEEDRUN)
TINY = {
    "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2, "objective.head.prototypes": 32, "plan.batch": 8,
    "plan.images": 16, "objective.group": 8, "data.augment.local_views": 1, "precision": "fp32", "workers": 0,
    "plan.learning_rate.warmup": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "word",
    ["data=toy://species?images=9", "probe.test_rows=1", "init=B", "teacher=RUN", "distil.teacher=RUN", "quick",
     "objective.gram.backbone=B", "objective={gram: {backbone: B}}", "probe={source: X}"],
)  # fmt: skip
def test_the_task_stays(word):
    with pytest.raises(SystemExit, match=r"The task fixes|written key=value"):
        SPEEDRUN.settings([word])


def test_a_line(tmp_path, monkeypatch):
    small = "toy://species?images=80&size=32"
    monkeypatch.setattr(SPEEDRUN, "FIXED", SPEEDRUN.FIXED | {"data": small, "probe": small})
    line = SPEEDRUN.run(SPEEDRUN.settings(["plan.batch=8"]) | TINY, tmp_path / "run")
    assert line["images"] == 16
    assert line["reached"] == (line["knn"] >= SPEEDRUN.TARGET)
    assert line["settings"]["recipe"] == "vit_micro.toy"
    assert len(line["source"]) == 16
    assert {"date", "commit", "torch", "cores", "processor", "seconds"} <= line.keys()


def test_what_ends_it_is_one_line_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(SPEEDRUN, "run", lambda *_: pytest.fail("trained for nothing"))
    (tmp_path / "a").write_text("")
    with pytest.raises(SystemExit, match=r"^speedrun: Cannot write .*a/log\.jsonl"):
        SPEEDRUN.main([str(tmp_path / "a" / "log.jsonl")])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"^speedrun: .*plan\.imags"):
        SPEEDRUN.main(["plan.imags=3"])


def test_the_line_is_shown_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SPEEDRUN, "run", lambda words, _: {"settings": words})
    assert SPEEDRUN.main([str(tmp_path / "log.jsonl"), "plan.batch=8"]) == 0
    assert capsys.readouterr().out == (tmp_path / "log.jsonl").read_text()


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert SPEEDRUN.commit() is None
