"""The sentinel alone: what it sees in the numbers of steps, what it does about it, what it says."""

import json
import math
from dataclasses import replace

import pytest
import torch

from dinoforge.base import files
from dinoforge.base.errors import ConfigError, RunError, SentinelStop
from dinoforge.base.files import finite
from dinoforge.train.diary import Act, Diary
from dinoforge.train.loop import Done
from dinoforge.train.plan import Scheduled
from dinoforge.train.sentinel import RollBack, Sentinel, SentinelConfig

HEALTHY = {
    "teacher_entropy": 0.5, "prototype_use": 0.6, "target_information": 0.7, "teacher_distance": 0.04,
    "teacher_moved": 9.0,
}  # fmt: skip


def made(step, *, total=8.0, koleo=0.4, norm=2.0, skipped=0.0, momentum=0.99, temperature=0.07, waited=0.0, **vitals):
    def tensors(values):
        return {name: torch.tensor(float(value)) for name, value in values.items()}

    looks = tensors(HEALTHY | vitals) if step % 10 == 1 else {}
    return Done(
        step=step, losses=tensors({"koleo": koleo, "total": total}), norms=tensors({"backbone": norm, "head": 1.0}),
        at=Scheduled(1e-3, 1e-3, 0.04, momentum, temperature), skipped=torch.tensor(skipped), vitals=looks, waited=waited,
    )  # fmt: skip


def sentinel(tmp_path, *, rows_at_once=1, memory=None, due=lambda _: False, precision="fp32", steps=1_000, **config):
    told = []
    found = Sentinel(
        SentinelConfig(**config), Diary(tmp_path / "events.jsonl"), due=due, record=told.append,
        rows_at_once=rows_at_once, precision=precision, steps=steps, memory=memory,
    )  # fmt: skip
    found.told = told
    return found


def matched(step, spread):
    """A step of matching features, which has no prototypes."""
    done = made(step)
    looks = {"target_spread": torch.tensor(spread)} if done.vitals else {}
    return replace(done, losses={"total": done.losses["total"]}, vitals=looks)


def test_matched_features_have_a_spread_in_place_of_entropies(tmp_path):
    """However it varies with the images, only nothing at all is trouble: the teacher says the same of all."""
    watch = sentinel(tmp_path)
    for step in range(1, 400):
        watch(matched(step, 0.6 if step < 200 else 0.008))
    assert lines(tmp_path) == []
    with pytest.raises(
        SentinelStop, match=r"features are the same for all images \(spread 9\.0e-04\)\..*Give another teacher"
    ):
        for step in range(400, 440):
            watch(matched(step, 9e-4))


def feed(watch, steps, **numbers):
    """Steps one after another; a step is left out as the loop would."""
    for step in steps:
        done = made(step, **numbers)
        done.skipped.copy_(watch.guard.unfit(done.losses, done.norms))
        watch(done)


def lines(tmp_path):
    return Diary(tmp_path / "events.jsonl").sentences()


def test_a_healthy_run_is_left_alone(tmp_path):
    watch = sentinel(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 600):  # norms of a real run lie within a factor of 5 of their middle, losses fall
        noise = float(torch.randn((), generator=generator))
        feed(
            watch, [step], total=10 - step / 200, norm=2 * math.exp(0.6 * noise), target_information=0.7 + 0.02 * noise
        )
    assert lines(tmp_path) == []
    assert watch.guard.rate == 1
    assert watch.told == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["total", "norm"])
@pytest.mark.parametrize("at_once", [1, 50])
def test_one_bad_step_is_left_out_and_named(tmp_path, value, what, at_once):
    watch = sentinel(tmp_path, rows_at_once=at_once)
    feed(watch, range(1, 7))
    feed(watch, [7], **{what: value})
    feed(watch, range(8, 51))
    name = "loss total" if what == "total" else "gradient norm backbone"
    assert lines(tmp_path) == [f"Step 7 left out, not finite: {name} is {value}."]


def test_a_gradient_far_out_of_its_law_is_left_out(tmp_path):
    """The law must be known first: the same norm among the first steps is none of the sentinel's business."""
    watch = sentinel(tmp_path)
    feed(watch, [1], norm=5_000)
    feed(watch, range(2, 101))
    feed(watch, [101], norm=59)  # 30 times the middle is 60
    assert lines(tmp_path) == []
    feed(watch, [102], norm=61)
    feed(watch, [103])
    assert lines(tmp_path) == ["Step 102 left out, gradient norm: gradient norm backbone is 61, usually 2."]


@pytest.mark.parametrize("at_once", [1, 50])
@pytest.mark.parametrize("looks", [(), (45,), (7, 49, 99), (50, 101), range(1, 120, 3)])
def test_what_is_left_out_depends_on_the_step_alone(tmp_path, at_once, looks):
    """Not on when somebody looked: for a checkpoint, from which another start goes on, or where numbers are read at once."""
    watch, laws, skipped = sentinel(tmp_path, rows_at_once=at_once, skips=9, due=lambda step: step in looks), {}, []
    for step in range(1, 121):
        done = made(step, norm=100 if step in (40, 48, 70, 110) else 2 + step % 3 / 100)
        laws[step] = watch.guard.largest.get("backbone")
        done.skipped.copy_(watch.guard.unfit(done.losses, done.norms))
        skipped += [step] * bool(done.skipped)
        watch(done)
        if step in looks:
            memory = json.loads(json.dumps(finite(watch.memory())))
            watch = sentinel(tmp_path, rows_at_once=at_once, skips=9, due=watch.due, memory=memory)
    watch.check()
    assert skipped == [70, 110]
    assert {step for step, law in laws.items() if law is None} == set(range(1, 51))
    assert [len({laws[step] for step in steps}) for steps in (range(51, 101), range(101, 121))] == [1, 1]
    assert lines(tmp_path) == [
        f"Step {step} left out, gradient norm: gradient norm backbone is 100, usually 2.01." for step in skipped
    ]


def test_wide_laws_bear_wide_norms(tmp_path):
    """Norms that swing by a factor of e to both sides: ten deviations are e^14.8, far beyond a factor of 30."""
    watch = sentinel(tmp_path)
    for step in range(1, 101):
        feed(watch, [step], norm=math.exp((-1.0, 1.0)[step % 2]))
    assert watch.guard.largest["backbone"] == pytest.approx(math.exp(1 * 1.4826 * 10), rel=1e-6)
    assert watch.guard.largest["head"] == pytest.approx(30)


def test_too_many_left_out_is_trouble_and_goes_back_before_the_first(tmp_path):
    watch = sentinel(tmp_path, skips=3, within=20)
    feed(watch, range(1, 30))
    feed(watch, [30], total=math.nan)
    feed(watch, range(31, 60))  # forgotten by now
    feed(watch, [60, 62, 64], total=math.nan)
    with pytest.raises(RollBack, match="4 of the last 9 steps had to be left out: loss total is nan") as back:
        feed(watch, [68], total=math.nan)
    assert (back.value.good, back.value.step, back.value.cause, back.value.rate) == (59, 68, "not finite", 0.5)
    assert [done.step for done in watch.told] == [68]  # the row of the step that was gone back from is written
    act = back.value.act(40)
    assert act.sentence.startswith("Step 68, not finite: 4 of the last 9 steps had to be left out")
    assert act.sentence.endswith("Back to the checkpoint of step 40, and on at 0.5 of the planned learning rate.")
    assert "Back to the beginning" in back.value.act(0).sentence


def test_what_trouble_to_come_goes_back_to_is_known_before(tmp_path):
    """The last sound look, or the step before the first of those left out that still count."""
    watch = sentinel(tmp_path, skips=3, within=20)
    feed(watch, range(1, 30))
    assert (watch.sound(29), watch.memory()["good"]) == (21, 21)
    feed(watch, [30, 34], total=math.nan)
    feed(watch, [41])
    assert [watch.sound(41), watch.sound(48), watch.sound(49), watch.sound(53)] == [29, 29, 33, 41]
    feed(watch, [42], total=math.nan)
    assert watch.sound(42) == 29
    with pytest.raises(RollBack) as back:
        feed(watch, [49], total=math.nan)
    assert back.value.good == 29


def test_budgets_spent_stop_the_run(tmp_path):
    diary = Diary(tmp_path / "events.jsonl")
    for step in (10, 20):
        diary.note(Act(step, "roll back", "collapse", "…", 5))
    watch = sentinel(tmp_path, skips=0, rollbacks=2, rate_factor=0.1, precision="bf16")
    assert watch.guard.rate == pytest.approx(0.01)
    with pytest.raises(SentinelStop, match=r"^Stopped at step 30, not finite: step 30 had to be left out: loss total is inf\. "
                       r"It had gone back 2 times, the learning rate is 0\.01 of the planned\. .*precision=fp32"):  # fmt: skip
        feed(watch, [30], total=math.inf)
    assert lines(tmp_path)[-1].startswith("Stopped at step 30")


@pytest.mark.parametrize(
    ("numbers", "outcome", "sentence"),
    [
        ({"target_information": 0.1}, RollBack, "targets tell images apart no more (information 0.100, at best 0.700)"),
        ({"koleo": 14.0}, RollBack, "all features are alike (nearest neighbours are 9.1e-04 apart)"),
        (
            {"teacher_entropy": 0.999, "target_information": 0.3, "temperature": 0.5}, SentinelStop,
            "collapse: the teacher's targets are the same for all images (entropy 0.999 of the largest, information 0.300) "
            "at temperature 0.5",
        ),
        ({"teacher_moved": 0}, SentinelStop, "teacher: the teacher has not moved for 3 looks although its momentum is 0.99"),
        (
            {"teacher_moved": 0, "teacher_distance": 0}, SentinelStop,
            "teacher: the teacher is equal to the student although its momentum is 0.99",
        ),
    ],
)  # fmt: skip
def test_slow_trouble_is_seen_at_the_third_look(tmp_path, numbers, outcome, sentence):
    watch = sentinel(tmp_path, steps=500)
    feed(watch, range(1, 200))
    feed(watch, range(200, 221), **numbers)  # looks at 201, 211
    feed(watch, range(221, 222))  # well again: counted anew
    feed(watch, range(222, 251), **numbers)  # looks at 231, 241
    with pytest.raises(outcome) as found:
        feed(watch, range(251, 252), **numbers)
    told = found.value.evidence if outcome is RollBack else str(found.value)
    assert sentence in told
    if outcome is RollBack:
        assert (found.value.good, found.value.cause) == (221, "collapse")


@pytest.mark.parametrize(
    "numbers",
    [
        {"teacher_moved": 0, "momentum": 0.99995},  # the end of a plan: the average hardly moves, and need not
        {"target_information": 0.36},
        {"koleo": 13.0},
        {"teacher_entropy": 0.99},
    ],
)
def test_what_is_no_trouble(tmp_path, numbers):
    watch = sentinel(tmp_path)
    feed(watch, range(1, 200))
    feed(watch, range(200, 400), **numbers)
    assert lines(tmp_path) == []


def test_fresh_features_may_be_all_alike(tmp_path):
    """For a tenth of the plan: a ViT whose LayerScale begins at 1e-5 starts so."""
    watch = sentinel(tmp_path)
    alike = {"koleo": 30.0, "teacher_entropy": 1.0, "target_information": 0.0}
    feed(watch, range(1, 100), **alike)
    with pytest.raises(RollBack, match="all features are alike"):
        feed(watch, range(100, 140), **alike)


def test_fresh_targets_may_say_nothing_while_the_plan_warms_up(tmp_path):
    """Nothing falls that was never there: with many prototypes the first numbers are rounding, of either sign."""
    watch = sentinel(tmp_path)
    for step in range(1, 300):
        feed(watch, [step], teacher_entropy=1.0, target_information=1e-5 if step < 50 else -1e-6)
    assert lines(tmp_path) == []
    with pytest.raises(SentinelStop, match="the teacher's targets are the same for all images"):
        feed(watch, range(300, 340), teacher_entropy=1.0, target_information=0.0)


def test_warmer_targets_tell_less(tmp_path):
    """From 0.04 to 0.07 the information of nearly uniform targets falls to 0.33; that is no collapse."""
    watch = sentinel(tmp_path)
    for step in range(1, 400):
        temperature = 0.04 + 0.03 * min(step / 300, 1)
        feed(watch, [step], temperature=temperature, target_information=0.5 * (0.04 / temperature) ** 2)
    assert lines(tmp_path) == []


def test_a_rank_that_falls_at_a_probe(tmp_path):
    watch = sentinel(tmp_path)
    watch.scores(made(40), 12.1, 40.0)
    with pytest.raises(RollBack, match=r"the effective rank of the features fell from 40\.0 to 11\.9"):
        watch.scores(made(50), 11.9, 40.0)
    assert [done.step for done in watch.told] == [50]


def test_nothing_is_kept_of_a_step_not_looked_at(tmp_path):
    """Where steps gather, they are looked at before the probe and the checkpoint see them."""
    watch = sentinel(tmp_path, rows_at_once=50, due=lambda step: step == 4, skips=0)
    with pytest.raises(RollBack) as back:
        for step in range(1, 9):
            feed(watch, [step], total=math.nan if step == 3 else 1.0)
    assert (back.value.step, back.value.good) == (3, 2)
    assert [done.step for done in watch.told] == [4]


def test_it_goes_on_as_if_never_interrupted(tmp_path):
    """With what an earlier start knew: the law, the best, signs half counted, steps left out."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()

    def first(watch):
        feed(watch, range(1, 100))
        feed(watch, range(100, 112), target_information=0.1)
        feed(watch, [112, 113], total=math.nan)

    whole = sentinel(tmp_path / "whole", skips=2)
    first(whole)
    before = sentinel(tmp_path / "parts", skips=2)
    first(before)
    after = sentinel(tmp_path / "parts", skips=2, memory=before.memory())
    assert after.memory() == whole.memory()
    assert after.guard == whole.guard
    for watch in (whole, after):
        with pytest.raises(RollBack, match="3 of the last 3 steps"):
            feed(watch, [114], norm=70)


def test_a_hungry_loop_is_told_of_once(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    watch = sentinel(tmp_path)
    for step in range(1, 401):
        clock[0] += 1.0
        feed(watch, [step], waited=0.55 if step <= 100 else 0.7)
    assert [line[:72] for line in lines(tmp_path)] == [
        "Step 200: 70% of the last 100 steps' time was spent waiting for images. "
    ]


def test_a_full_disk_is_borne_for_a_while(tmp_path):
    watch = sentinel(tmp_path, failed_writes=2)
    watch.write_failed(10, 12, "Cannot write c: no space left. Free some and run again.", 1)
    watch.write_failed(12, 14, "Cannot write c: no space left. Free some and run again.", 2)
    assert lines(tmp_path)[0] == (
        "Step 10: no checkpoint (Cannot write c: no space left. Free some and run again.) The run goes on and tries again "
        "after step 12; until then a crash would lose what was learnt since the last one."
    )
    with pytest.raises(
        SentinelStop, match=r"Stopped at step 14, disk: checkpoints could not be written 3 times in a row"
    ):
        watch.write_failed(14, 16, "Cannot write c: no space left.", 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"skips": 9, "within": 8}, "sentinel.skips=9 of sentinel.within=8 steps would never be too many; 8 at most"),
        ({"rollbacks": 0, "rate_factor": 0.1}, "sentinel.rate_factor=0.1 has no effect with sentinel.rollbacks=0"),
        ({"rate_factor": 1.0}, "rate_factor must be below 1; got 1.0"),
        ({"rollbacks": -1}, "rollbacks must be at least 0; got -1"),
    ],
)
def test_budgets_that_contradict(given, message):
    with pytest.raises(ConfigError) as error:
        SentinelConfig.build(given)
    assert message in str(error.value)


def test_the_diary_knows_which_checkpoints_are_the_runs_past(tmp_path):
    diary = Diary(tmp_path / "events.jsonl")
    assert diary.owns(500, 0)
    diary.note(Act(300, "roll back", "collapse", "a", 200))
    assert [diary.owns(step, 0) for step in (100, 200, 250)] == [True, True, False]
    assert diary.owns(250, 1)  # written after it had gone back
    diary.note(Act(320, "roll back", "collapse", "b", 100))
    assert [diary.owns(100, 0), diary.owns(200, 0), diary.owns(250, 1), diary.owns(250, 2)] == [
        True,
        False,
        False,
        True,
    ]


def test_what_will_be_met_again_is_forgotten(tmp_path):
    diary = Diary(tmp_path / "events.jsonl")
    for step, kind in ((5, "skip"), (12, "skip"), (13, "warn"), (14, "roll back"), (15, "stop")):
        diary.note(Act(step, kind, "x", f"{kind} {step}", 10 if kind == "roll back" else None))
    diary.resume(10)
    assert diary.sentences() == lines(tmp_path) == ["skip 5", "roll back 14", "stop 15"]


def test_what_a_full_disk_refuses_is_written_later(tmp_path, monkeypatch):
    diary, whole = Diary(tmp_path / "events.jsonl"), files.append_line

    def full(path, row):
        raise RunError("no space left")

    monkeypatch.setattr(files, "append_line", full)
    diary.note(Act(1, "warn", "disk", "a"))
    assert lines(tmp_path) == []
    monkeypatch.setattr(files, "append_line", whole)
    diary.note(Act(2, "warn", "disk", "b"))
    assert lines(tmp_path) == ["a", "b"]


def test_what_a_full_disk_refuses_is_written_once(tmp_path, monkeypatch):
    """Two times back would be counted where there was one."""
    diary, whole = Diary(tmp_path / "events.jsonl"), files.append_line
    diary.note(Act(3, "skip", "x", "skip 3"))

    def full(path, row):
        raise RunError("no space left")

    monkeypatch.setattr(files, "append_line", full)
    diary.note(Act(20, "skip", "x", "skip 20"))
    diary.note(Act(20, "roll back", "x", "back", 10))
    monkeypatch.setattr(files, "append_line", whole)
    diary.resume(10)
    diary.note(Act(12, "warn", "x", "warn 12"))
    assert lines(tmp_path) == diary.sentences() == ["skip 3", "back", "warn 12"]
