"""A run with a high-resolution phase: what passes from one stage to the next, and that nothing that happens there is lost."""

import json
import os
import pkgutil
import re
import signal
import time

import pytest
import torch
from killed import killed_after
from safetensors.torch import load_file

import dinoforge
from dinoforge.base.errors import Interrupted, RunError
from dinoforge.base.files import read_lines
from dinoforge.model.weights import load_backbone
from dinoforge.train import loop
from dinoforge.train.checkpoint import Checkpoints
from ranks import Ranks

TINY = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2, "backbone.drop_path": 0.2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 8, "plan.images": 40, "plan.checkpoint_images": 8, "plan.checkpoints": 9, "plan.probe_images": 24,
    "plan.learning_rate.warmup": 0.4, "data.augment.local_views": 1, "precision": "fp32",
    "data": "toy://species?images=60&size=48", "probe": "toy://species?images=40&size=48", "workers": 0,
    "high_resolution.images": 20, "high_resolution.global_pixels": 64, "high_resolution.batch": 4,
    "objective.gram.from_share": 0.2,
}  # fmt: skip
"""Five steps of 8 images at 48 pixels, then five of 4 at 64."""
LAST = 10


def train(out, **settings):
    return dinoforge.pretrain(out=out, **TINY | settings)


def checkpoint(out, step):
    (file,) = (out / "checkpoints" / f"step_{step:09d}").glob("*.safetensors")
    return load_file(file)


def rows(out):
    return read_lines(out / "metrics.jsonl")


def same(one, other, *, exact=True):
    """Every step once, with the losses of the other run, and in the end its weights."""
    mine, theirs = rows(one), rows(other)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs] == list(range(LAST + 1))
    for row, want in zip(mine, theirs, strict=True):
        assert row.keys() == want.keys()
        assert row["images"] == want["images"]
        for name, value in want["losses"].items():
            assert row["losses"][name] == (value if exact else pytest.approx(value, rel=1e-5, abs=1e-5)), row["step"]
        assert row.get("knn") == want.get("knn")
    weights, wanted = (load_file(run / "backbone" / "backbone.safetensors") for run in (one, other))
    assert weights.keys() == wanted.keys()
    for name in weights.keys() - {"blocks.0.attn.qkv.bias"}:  # a key's bias has no gradient but rounding
        torch.testing.assert_close(weights[name], wanted[name], rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that nobody disturbed, with what it said and the numbers of the groups that each step saw."""
    out, seen = tmp_path_factory.mktemp("stages") / "whole", []
    descend = loop.descend

    def noted(step, share, *words, **options):
        seen.append([number for part in share for number in part.groups])
        return descend(step, share, *words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "descend", noted)
        done = train(out)
    return out, done, seen[-LAST:]  # the plan is forecast by steps of noise


def test_steps_images_and_groups_are_counted_over_the_whole_run(undisturbed):
    out, done, seen = undisturbed
    assert (done.steps, done.images) == (10, 60)
    assert [(row["step"], row["images"]) for row in rows(out)] == [
        *((step, 8 * step) for step in range(6)),
        *((5 + step, 40 + 4 * step) for step in range(1, 6)),
    ]
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10], [11], [12], [13], [14]]
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        f"step_{step:09d}" for step in (1, 2, 3, 4, 5, 7, 9, 10)
    ]
    assert [row["step"] for row in rows(out) if "knn" in row] == [0, 3, 5, 10]


def test_a_phase_goes_on_from_a_run_that_began_from_a_backbone(tmp_path, undisturbed):
    """Its position table is of the first stage's size."""
    low = {key: value for key, value in TINY.items() if not key.startswith(("high_resolution.", "objective.gram."))}
    assert dinoforge.pretrain(out=tmp_path / "start", **low).steps == 5
    words = {
        key: value for key, value in TINY.items() if not key.startswith("backbone.") or key == "backbone.drop_path"
    }
    done = dinoforge.pretrain(out=tmp_path / "on", **words | {"init": str(tmp_path / "start")})
    assert (done.steps, load_backbone(tmp_path / "on").config.pixels) == (LAST, 64)


def test_schedules_are_those_of_each_stage(undisturbed):
    """Warm-up 0.4 of five steps is two, of which the first is 0 and the second the peak."""
    out, _, _ = undisturbed
    rates = [row["learning_rate"] for row in rows(out)[1:]]
    peaks = [6e-3 * (8 / 1024) ** 0.5, 6e-3 / 4 * (4 / 1024) ** 0.5]
    assert (rates[0], rates[5]) == (0, 0)
    assert [rates[1], rates[6]] == pytest.approx(peaks)
    assert max(rates[6:]) == rates[6]
    momenta = [row["teacher_momentum"] for row in rows(out)[1:]]
    assert momenta[:5] == momenta[5:]
    assert momenta[0] < momenta[4]
    assert [row["losses"]["gram"] > 0 for row in rows(out)[1:]] == [False, *[True] * 9]


def test_the_backbone_of_the_phase_is_kept_and_says_its_size(undisturbed):
    out, done, _ = undisturbed
    kept = load_backbone(out)
    assert (kept.config.pixels, kept.preprocessing.side, kept.preprocessing.short_side) == (64, 64, 64)
    assert kept.lineage["step"] == LAST
    assert kept.module.pos_embed.shape == (1, 1 + 8 * 8, 32)
    weights = checkpoint(out, LAST)
    assert torch.equal(kept.module.pos_embed, weights["teacher.backbone.pos_embed"])
    history = json.loads((out / "summary.json").read_text())["history"]
    protocols = [row["protocol"] for row in history]
    assert protocols[:3] == [protocols[0]] * 3
    assert protocols[3] != protocols[0]
    assert done.knn == {"first": history[3]["knn"], "last": history[3]["knn"], "best": history[3]["knn"]}
    assert done.stability is None  # of neighbours at another size


def test_weights_pass_on_and_moments_do_not(undisturbed):
    """The learning rate of the phase's first step is 0, so after it the student still has what passed on."""
    out, tmp = undisturbed[0], undisturbed[0].parent / "one"
    with pytest.MonkeyPatch.context() as patch:
        killed_after(6, patch, lambda: train(tmp, **{"plan.checkpoint_images": 4}))
    before, after = checkpoint(out, 5), checkpoint(tmp, 6)
    assert {name for name in before if not name.startswith("optimizer:")} == {
        name for name in after if not name.startswith("optimizer:")
    }
    tables = {f"{role}.backbone.pos_embed" for role in ("student", "teacher", "gram")}
    for name in before.keys() - tables:
        if name.startswith(("student.", "gram.")):
            assert torch.equal(before[name], after[name]), name
    for name in tables:
        assert (before[name].shape[1], after[name].shape[1]) == (1 + 36, 1 + 64)
    steps = {float(value) for name, value in after.items() if name.startswith("optimizer:") and name.endswith("/step")}
    assert steps == {1.0}


@pytest.mark.parametrize(
    "step",
    [pytest.param(4, marks=pytest.mark.long), 5, pytest.param(9, marks=pytest.mark.long)],
)  # before the boundary, at it, in the middle of the phase
def test_a_run_that_was_killed_goes_on_the_same(undisturbed, tmp_path, monkeypatch, step):
    out = tmp_path / "killed"
    killed_after(step, monkeypatch, lambda: train(out))
    assert train(out).resumed_from == step
    same(out, undisturbed[0])


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "after", "resumed"),
    [
        ("dinoforge.train.checkpoint.Checkpoints.begin_from", 5, 5),  # the networks of the phase are being made
        ("dinoforge.train.loop.follow", 6, 5),  # its second step
        ("dinoforge.train.observe.Probe.look", 10, 9),  # its probe, after steps that no checkpoint holds
        ("dinoforge.runs.Run._summary", 10, 10),
    ],
)
def test_a_run_that_was_killed_between_two_checkpoints_goes_on_the_same(
    undisturbed, tmp_path, monkeypatch, target, after, resumed
):
    out, whole = tmp_path / "killed", pkgutil.resolve_name(target)

    def kill(*words, **options):
        if last(out) >= min(after, 9):
            raise KeyboardInterrupt
        return whole(*words, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, kill)
        train(out)
    assert train(out).resumed_from == resumed
    same(out, undisturbed[0])


def last(out):
    path = out / "metrics.jsonl"
    steps = re.findall(r'^\{"step": (\d+),.*\}$', path.read_text(), re.M) if path.exists() else []
    return int(steps[-1]) if steps else 0


def test_asked_to_stop_at_the_boundary_it_stops_there(undisturbed, tmp_path, monkeypatch):
    out, save = tmp_path / "stopped", Checkpoints.save

    def asked(self, module, optimizer, facts):
        if facts["step"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)  # seen after the next step, which is the stage's last
        return save(self, module, optimizer, facts)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"Stopped after step 5; checkpoint .*5 is"):
        patch.setattr(Checkpoints, "save", asked)
        train(out)
    assert train(out).resumed_from == 5
    same(out, undisturbed[0])


def on_ranks(world, out, folder, **settings):
    folder.mkdir(exist_ok=True)
    ranks = Ranks(world, lambda: train(out, **settings).resumed_from, folder=folder)
    try:
        return ranks.answers()
    finally:
        ranks.kill()


@pytest.mark.long
@pytest.mark.dist
@pytest.mark.parametrize("resumed", [None, 5, 9])
def test_the_same_run_on_two_ranks(undisturbed, tmp_path, monkeypatch, resumed):
    """Whole, or after one process that was killed at the boundary or in the phase; batches of two groups in both stages."""
    eight = {"high_resolution.batch": 8, "high_resolution.images": 40}
    want, out = tmp_path / "want", tmp_path / "out"
    train(want, **eight)
    if resumed is not None:
        killed_after(resumed, monkeypatch, lambda: train(out, **eight))
    assert on_ranks(2, out, tmp_path / "printed", **eight) == [resumed or 0] * 2
    same(out, want, exact=False)


@pytest.mark.long
@pytest.mark.dist
def test_ranks_that_were_killed_are_one_process_again(undisturbed, tmp_path):
    eight = {"high_resolution.batch": 8, "high_resolution.images": 40, "speed.sharding": "all"}
    want, out = tmp_path / "want", tmp_path / "out"
    train(want, **eight)
    (tmp_path / "printed").mkdir()
    ranks = Ranks(2, lambda: train(out, **eight), folder=tmp_path / "printed")
    try:
        wait_for(lambda: last(out) >= 6)
    finally:
        ranks.kill()
        ranks.answers()  # they are gone then
    assert train(out, **eight).resumed_from >= 5
    same(out, want, exact=False)


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "never happened"
        time.sleep(0.01)


@pytest.mark.long
def test_really_killed(undisturbed, started, tmp_path):
    out = tmp_path / "killed"
    process = started("pretrain", f"out={out}", *(f"{key}={value}" for key, value in TINY.items()), "--json")
    wait_for(lambda: last(out) >= 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= train(out).resumed_from <= LAST
    same(out, undisturbed[0], exact=False)  # another process may compute attention another way


def test_other_settings_of_the_phase_are_another_run(undisturbed, tmp_path):
    out = undisturbed[0]
    with pytest.raises(RunError, match=r"settings.high_resolution.global_pixels +64 -> 72"):
        train(out, **{"high_resolution.global_pixels": 72})


def test_the_report_of_a_run_with_a_phase(undisturbed, tmp_path):
    page = dinoforge.report(run=str(undisturbed[0]), out=str(tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text() if page else ""
    assert "the high-resolution phase begins after step 5" in text
    assert "10 of 10" in text
