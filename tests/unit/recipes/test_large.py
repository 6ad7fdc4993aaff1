"""The published runs: the figures as they were published (iterations, rates after scaling, numbers of parameters), by hand."""

import pytest
import torch

from dinoforge.base.config import paths, with_settings
from dinoforge.model.heads import Head
from dinoforge.model.table import BACKBONES
from dinoforge.recipes.table import recipe

SHORT, LONG = "vit_large.imagenet", "vit_large.imagenet22k"
PUBLISHED = [SHORT, LONG, "vit_large.lvd142m", "vit_giant.lvd142m", "vit_giant.lvd142m_registers"]
TABLE_16 = PUBLISHED[2:]
"""Runs of table 16 of Oquab et al. 2023, and the one of Darcet et al. 2024."""


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", TABLE_16)
def test_table_16(name):
    """Drop rate, rate, batch, steps, LayerScale, weight decay, warm-up and moving average as printed for L from scratch and g."""
    made = recipe(name)
    plan, steps = made.plan, made.plan.steps(1)
    assert (made.backbone.drop_path, made.backbone.layerscale, made.backbone.ffn) == (0.4, 1e-5, "swiglu")
    assert (plan.batch, steps) == (3072, 625_000)
    assert f"{plan.peak_rate:.1e}" == "3.5e-04"
    assert plan.at(100_000, steps=steps).learning_rate == plan.peak_rate > plan.at(100_001, steps=steps).learning_rate
    assert plan.at(99_998, steps=steps).learning_rate < plan.peak_rate
    first, last = (plan.at(step, steps=steps) for step in (0, steps))
    assert (first.weight_decay, last.weight_decay) == pytest.approx((0.04, 0.2))
    assert (first.teacher_momentum, last.teacher_momentum) == pytest.approx((0.994, 1.0))
    assert plan.at(steps // 2, steps=steps).weight_decay == pytest.approx(0.12)  # halfway of a cosine


@pytest.mark.parametrize(
    ("name", "batch", "steps", "rate", "warmup", "frozen", "layers"),
    [(SHORT, 2048, 125_000, 5.66e-3, 12_500, 1_250, 0.9)]
    + [(name, 3072, 625_000, 3.46e-4, 100_000, 1_250, 1.0) for name in PUBLISHED[1:]],
)
def test_iterations_of_the_configurations(name, batch, steps, rate, warmup, frozen, layers):
    """Epochs of 1,250 iterations: one with frozen prototypes, 30 of rising temperature, 3 a checkpoint, 10 an evaluation."""
    plan = recipe(name).plan
    assert (plan.batch, plan.steps(1), plan.layer_decay, plan.patch_rate, plan.clip) == (batch, steps, layers, 0.2, 3.0)
    assert plan.peak_rate == pytest.approx(rate, rel=2e-3)
    assert plan.at(warmup, steps=steps).learning_rate == plan.peak_rate > plan.at(warmup - 2, steps=steps).learning_rate
    assert [plan.at(step, steps=steps).last_layer_rate > 0 for step in (frozen - 1, frozen)] == [False, True]
    warm = [plan.at(step, steps=steps).teacher_temperature for step in (0, 37_498, 37_499)]
    assert warm[0] == 0.04 < warm[1] < 0.07 == warm[2]
    assert (plan.checkpoint_images, plan.probe_images) == (3_750 * batch, 12_500 * batch)
    assert recipe(name).speed.workers == 10


@pytest.mark.parametrize(
    ("name", "pixels", "count"),
    [
        (SHORT, 224, 303_351_808),
        (LONG, 224, 303_655_168),
        ("vit_giant.lvd142m", 518, 1_136_480_768),
        ("vit_giant.lvd142m_registers", 518, 1_136_486_912),
    ],
)
def test_parameters_of_the_official_backbones(name, pixels, count):
    config = with_settings(recipe(name), {"backbone.pixels": pixels}).backbone
    with torch.device("meta"):
        assert parameters(BACKBONES[config.kind][1](config)) == count


@pytest.mark.parametrize(
    ("name", "head", "patch_head"),
    [(SHORT, 23.7e6, None), (LONG, 57.5e6, 40.5e6), ("vit_giant.lvd142m", 58.6e6, 41.6e6)],
)
def test_parameters_of_the_official_heads(name, head, patch_head):
    made = recipe(name)
    with torch.device("meta"):
        assert parameters(Head(made.backbone.width, made.objective.head)) == pytest.approx(head, abs=0.06e6)
        assert (made.objective.patch_head is None) == (patch_head is None)
        if patch_head is not None:
            assert parameters(Head(made.backbone.width, made.objective.patch_head)) == pytest.approx(
                patch_head, abs=0.06e6
            )


@pytest.mark.parametrize(
    ("name", "gpus", "targets", "local"),
    [(SHORT, 32, "centring", 96), (LONG, 96, "sinkhorn", 98), ("vit_giant.lvd142m", 256, "sinkhorn", 98)],
)
def test_a_group_is_what_one_gpu_had(name, gpus, targets, local):
    """KoLeo knows the images of a GPU; local views are whole patches of 16 or 14."""
    made = recipe(name)
    assert (made.plan.batch // made.objective.group, made.objective.targets.kind) == (gpus, targets)
    assert (made.data.augment.local_pixels, made.data.masks.exact) == (local, False)


def test_registers_change_the_backbone_alone():
    with_, without = (dict(paths(recipe(name))) for name in ("vit_giant.lvd142m_registers", "vit_giant.lvd142m"))
    changed = {key: value for key, value in with_.items() if without[key] != value}
    assert changed == {
        "recipe": "vit_giant.lvd142m_registers",
        "backbone.registers": 4,
        "backbone.position_offset": 0.0,
        "backbone.position_antialias": True,
    }
