"""Gram anchoring in whole runs: taken and renewed at its steps, also by a run that was killed; a backbone from elsewhere."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from killed import killed_after
from safetensors.torch import load_file

import dinoforge
from dinoforge.base.errors import ConfigError, RunError, WeightsError
from dinoforge.base.files import read_lines
from dinoforge.model.weights import load_backbone, save_backbone

TINY = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 4, "plan.images": 32, "plan.checkpoint_images": 4, "plan.checkpoints": 8, "plan.probe_images": 32,
    "plan.learning_rate.warmup": 0, "probe.rank_rows": 8, "data.augment.local_views": 1, "precision": "fp32",
    "data": "toy://species?images=12&size=32", "workers": 0,
}  # fmt: skip
SNAPSHOT = "{from_share: 0.25, start: 0.5, every_share: 0.25, refreshes: 1, pixels_factor: 2}"


def train(out, gram, **settings):
    return dinoforge.pretrain(out=out, **TINY | {"objective.gram": gram} | settings)


def checkpoint(out, step):
    (file,) = (out / "checkpoints" / f"step_{step:09d}").glob("*.safetensors")
    return load_file(file)


def losses(out):
    return [row["losses"] for row in read_lines(out / "metrics.jsonl")]


def same(one, other):
    assert losses(one) == losses(other)
    mine, want = checkpoint(one, 8), checkpoint(other, 8)
    assert mine.keys() == want.keys()
    assert all(torch.equal(mine[name], want[name]) for name in want)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Eight steps, a checkpoint after each."""
    out = tmp_path_factory.mktemp("gram") / "whole"
    train(out, SNAPSHOT)
    return out


def test_it_is_the_teacher_of_the_right_steps(undisturbed):
    states = {step: checkpoint(undisturbed, step) for step in range(1, 9)}

    def of(step, role):
        return {name.removeprefix(role): x for name, x in states[step].items() if name.startswith(f"{role}backbone.")}

    for step, taken in {3: 2, 4: 2, 5: 2, 6: 2, 7: 6, 8: 6}.items():
        mine, teacher = of(step, "gram."), of(taken, "teacher.")
        assert mine.keys() == teacher.keys()
        assert mine
        assert all(torch.equal(mine[name], teacher[name]) for name in mine)
    weight = "backbone.blocks.0.mlp.fc1.weight"
    assert not torch.equal(of(2, "teacher.")[weight], of(6, "teacher.")[weight])
    assert [row["gram"] > 0 for row in losses(undisturbed)[1:]] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("step", [2, 3, 6])  # before the copy, after it, before the renewal
def test_a_run_that_was_killed_goes_on_the_same(undisturbed, tmp_path, monkeypatch, step):
    out = tmp_path / "killed"
    killed_after(step, monkeypatch, lambda: train(out, SNAPSHOT))
    assert train(out, SNAPSHOT).resumed_from == step
    same(out, undisturbed)


def test_a_backbone_from_elsewhere(undisturbed, tmp_path, monkeypatch):
    """An earlier run with another width holds the patches; what counts is its weights, not where they lie."""
    whole, out, away = (tmp_path / name for name in ("whole", "killed", "away"))
    narrow = tmp_path / "narrow"
    train(narrow, "null", **{"backbone.width": 16, "plan.images": 8})
    train(whole, f"{{backbone: {narrow}}}")
    assert all(row["gram"] > 0 for row in losses(whole)[1:])
    assert not any(name.startswith("gram") for name in checkpoint(whole, 8))
    killed_after(4, monkeypatch, lambda: train(out, f"{{backbone: {narrow}}}"))
    shutil.copytree(narrow / "backbone", away)
    assert train(out, f"{{backbone: {away}}}").resumed_from == 4
    same(out, whole)
    told = json.loads((out / "run.json").read_text())
    assert told["gram"] == json.loads((away / "backbone.json").read_text())["fingerprint"]
    assert "backbone" not in told["settings"]["objective"]["gram"]
    with pytest.raises(
        RunError, match=f"holds another run. It differs in: gram {told['gram']} ->".replace("gram ", "gram +")
    ):
        train(out, f"{{backbone: {undisturbed}}}")


def test_a_gram_teacher_of_other_colours_is_one_line(undisturbed, tmp_path):
    """It would be shown pictures as it never saw them."""
    ours = load_backbone(undisturbed)
    how = ours.preprocessing.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    save_backbone(tmp_path / "other", replace(ours, preprocessing=how))
    message = r"objective\.gram\.backbone=.* sees pictures with data\.augment\.colour\.mean=\[0\.5"
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "out", f"{{backbone: {tmp_path / 'other'}, start: 0.5}}")


def test_what_cannot_hold_patches_is_one_line(undisturbed, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"^objective.gram has no teacher: give objective.gram.backbone, or"):
        train(out, "{weight: 1}")
    with pytest.raises(WeightsError, match="backbone nowhere does not exist"):
        train(out, "{backbone: nowhere}")
    with pytest.raises(ConfigError, match="has patch=8, which must be that of the backbone, 4"):
        train(out, f"{{backbone: {undisturbed}}}", **{"backbone.patch": 4})
    with pytest.raises(ConfigError, match="has patch=8, which must be that of the backbone, 4"):
        dinoforge.plan(**TINY | {"objective.gram": f"{{backbone: {undisturbed}}}", "backbone.patch": 4})
    assert not out.exists()
