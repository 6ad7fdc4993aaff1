"""The record of one GPU: a run in calls, each ended by its time, judged when all is done."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from dinoforge.base.errors import Interrupted
from dinoforge.recipes.settle import settle

BENCH = Path(__file__).parents[2] / "bench"
SPEC = importlib.util.spec_from_file_location("bench_gpu_records", BENCH / "gpu_records.py")
RECORDS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(RECORDS)
WORLD = "toy://species?images=80&size=32"
TINY = {
    "recipe": "vit_micro.toy", "data": WORLD, "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 4, "plan.images": 400, "data.augment.local_views": 1, "precision": "fp32", "workers": 0,
}  # fmt: skip


def test_calls_go_on_until_all_is_done(tmp_path):
    calls, seconds = 1, 1.0
    while not RECORDS.call(TINY, tmp_path, seconds=seconds, judged={"data": WORLD, "tasks": "knn", "features": "none"}):
        calls, seconds = calls + 1, 2 * seconds
        assert not (tmp_path / "record.json").exists()
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["images"], record["calls"]) == (400, calls)
    assert RECORDS.seen(tmp_path / "run") == 400
    assert {one["task"] for one in record["scores"]} == {"knn"}
    assert {"device", "date", "source", "torch"} <= record.keys()
    assert RECORDS.call(TINY, tmp_path, judged={"data": WORLD, "tasks": "knn", "features": "none"})
    again = json.loads((tmp_path / "record.json").read_text())
    assert again["calls"] == calls  # which only judged once more


def test_time_that_is_up_before_a_run_listens_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(RECORDS.dinoforge, "pretrain", lambda **_: RECORDS.threading.Event().wait(30), raising=False)
    assert not RECORDS.call(TINY, tmp_path, seconds=0.01)
    assert json.loads((tmp_path / "calls.jsonl").read_text())["images"] == 0


def test_other_data_are_judged_by_themselves(tmp_path, monkeypatch, capsys):
    """And the backbone is kept by the vote on train images: the test images have no part in it."""
    given = {}
    monkeypatch.setattr(RECORDS.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(RECORDS, "call", lambda words, out, judged: given.update(words=words, judged=judged))
    assert RECORDS.main([str(tmp_path), "data=X", "probe=X"]) == 75
    assert (given["judged"]["data"], given["words"]["probe"]) == ("X", "X")
    assert RECORDS.main([str(tmp_path)]) == 75
    assert given["words"]["probe"] == f"{RECORDS.DATA}?split=train"
    assert given["judged"] == RECORDS.JUDGED


def test_what_is_asked_for_are_settings_and_200_passes():
    recipe = settle({key: value for key, value in RECORDS.WORDS.items() if key != "probe"}).recipe
    assert recipe.plan.images == 200 * 50_000


def test_what_ends_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RECORDS.torch.cuda, "is_available", lambda: True)
    for words in ([str(tmp_path), "plan.images=-5"], [f"out={tmp_path}"]):
        assert RECORDS.main(words) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_interrupted_while_it_judges_it_is_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise Interrupted("SIGTERM received; features are kept.")

    monkeypatch.setattr(RECORDS.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(RECORDS, "call", stopped)
    assert RECORDS.main([str(tmp_path)]) == 75
    assert capsys.readouterr().err == "SIGTERM received; features are kept.\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device(capsys):
    assert RECORDS.main([]) == 2
    assert "No CUDA device" in capsys.readouterr().err
