"""Official configurations, written down from the published table, become the recipes that were written by hand."""

import json

import pytest
import yaml

from dinoforge.base.config import paths, science
from dinoforge.base.errors import ConfigError
from dinoforge.cli import execute
from dinoforge.recipes.official import DEFAULTS, translated
from dinoforge.recipes.settle import settle
from dinoforge.recipes.table import recipe

SHORT = """
train: {batch_size_per_gpu: 64}
student: {block_chunks: 4}
"""
LONG = """
dino: {head_n_prototypes: 131072, head_bottleneck_dim: 384}
ibot: {separate_head: true, head_n_prototypes: 131072}
train: {batch_size_per_gpu: 32, dataset_path: "ImageNet22k", centering: sinkhorn_knopp}
student: {arch: vit_large, patch_size: 14, drop_path_rate: 0.4, ffn_layer: swiglufused, block_chunks: 4}
teacher: {momentum_teacher: 0.994}
optim: {epochs: 500, weight_decay_end: 0.2, base_lr: 2.0e-04, warmup_epochs: 80, layerwise_decay: 1.0}
crops: {local_crops_size: 98}
"""
GIANT = LONG.replace("vit_large", "vit_giant2").replace("per_gpu: 32", "per_gpu: 12")


@pytest.mark.parametrize(
    ("text", "batch", "name"),
    [(SHORT, 2048, "vit_large.imagenet"), (LONG, 3072, "vit_large.imagenet22k"), (GIANT, 3072, "vit_giant.lvd142m")],
)
def test_the_published_runs(text, batch, name, tmp_path, capsys):
    path = tmp_path / "official.yaml"
    path.write_text(text)
    settled = settle({"config": str(path), "plan.batch": str(batch)})
    assert science(settled.recipe) == science(recipe(name))
    shown = capsys.readouterr().err
    assert f"-> plan.batch {batch}" in shown
    assert "Without meaning here: MODEL.WEIGHTS, compute_precision" in shown


def test_values_worked_out_by_hand():
    """vitl14: 80 of 500 epochs of 1,250 iterations of 96 GPUs times 32 images."""
    found = translated(yaml.safe_load(LONG), batch=96 * 32)
    values = dict(paths(found.recipe))
    assert values["plan.images"] == 1_920_000_000
    assert values["plan.learning_rate.warmup"] == 0.16
    assert values["plan.last_layer_frozen"] == 0.002
    assert values["plan.teacher_temperature.length"] == 0.06
    assert values["plan.probe_images"] == 38_400_000
    assert found.recipe.plan.peak_rate == pytest.approx(3.46e-4, rel=2e-3)
    assert values["backbone.ffn"] == "swiglu"
    assert "optim.base_lr 0.0002 -> plan.learning_rate.peak 0.0002" in found.lines
    assert "optim.warmup_epochs 80 -> plan.learning_rate.warmup 0.16  (share of 500 epochs)" in found.lines
    assert "train.batch_size_per_gpu 32 -> plan.batch 3072  (96 GPUs)" in found.lines


def test_one_gpu_is_assumed_and_said():
    found = translated({"train": {"batch_size_per_gpu": 32}})
    assert (found.recipe.plan.batch, found.recipe.objective.group) == (32, 32)
    assert found.recipe.plan.images == 125_000 * 32
    assert any("one GPU assumed; plan.batch= says otherwise" in line for line in found.lines)


def test_every_key_is_translated_or_named_once():
    lines = translated({}).lines
    assert lines[-2] == "Not a key but how its code masks -> data.masks.exact false."
    keys = [f"{group}.{name}" for group, names in DEFAULTS.items() for name in names]
    told = [line.partition(" ")[0] for line in lines[:-2]]
    unmeant = lines[-1].removeprefix("Without meaning here: ").rstrip(".").split(", ")
    assert set(told) | set(unmeant) == set(keys)
    assert set(told).isdisjoint(unmeant)
    assert {"train.saveckp_freq", "student.block_chunks", "ibot.head_nlayers"} <= set(unmeant)


def test_sibling_settings_are_not_mixed_up():
    """Every number of the file is unlike all others, and each arrives where it belongs."""
    found = translated(
        {
            "dino": {"head_n_prototypes": 101, "head_bottleneck_dim": 12, "head_nlayers": 2, "head_hidden_dim": 13},
            "ibot": {"separate_head": True, "head_n_prototypes": 103, "head_bottleneck_dim": 14, "head_nlayers": 4,
                     "head_hidden_dim": 15, "loss_weight": 0.7, "mask_ratio_min_max": [0.2, 0.3]},
            "optim": {"adamw_beta1": 0.8, "adamw_beta2": 0.95, "clip_grad": "2e0"},
            "crops": {"global_crops_size": 160, "local_crops_size": 80},
        }
    ).recipe  # fmt: skip
    head, patch = found.objective.head, found.objective.patch_head
    assert (head.prototypes, head.bottleneck, head.layers, head.hidden) == (101, 12, 2, 13)
    assert (patch.prototypes, patch.bottleneck, patch.layers, patch.hidden) == (103, 14, 4, 15)
    assert (found.objective.dino_weight, found.objective.ibot_weight) == (1.0, 0.7)
    assert found.plan.betas == (0.8, 0.95)
    assert found.plan.clip == 2.0
    assert (found.data.augment.global_pixels, found.data.augment.local_pixels, found.backbone.pixels) == (160, 80, 160)
    assert found.data.masks.ratio == (0.2, 0.3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optim": {"base_lrr": 1}},
            "Unknown key 'optim.base_lrr' in an official configuration. Did you mean 'optim.base_lr'?",
        ),
        ({"optim": {}, "croops": {}}, "Unknown key 'croops' in an official configuration. Did you mean 'crops'?"),
        ({"optim": {"epochs": "many"}}, "optim.epochs takes a number; got 'many'."),
        ({"optim": 5}, "optim is a group of keys"),
        ({"student": {"arch": "vit_larg"}}, "student.arch must be one of .* Did you mean 'vit_large'"),
        ({"optim": {"scaling_rule": "linear"}}, "optim.scaling_rule must be one of sqrt_wrt_1024; got 'linear'"),
        ({"optim": {"epochs": 0}}, "must be above 0; got 0 and 64"),
        ({"ibot": {"separate_head": "yes"}}, "ibot.separate_head takes true or false; got 'yes'"),
    ],
)
def test_what_a_user_can_get_wrong(values, message):
    with pytest.raises(ConfigError, match=message):
        translated(values)


@pytest.mark.parametrize("verb", ["plan", "pretrain"])
def test_print_config_names_the_file(verb, tmp_path, capsys):
    (tmp_path / "o.yaml").write_text(SHORT)
    words = [
        verb,
        f"config={tmp_path / 'o.yaml'}",
        "data=x",
        "out=r",
        "plan.batch=128",
        "data.augment.global_pixels=160",
    ]
    assert execute([*words, "--print-config"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert "backbone.width = 1024  # file" in lines
    assert "plan.batch = 128  # command line" in lines
    assert "backbone.pixels = 160  # derived from data.augment.global_pixels" in lines
    assert "train.batch_size_per_gpu 64 -> plan.batch 128  (2 GPUs)" in shown.err
    assert execute([verb, f"config={tmp_path / 'o.yaml'}", "data=x", "out=r", "plan.batch=no", "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"].startswith("plan.batch takes a whole number")


def test_a_warm_up_that_is_longer_than_the_plan_is_cut_off():
    """As the official code does: the temperature of every step is the one of the longer ramp. 20 of 30 epochs of 10 steps."""
    found = translated(
        {
            "optim": {"epochs": 20, "warmup_epochs": 2, "freeze_last_layer_epochs": 25},
            "train": {"OFFICIAL_EPOCH_LENGTH": 10},
        }
    ).recipe.plan
    steps = 200
    for step in (0, 1, 100, 199):
        want = 0.04 + (0.07 - 0.04) * step / (300 - 1)
        assert found.at(step, steps=steps).teacher_temperature == pytest.approx(want, rel=1e-9)
        assert found.at(step, steps=steps).last_layer_rate == 0
