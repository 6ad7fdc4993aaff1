"""Faults in the middle of a run: each is named in the log, the diary and the report, and survived."""

import json
import math
import re
import time

import pytest
import torch
from safetensors.torch import load_file

from dinoforge.base import files
from dinoforge.base.errors import RunError, SentinelStop
from dinoforge.base.files import read_lines
from dinoforge.base.hardware import Choice
from dinoforge.data.quarantine import Quarantine
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.quality import Quality
from dinoforge.recipes.settle import settle
from dinoforge.report.account import read_account
from dinoforge.report.page import page
from dinoforge.runs import Run
from dinoforge.train import loop, sentinel, shards, vitals
from dinoforge.train.checkpoint import Checkpoints
from dinoforge.train.diary import Act, Diary
from dinoforge.train.loop import descend
from dinoforge.train.plan import PlanConfig

SMALL = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2, "workers": 0,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 8, "plan.images": 8 * 60, "plan.checkpoint_images": 8 * 10, "plan.probe_images": 8 * 30,
    "probe.rank_rows": 8, "data.augment.local_views": 1, "data": "toy://species?images=24&size=32",
    "data.augment.global_pixels": 32, "data.augment.local_pixels": 16,
}  # fmt: skip


def go(out, small=SMALL, **settings):
    recipe = settle(small | settings).recipe
    return Run(
        recipe, open_source(recipe.data.source), None, None, out, torch.device("cpu"), Choice("fp32", "asked for")
    ).go()


class At:
    """Ruins what ``descend`` leaves at some steps, by their learning rate's place in the plan."""

    def __init__(self, monkeypatch, steps, ruin):
        self.steps, self.ruin, self.seen = set(steps), ruin, []
        real = PlanConfig.at

        def at(plan, step, *, steps, gram=None):
            self.now = step + 1
            return real(plan, step, steps=steps, gram=gram)

        def ruined(step, *words, **options):
            losses, vitals = descend(step, *words, **options)
            if self.now in self.steps and options:  # a forecast's steps are not the run's
                self.seen.append(self.now)
                losses = self.ruin(step, losses)
            return losses, vitals

        monkeypatch.setattr(PlanConfig, "at", at)
        monkeypatch.setattr(loop, "descend", ruined)


def test_a_healthy_run_whose_prototypes_are_frozen_for_long_is_left_alone(tmp_path, monkeypatch):
    """As in the recipes for GPUs: more prototypes than the sentinel looks at, without a rate for more than three looks."""
    monkeypatch.setattr(vitals, "_ENTRIES", 8)
    go(tmp_path / "run", **{"plan.last_layer_frozen": 0.8})
    assert read_lines(tmp_path / "run" / "events.jsonl") == []


def bad_gradient(step, losses):
    for parameter in step.student.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(math.nan)
    return losses


def killed(*_):
    raise KeyboardInterrupt


def bad_loss(_step, losses):
    return losses | {"ibot": torch.tensor(math.inf)}


def rows(out):
    return {row["step"]: row for row in read_lines(out / "metrics.jsonl")}


def kept_is_finite(out):
    kept = load_file(out / "backbone" / "backbone.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    for saved in Checkpoints(out / "checkpoints", keep=9).all():
        for file in saved.folder.glob("*.safetensors"):
            assert all(value.isfinite().all() for value in load_file(file).values())


@pytest.mark.parametrize("ruin", [bad_gradient, bad_loss])
def test_a_bad_step_is_left_out(tmp_path, monkeypatch, capsys, ruin):
    """At a step after which both the probe and a checkpoint are due."""
    At(monkeypatch, [30], ruin)
    done = go(tmp_path / "r")
    assert done.steps == 60
    what = "gradient norm backbone is nan" if ruin is bad_gradient else "loss ibot is inf"
    assert len(done.events) == 1
    assert done.events[0].startswith(f"Step 30 left out, not finite: {what}")
    assert done.events[0] in capsys.readouterr().err
    assert [step for step, row in rows(tmp_path / "r").items() if row.get("skipped")] == [30]
    assert done.events[0] in page(read_account(tmp_path / "r"))
    kept_is_finite(tmp_path / "r")


def test_it_goes_back_and_on_at_a_lower_rate(tmp_path, monkeypatch):
    """Six bad steps of the first try: back to the checkpoint before them; the second try, with half the rate, is well."""
    fault = At(monkeypatch, range(34, 40), bad_gradient)
    real, out = loop.set_rates, tmp_path / "r"
    factors = {}

    def rates(optimizer, at, *, factor=1.0):
        factors[fault.now] = factor
        if factor < 1:
            fault.steps.clear()
        real(optimizer, at, factor=factor)

    monkeypatch.setattr(loop, "set_rates", rates)
    done = go(out)
    assert done.events[-1] == (
        "Step 39, not finite: 6 of the last 6 steps had to be left out: gradient norm backbone is nan, gradient norm "
        "dino_head is nan. Back to the checkpoint of step 30, and on at 0.5 of the planned learning rate."
    )
    assert len(done.events) == 1  # of what was gone back from, nothing is left
    assert list(rows(out)) == list(range(61))
    assert {step: factor for step, factor in factors.items() if step in (30, 31, 39, 60)} == {
        30: 1.0, 31: 0.5, 39: 0.5, 60: 0.5,
    }  # fmt: skip
    assert not any(row.get("skipped") for row in rows(out).values())
    kept_is_finite(out)


def test_without_a_checkpoint_it_begins_again(tmp_path, monkeypatch):
    fault, real = At(monkeypatch, range(2, 8), bad_gradient), loop.set_rates

    def rates(optimizer, at, *, factor=1.0):
        if factor < 1:
            fault.steps.clear()
        real(optimizer, at, factor=factor)

    monkeypatch.setattr(loop, "set_rates", rates)
    done = go(tmp_path / "r")
    assert "Back to the beginning, and on at 0.5" in done.events[0]
    assert [row["step"] for row in read_lines(tmp_path / "r" / "metrics.jsonl")] == list(range(61))
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert [row["step"] for row in summary["history"]] == [0, 30, 60]


def test_one_checkpoint_is_enough_to_go_back(tmp_path, monkeypatch):
    """Steps 18, 22 and 26: when the last is left out, the newest checkpoint is from between them."""
    fault, real = At(monkeypatch, [18, 22, 26], bad_gradient), loop.set_rates

    def rates(optimizer, at, *, factor=1.0):
        if factor < 1:
            fault.steps.clear()
        real(optimizer, at, factor=factor)

    monkeypatch.setattr(loop, "set_rates", rates)
    done = go(tmp_path / "r", **{"plan.images": 8 * 30, "plan.checkpoints": 1, "sentinel.skips": 2})
    assert "Back to the checkpoint of step 10, and on at 0.5" in done.events[0]
    assert [row["step"] for row in read_lines(tmp_path / "r" / "metrics.jsonl")] == list(range(31))


def kept_of(out):
    facts = json.loads((out / "backbone" / "backbone.json").read_text())
    return facts["lineage"]["step"], facts["scores"].get("knn")


@pytest.mark.parametrize(
    ("every", "first", "second", "at_once", "kept", "told"),
    [
        (7, {7: 0.5, 14: 0.9}, {14: 0.4, 21: 0.45, 25: 0.42}, (10, None), (21, 0.45), {7: False}),
        (5, {5: 0.5, 10: 0.3, 15: 0.9}, {15: 0.2, 20: 0.35, 25: 0.25}, (10, 0.3), (20, 0.35), {5: False}),
        pytest.param(
            5, {5: 0.5, 10: 0.6, 15: 0.4}, {15: 0.2, 20: 0.7, 25: 0.1}, (10, 0.6), (20, 0.7), {}, marks=pytest.mark.long
        ),
        (5, {5: 0.5, 10: 0.3, 15: 0.4}, {15: 0.6, 20: 0.1, 25: 0.1}, (5, 0.5), (15, 0.6), {}),
    ],
    ids=["given up", "given up, its own is known", "the checkpoint's own", "from before"],
)
def test_no_backbone_is_kept_from_steps_that_were_given_up(
    tmp_path, monkeypatch, every, first, second, at_once, kept, told
):  # fmt: skip
    """From step 18 back to 10: what was kept after that goes at once, and what comes is compared with what is there."""

    def faulty(out, *, kill=False):
        with monkeypatch.context() as patch:
            fault = At(patch, [18, *([12] if kill else [])], bad_gradient)
            real, measure = loop.set_rates, Quality.measure
            fault.now, accuracies = 0, {0: 0.1, 1: 0.1} | first  # a forecast may be made before
            bad = fault.ruin

            def ruin(step, losses):
                if fault.now == 12 and fault.steps == {12}:
                    raise KeyboardInterrupt
                return bad(step, losses) if fault.now == 18 else losses

            def rates(optimizer, at, *, factor=1.0):
                if factor < 1:
                    fault.steps.discard(18)
                    accuracies.update(second)
                real(optimizer, at, factor=factor)

            fault.ruin = ruin
            patch.setattr(loop, "set_rates", rates)
            patch.setattr(Quality, "measure", lambda self, net: measure(self, net) | {"knn": accuracies[fault.now]})
            return go(out, **{"plan.images": 8 * 25, "plan.probe_images": 8 * every, "sentinel.skips": 0})

    whole, out = faulty(tmp_path / "whole"), tmp_path / "killed"
    assert kept_of(tmp_path / "whole") == kept
    assert whole.knn == {"first": 0.1, "last": second[25], "best": kept[1]}
    with pytest.raises(KeyboardInterrupt):
        faulty(out, kill=True)
    assert kept_of(out) == at_once
    if at_once[0] == 10:
        mine = load_file(out / "backbone" / "backbone.safetensors")
        state = load_file(next((out / "checkpoints" / "step_000000010").glob("*.safetensors")))
        assert all(torch.equal(value, state[f"teacher.backbone.{name}"]) for name, value in mine.items())
    assert faulty(out).resumed_from == 10
    assert kept_of(out) == kept
    a, b = (json.loads((tmp_path / name / "summary.json").read_text())["history"] for name in ("whole", "killed"))
    assert a == b
    assert {row["step"]: row["kept"] for row in a if "kept" in row and row["step"]} == told


def test_back_at_the_beginning_no_backbone_is_kept(tmp_path, monkeypatch):
    out = tmp_path / "r"
    fault, real = At(monkeypatch, [8], bad_gradient), loop.set_rates

    def rates(optimizer, at, *, factor=1.0):
        if factor < 1:
            fault.steps.clear()
        assert (out / "backbone").exists() == (fault.now > 5)
        real(optimizer, at, factor=factor)

    monkeypatch.setattr(loop, "set_rates", rates)
    done = go(out, **{"plan.images": 8 * 10, "plan.probe_images": 8 * 5, "sentinel.skips": 0})
    assert "Back to the beginning" in done.events[0]
    assert kept_of(out)[0] == 10


@pytest.mark.long
def test_killed_after_it_went_back_it_goes_on_the_same(tmp_path, monkeypatch):
    """What it went back from is no more, even if the start that went back was killed before it removed anything."""

    def faulty(out, *, kill):
        with monkeypatch.context() as patch:
            fault, real = At(patch, range(44, 50), bad_gradient), loop.set_rates

            def rates(optimizer, at, *, factor=1.0):
                if factor < 1:
                    fault.steps.clear()
                    if kill and fault.now == 45:
                        raise KeyboardInterrupt
                real(optimizer, at, factor=factor)

            patch.setattr(loop, "set_rates", rates)
            return go(out, **{"sentinel.within": 20})

    whole = faulty(tmp_path / "whole", kill=False)
    with pytest.raises(KeyboardInterrupt):
        faulty(tmp_path / "killed", kill=True)
    resumed = faulty(tmp_path / "killed", kill=False)
    assert resumed.resumed_from == 40
    assert resumed.events == whole.events
    assert resumed.losses == whole.losses
    for name in ("whole", "killed"):
        assert len(Checkpoints(tmp_path / name / "checkpoints", keep=9).all()) > 0
    a, b = (load_file(tmp_path / name / "backbone" / "backbone.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.long
def test_what_it_went_back_from_does_not_push_out_what_comes(tmp_path, monkeypatch):
    """Three later checkpoints, as many as are kept, when it begins again; killed before the second of the new ones."""
    out = tmp_path / "r"

    def killed_at(step):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            At(patch, [step], killed)
            go(out)

    killed_at(45)
    assert [saved.step for saved in Checkpoints(out / "checkpoints", keep=9).all()] == [20, 30, 40]
    Diary(out / "events.jsonl").note(Act(44, "roll back", "collapse", "…", 0))
    killed_at(15)
    assert [saved.step for saved in Checkpoints(out / "checkpoints", keep=9).all()] == [10]
    assert go(out).resumed_from == 10


def test_budgets_spent_it_stops_and_more_let_it_go_on(tmp_path, monkeypatch):
    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        At(patch, range(34, 61), bad_gradient)
        with pytest.raises(SentinelStop, match=r"^Stopped at step 39, not finite.* It had gone back 1 times"):
            go(out, **{"sentinel.rollbacks": 1})
    account = read_account(out)
    assert account.state == "stopped"
    assert account.events[-1].startswith("Stopped at step 39")
    kept_is_finite(out)
    done = go(out, **{"sentinel.rollbacks": 2})  # another budget is no other run
    assert (done.resumed_from, done.steps) == (30, 60)


def test_a_wrong_temperature_is_named(tmp_path):
    """So high that targets say nothing from the first look on: what had said something is taken for a collapse first."""
    with pytest.raises(
        SentinelStop, match=r"collapse: the teacher's targets are the same for all images .* at temperature 2\."
    ) as stop:
        go(tmp_path / "r", **{"plan.teacher_temperature.start": 2.0, "plan.teacher_temperature.end": 2.0})
    assert "Lower plan.teacher_temperature" in str(stop.value)
    assert Checkpoints(tmp_path / "r" / "checkpoints", keep=9).latest() is not None


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_a_teacher_that_does_not_follow_is_named(tmp_path, monkeypatch, momentum):
    """One that is never moved; and one that is made equal to the student, whatever its momentum says."""

    def broken(teacher, student, _):
        if momentum is not None:
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

    monkeypatch.setattr(loop, "follow", broken)
    want = "has not moved for 3 looks" if momentum is None else "is equal to the student"
    with torch.no_grad(), torch.enable_grad(), pytest.raises(SentinelStop, match=f"teacher: the teacher {want}"):
        go(tmp_path / "r")


def test_a_teacher_that_is_the_student_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dinoforge.runs.teacher_of", lambda student: student)
    with pytest.raises(SentinelStop, match="teacher: the teacher shares its memory with the student"):
        go(tmp_path / "r")


def test_a_starving_loader_is_named_and_borne(tmp_path, monkeypatch):
    from dinoforge.data.loader import Loader

    whole = Loader.join

    def slow(self, groups):
        time.sleep(0.2)
        return whole(self, groups)

    monkeypatch.setattr(Loader, "join", slow)
    monkeypatch.setattr(sentinel, "_STRETCH", 5)
    done = go(tmp_path / "r", **{"plan.images": 8 * 12})
    assert done.steps == 12
    assert len(done.events) == 1
    assert "% of the last 5 steps' time was spent waiting for images" in done.events[0]


@pytest.mark.parametrize("how", ["at_once", pytest.param("background", marks=pytest.mark.long)])
def test_a_disk_that_is_full_for_a_while_is_named_and_survived(tmp_path, monkeypatch, how):
    whole = go(tmp_path / "whole")
    real, tried = shards.write_tensors, []

    def full(path, *rest, **options):
        tried.append(path.parent.name)
        if "0000020" in path.parent.name or "0000022" in path.parent.name:
            raise RunError(f"Cannot write {path}: no space left. Free some and run again.")
        real(path, *rest, **options)

    monkeypatch.setattr(shards, "write_tensors", full)
    done = go(tmp_path / "r", **{"speed.checkpoints": how})
    assert done.steps == 60
    assert "no checkpoint (Cannot write" in done.events[0]
    assert "tries again after step" in done.events[0]
    assert done.losses == whole.losses
    assert any("0000024" in name for name in tried) or how == "background"


@pytest.mark.parametrize("skips", [5, 0])
def test_a_disk_that_is_full_for_a_moment_costs_no_line(tmp_path, monkeypatch, skips):
    """The last act of a run, and an image set aside in it: no later line takes theirs along, whether it ends or is stopped."""
    real, refused = files.append_line, []

    def full(path, row):
        if path.name in {"events.jsonl", "quarantine.jsonl"} and path.name not in refused:
            refused.append(path.name)
            raise RunError(f"Cannot write {path}: no space left. Free some and run again.")
        real(path, row)

    def bad_image(step, losses):
        quarantines[-1]("damaged.png", "cut off")
        return bad_gradient(step, losses)

    quarantines, init = [], Quarantine.__init__

    def made(self, path):
        init(self, path)
        quarantines.append(self)

    monkeypatch.setattr(Quarantine, "__init__", made)
    monkeypatch.setattr(files, "append_line", full)
    At(monkeypatch, [60], bad_image)
    settings, out = {"sentinel.skips": skips, "sentinel.rollbacks": 0}, tmp_path / "r"
    if skips:
        go(out, **settings)
    else:
        with pytest.raises(SentinelStop):
            go(out, **settings)
    assert sorted(refused) == ["events.jsonl", "quarantine.jsonl"]
    assert [(row["step"], row["kind"]) for row in read_lines(out / "events.jsonl")] == [
        (60, "skip" if skips else "stop")
    ]
    assert [row["id"] for row in read_lines(out / "quarantine.jsonl")] == ["damaged.png"]


def test_a_disk_that_stays_full_stops_the_run(tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise RunError(f"Cannot write {path}: no space left. Free some and run again.")

    monkeypatch.setattr(shards, "write_tensors", full)
    with pytest.raises(
        SentinelStop, match=r"Stopped at step 16, disk: checkpoints could not be written 4 times in a row"
    ):
        go(tmp_path / "r")
    assert list((tmp_path / "r" / "checkpoints").glob("step_*")) == []


TOY = {"recipe": "vit_micro.toy", "workers": 0, "plan.batch": 16, "plan.images": 1_600, "plan.checkpoint_images": 320,
       "plan.probe_images": 800, "probe.rank_rows": 64}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_no_false_alarm_in_a_healthy_run(tmp_path, seed):
    done = go(tmp_path / "r", TOY, **{"seed": seed, "data": f"toy://species?images=400&size=48&seed={seed}"})
    assert done.events == []


@pytest.mark.long
def test_a_rate_that_explodes_is_named_and_survived(tmp_path):
    """A hundred times too high: targets tell images apart no more; back, and on at a hundredth, which learns."""
    wrong = {"plan.learning_rate.peak": 0.6, "sentinel.rate_factor": 0.01, "plan.images": 1_280}
    done = go(tmp_path / "r", TOY, **wrong, **{"data": "toy://species?images=400&size=48"})
    assert done.steps == 80
    assert len(done.events) == 1
    assert re.match(
        r"Step \d+, collapse: targets tell images apart no more \(information 0\.\d+, at best 0\.\d+\)\. Back to the "
        r"(beginning|checkpoint of step \d+), and on at 0\.01 of the planned learning rate\.",
        done.events[0],
    )
    looks = [row["vitals"] for row in read_lines(tmp_path / "r" / "metrics.jsonl") if "vitals" in row]
    told = [look["target_information"] for look in looks]
    assert min(told[-3:]) > 0.5 * max(told)
