"""What is read from a run's folder, whole, cut off or spoilt; and the verdict on it."""

import json
import math

import numpy as np
import pytest

from dinoforge.base.errors import RunError
from dinoforge.base.lock import in_use, locked
from dinoforge.report.account import number, read_account
from dinoforge.report.page import page
from dinoforge.report.verdict import verdict


def checkpoint(folder, step):
    (folder / "checkpoints" / f"step_{step:09d}").mkdir(parents=True)
    (folder / "checkpoints" / f"step_{step:09d}" / "state.json").write_text(json.dumps({"step": step}))


def event(folder, step, kind, sentence):
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "kind": kind, "sentence": sentence}) + "\n")


def test_columns_of_a_finished_run(made_run):
    account = read_account(made_run())
    assert (account.state, account.step, account.steps) == ("finished", 40, 40)
    steps, values = account.points("losses.total")
    assert steps.tolist() == list(range(1, 41))
    np.testing.assert_allclose(values, 12 - steps / 20)
    assert account.points("knn")[1].tolist() == [0.2, 0.4, 0.6]
    assert account.seconds == pytest.approx(40 * 16 / 32)
    assert account.baselines == {"knn_untrained": 0.2}
    assert account.setting("backbone.width") == 32
    assert account.setting("backbone.width.more") is None
    assert verdict(account).level == "good"
    assert verdict(account).sentence == (
        "Finished after step 40 of 40, k-NN accuracy from 0.200 to 0.600, effective rank 10.0 of 32 channels; healthy."
    )


def test_states(made_run):
    crashed = made_run(rows=made_run.metrics()[:31], finished=False, name="crashed")
    checkpoint(crashed, 20)
    event(crashed, 25, "skip", "Step 25 left out.")
    assert read_account(crashed).state == "crashed"
    assert read_account(crashed).events == ["Step 25 left out."]
    assert read_account(crashed).steps == 40
    assert "Broken off after step 30 of 40" in verdict(read_account(crashed)).sentence
    event(crashed, 29, "stop", "Stopped.")  # an earlier start was; this one went on
    assert read_account(crashed).state == "crashed"
    event(crashed, 30, "stop", "Stopped at step 30.")
    assert verdict(read_account(crashed)).level == "bad"
    assert "Stopped by the sentinel after step 30 of 40" in verdict(read_account(crashed)).sentence
    checkpoint(crashed, 30)
    assert read_account(crashed).state == "interrupted"
    early = verdict(read_account(made_run(rows=made_run.metrics()[:10], finished=False, name="early")))
    assert early.level == "unsure"
    assert "health has not been measured since training began" in early.sentence
    with locked(crashed):
        assert read_account(crashed).state == "running"
        assert in_use(crashed)
    assert not in_use(crashed)
    assert read_account(made_run(rows=[], finished=False, name="fresh")).state == "not started"
    assert verdict(read_account(crashed.parent / "fresh")).level == "unsure"


def test_a_cut_off_last_line_and_spoilt_rows(made_run):
    folder = made_run(finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '[1, 2]\n{"step": null}\n{"step": true}\n{"step": -1}\nnonsense\n{"step": 41, "losses": 3, "knn": "x"}\n'
        )
        file.write('{"step": 7, "losses": {"total": NaN, "ibot": 1e999, "big": 1' + "0" * 400 + '}}\n{"step": 42, "los')
    account = read_account(folder)
    assert account.step == 41
    assert math.isnan(account.series["losses.total"][7])
    assert "losses.big" in account.series
    assert account.points("losses.big")[1].size == 0
    assert len(account.points("losses.total")[0]) == 39


def test_a_loss_that_is_no_number_is_not_healthy(made_run):
    rows = made_run.metrics()[:31]
    rows[-1]["losses"] = {"total": None, "ibot": None}
    told = verdict(read_account(made_run(rows=rows, finished=False)))
    assert told.level == "bad"
    assert "not healthy: the last loss is not finite" in told.sentence


@pytest.mark.parametrize(
    ("knn", "rank", "level", "words"),
    [
        ((0.2, 0.4, 0.1), (8, 8, 8), "bad", "below that of the backbone before training"),
        ((0.2, 0.4, 0.5), (8, 4, 1.5), "bad", "collapsed"),
        ((0.2, 0.6, 0.4), (8, 8, 8), "unsure", "fell back from 0.600"),
        ((0.2, 0.2, 0.205), (8, 8, 8), "unsure", "has not risen yet"),
        ((0.2, 0.4, 0.5), (20, 9, 8), "unsure", "effective rank fell from 20.0"),
    ],
)
def test_what_is_not_healthy(made_run, knn, rank, level, words):
    told = verdict(read_account(made_run(rows=made_run.metrics(knn=knn, rank=rank))))
    assert told.level == level
    assert words in told.sentence


def test_baselines_and_a_second_start(made_run):
    folder = made_run()
    (folder / "baselines.json").write_text(json.dumps({"knn_pixels": 0.7, "knn_histogram": "x", "knn_untrained": 0.1}))
    account = read_account(folder)
    assert account.baselines == {"knn_pixels": 0.7, "knn_untrained": 0.1}
    assert "k-NN on pixels alone is higher" in verdict(account).sentence
    (folder / "baselines.json").unlink()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("init: null", "init: other.pth"))
    assert read_account(folder).baselines == {}


def test_damaged_side_files_are_as_good_as_none(made_run):
    folder = made_run()
    for name in ("run.json", "plan.json", "curation.json", "baselines.json", "summary.json"):
        (folder / name).write_text('{"half": ')
    (folder / "config.yaml").write_text("a: [")
    (folder / "quarantine.jsonl").write_bytes(b"\xff\xfe{}\n[]\n")
    account = read_account(folder)
    assert account.run == account.plan == account.curation == account.summary == {}
    assert account.step == 40


def test_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds no run: it has neither"):
        read_account(tmp_path)
    with pytest.raises(RunError, match="nowhere does not exist"):
        read_account(tmp_path / "nowhere")


def test_numbers():
    assert number(3) == 3.0
    for value in (None, "3", True, float("nan"), float("inf"), 10**400, [1]):
        assert math.isnan(number(value))


@pytest.mark.parametrize("finished", [True, False])
def test_quality_that_was_measured_otherwise_is_not_compared(made_run, finished):
    """An easy probe, then a hard one: not that the features had got worse. Of a run that goes on the checkpoint knows."""
    folder = made_run(rows=made_run.metrics(knn=(0.8, 0.3, 0.45)), finished=finished)
    history = [{"step": step, "knn": 0.5, "protocol": name} for step, name in ((0, "easy"), (20, "hard"), (40, "hard"))]
    if finished:
        (folder / "summary.json").write_text(json.dumps({"steps": 40, "images": 640, "events": [], "history": history}))
    else:
        saved = folder / "checkpoints" / "step_000000040"
        saved.mkdir(parents=True)
        (saved / "state.json").write_text(json.dumps({"step": 40, "history": history}))
    account = read_account(folder)
    told = verdict(account)
    assert told.level == "good"
    assert "k-NN accuracy from 0.300 to 0.450" in told.sentence
    assert "knn_untrained" not in account.baselines
    assert account.points("knn")[1].tolist() == [0.8, 0.3, 0.45]  # the curve shows all
    text = page(account)
    assert "0.300 → 0.450" in text
