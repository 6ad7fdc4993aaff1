"""The distilled runs and the phases as published, by hand."""

import pytest

from dinoforge.recipes.stages import stages
from dinoforge.recipes.table import recipe


@pytest.mark.parametrize(("name", "width"), [("vit_small", 384), ("vit_base", 768), ("vit_large", 1024)])
def test_table_16(name, width):
    made = recipe(f"{name}.distilled")
    plan, steps, backbone = made.plan, made.plan.steps(1), made.backbone
    assert (backbone.width, backbone.ffn, backbone.drop_path, backbone.layerscale) == (width, "mlp", 0, 1e-5)
    assert (plan.batch, steps, plan.layer_decay, made.distil.patches) == (2048, 625_000, 1.0, "all")
    assert plan.peak_rate == pytest.approx(1e-3)
    assert plan.at(100_000, steps=steps).learning_rate == plan.peak_rate > plan.at(99_998, steps=steps).learning_rate
    first, last = (plan.at(step, steps=steps) for step in (0, steps))
    assert (first.weight_decay, last.weight_decay) == pytest.approx((0.04, 0.2))
    assert (first.teacher_momentum, last.teacher_momentum) == pytest.approx((0.994, 1.0))
    goal = recipe("vit_giant.lvd142m").objective
    assert (made.objective.head, made.objective.patch_head) == (goal.head, goal.patch_head)


@pytest.mark.parametrize(("name", "pixels"), [("vit_large.imagenet_416", 416), ("vit_giant.lvd142m_518", 518)])
def test_a_phase_of_ten_thousand_steps(name, pixels):
    before, phase = stages(recipe(name), 1000)
    assert (phase.steps, phase.pixels, before.pixels) == (10_000, pixels, 224)
