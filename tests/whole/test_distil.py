"""Distilling from a run: killed and resumed it is the same; what cannot teach is one line."""

import statistics
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dinoforge
from dinoforge.base.errors import ConfigError
from dinoforge.base.files import read_lines
from dinoforge.train.checkpoint import Checkpoints

TINY = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 4, "plan.images": 16, "plan.checkpoint_images": 4, "plan.checkpoints": 8, "plan.probe_images": 16,
    "plan.learning_rate.warmup": 0, "probe.rank_rows": 8, "data.augment.local_views": 1, "precision": "fp32",
    "data": "toy://species?images=12&size=32", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("distil") / "teacher"
    dinoforge.pretrain(out=out, **TINY)
    return out


def train(out, teacher, **settings):
    return dinoforge.distil(out=out, teacher=str(teacher), **TINY | {"backbone.width": 16} | settings)


def test_killed_and_resumed_it_is_the_same(teacher, tmp_path, monkeypatch):
    whole, out, save = tmp_path / "whole", tmp_path / "killed", Checkpoints.save
    train(whole, teacher)

    def once(self, module, optimizer, facts):
        path = save(self, module, optimizer, facts)
        if facts["step"] == 2:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", once)
        train(out, teacher)
    assert train(out, teacher).resumed_from == 2
    mine, want = ([row["losses"] for row in read_lines(run / "metrics.jsonl")] for run in (out, whole))
    assert mine == want
    (file,) = (whole / "checkpoints" / "step_000000004").glob("*.safetensors")
    state, kept = load_file(file), load_file(whole / "backbone" / "backbone.safetensors")
    assert not any(name.startswith("teacher.") for name in state)
    assert all(torch.equal(value, state[f"spare.backbone.{name}"]) for name, value in kept.items())


def test_a_backbone_from_elsewhere_gets_heads_and_teaches(teacher, tmp_path):
    """Of the official layout, without heads: it stays as it is to the last bit, and its run can be learnt from."""
    torch.save(dinoforge.load(teacher / "backbone").state_dict(), tmp_path / "foreign.pth")
    words = {name: value for name, value in TINY.items() if not name.startswith("backbone.")}
    fitted, out = tmp_path / "fitted", tmp_path / "out"
    sides = {
        "data.augment.global_pixels": 56,
        "data.augment.local_pixels": 56,
    }  # of whole patches of 8 and of the recipe's 14
    how = {"recipe": "vit_small.heads", "plan.last_layer_frozen": 0, **sides}
    dinoforge.pretrain(out=fitted, init=str(tmp_path / "foreign.pth"), **words | how)
    before = load_file(teacher / "backbone" / "backbone.safetensors")
    (file,) = (fitted / "checkpoints" / "step_000000004").glob("*.safetensors")
    now = load_file(file)
    for role in ("student", "teacher"):
        assert [name for name, value in before.items() if not torch.equal(value, now[f"{role}.backbone.{name}"])] == [
            "mask_token"
        ]
    (first,) = (fitted / "checkpoints" / "step_000000001").glob("*.safetensors")
    heads = [name for name in now if name.startswith("student.dino_head")]
    assert heads
    assert not any(torch.equal(load_file(first)[name], now[name]) for name in heads)
    assert train(out, fitted).steps == 4
    with pytest.raises(ConfigError, match=r"has no heads; .* pretrain init=\S+foreign\.pth recipe=vit_small\.heads"):
        train(tmp_path / "other", tmp_path / "foreign.pth")


STUDENTS = {"small": {"backbone.width": 16}, "deep": {"backbone.depth": 2, "plan.learning_rate.peak": 0.01}}


def test_students_at_once_are_each_as_alone(teacher, tmp_path, monkeypatch, capsys):
    """One is killed with all when it is a step ahead of the other: the same command goes on with both, to the same end."""
    out, save = tmp_path / "both", Checkpoints.save

    def once(self, module, optimizer, facts):
        path = save(self, module, optimizer, facts)
        if facts["step"] == 3 and "small" in str(self.folder):
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", once)
        dinoforge.distil(out=out, teacher=str(teacher), students=STUDENTS, **TINY)
    done = dinoforge.distil(out=out, teacher=str(teacher), students=yaml.safe_dump(STUDENTS), **TINY)
    assert {name: (one.resumed_from, one.steps) for name, one in done.items()} == {"small": (3, 4), "deep": (2, 4)}
    said = capsys.readouterr().err
    assert all(f"{name}: Going on from {out / name}" in said for name in STUDENTS)
    for name, own in STUDENTS.items():
        train(tmp_path / name, teacher, **{"backbone.width": 32} | own)
        mine, want = (
            [row["losses"] for row in read_lines(run / "metrics.jsonl")] for run in (out / name, tmp_path / name)
        )
        assert mine == want
        assert len(mine) == 5
        ours, theirs = (load_file(run / "backbone" / "backbone.safetensors") for run in (out / name, tmp_path / name))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        # It is the run that it would have been: the words of one alone go on in its folder.
        assert train(out / name, teacher, **{"backbone.width": 32} | own).resumed_from == 4


@pytest.mark.parametrize(
    ("students", "settings", "message"),
    [
        ({"a": {}, "b": {"seed": 1}}, {}, "students a and b differ in seed, which those of one teacher share"),
        ({"a": {}, "b": {"objective.group": 2}}, {}, "students a and b differ in objective.group"),
        ({"a": {}}, {}, "students= takes two or more; got a"),
        ({"a": {}, "../b": {}}, {}, "students= names folders inside out=; '../b' is none"),
        ({"a": {}, "b": {"teacher": "x"}}, {}, "students=b sets out, teacher or config"),
        ("small, tiny", {}, "students= takes settings by name"),
        ({"a": {}, "b": {}}, {"objective.targets.kind": "centring"}, "kind=centring follows one student's steps"),
    ],
)
def test_students_that_cannot_share_are_one_line(teacher, tmp_path, students, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        dinoforge.distil(out=tmp_path / "out", teacher=str(teacher), students=students, **TINY | settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective.head.prototypes": 48}, "has 32 prototypes, the student 48; set objective.head.prototypes=32"),
        ({"backbone.patch": 4}, "has patch=8, the student backbone.patch=4"),
        ({"backbone.patch": 4, "objective.head.prototypes": 48}, r"has patch=8, .* Besides, it has 32 prototypes, the student 48"),
        ({"backbone.drop_path": 0.1}, "backbone.drop_path=0.1: a student that is distilled drops nothing"),
        ({"teacher": "nowhere"}, "teacher=nowhere does not exist; give the folder of the run that trained it"),
        ({"teacher": "backbone"}, "has no heads; give the folder of the run that trained it"),
        ({"teacher": "null"}, "teacher= is required"),
        ({"objective.gram": "{from_share: 0.1}"}, "copies a teacher that learns"),
    ],
)  # fmt: skip
def test_what_cannot_teach_is_one_line(teacher, tmp_path, settings, message):
    given = dict(settings)
    of = given.pop("teacher", teacher)
    with pytest.raises(ConfigError, match=message) as caught:
        train(tmp_path / "out", teacher / "backbone" if of == "backbone" else of, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is the folder of this very run"):
        train(teacher, teacher)


SEEDS = (0, 1, 2)
CIFAR = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10"
"""Fixed before the first run: the recipes as they are; a teacher of the recipe's size and length, students of half its width that
see a tenth (CIFAR-10) or half (toy world) as many images, distilled and from scratch by the same words."""
HALF = {"backbone.width": 64, "backbone.heads": 2, "workers": 1, "precision": "fp32"}


@pytest.mark.long
@pytest.mark.parametrize("world", ["toy", "cifar"])
def test_a_distilled_student_beats_the_same_from_scratch(lasting, unchecked, world):
    """k-NN of the last step after as many images, three seeds: the mean difference is above its standard deviation."""
    if world == "cifar" and not CIFAR.exists():
        pytest.skip(f"{CIFAR} is not here")
    of = "toy://species?images=4000&size=48" if world == "toy" else str(CIFAR)
    recipe, images = ("vit_micro.toy", 16_000) if world == "toy" else ("vit_tiny.small_images", 32_000)
    teacher, words = lasting / "teacher", {"data": of, "probe": of, "recipe": recipe}
    if world == "toy":
        words["backbone.position_std"] = 0.02  # as narrow as the paper's: so the table of docs/records.md was measured
    dinoforge.pretrain(out=teacher, **words, workers=1, precision="fp32")
    words |= HALF | {"plan.images": images, "plan.probe_images": images}
    rows = []
    for seed in SEEDS:
        scratch = dinoforge.pretrain(out=lasting / f"scratch{seed}", seed=seed, **words)
        student = dinoforge.distil(out=lasting / f"student{seed}", teacher=str(teacher), seed=seed, **words)
        rows.append([100 * run.knn["last"] for run in (student, scratch)])
        print(f"seed {seed}: distilled {rows[-1][0]:.2f} %, from scratch {rows[-1][1]:.2f} %")
    for name, values in zip(("distilled", "from scratch"), zip(*rows, strict=True), strict=True):
        print(f"{name}: {statistics.mean(values):.2f} +- {statistics.stdev(values):.2f} %")
    ahead = [student - scratch for student, scratch in rows]
    assert statistics.mean(ahead) > statistics.stdev(ahead)
