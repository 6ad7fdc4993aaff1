"""Memory that is counted is that which is there: by hand, by the parameters, and by the operating system (tests/whole)."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dinoforge.base.config import with_settings
from dinoforge.base.hardware import Choice
from dinoforge.model.heads import Head
from dinoforge.model.table import BACKBONES
from dinoforge.recipes.cost import job
from dinoforge.recipes.table import RECIPES, recipe
from dinoforge.train.forecast import Live, Pace, forecast, pace
from dinoforge.train.gram import GramConfig, GramTeacher

CPU = torch.device("cpu")


def made(name, precision="fp32", **settings):
    return job(with_settings(recipe(name), settings), CPU, Choice(precision, "asked for"))


def chain():
    """Three linear layers of 100 x 100 on 50 rows, forward and backward."""
    model = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(3)))
    model(torch.empty(50, 100)).sum().backward()
    return model


@pytest.mark.parametrize("fake", [True, False])
def test_bytes_alive_worked_out_by_hand(fake):
    """Weights 3 x 40,000 bytes, then gradients as many; the rest is gone."""
    gc.collect()
    with FakeTensorMode() if fake else Live(), Live() as live:
        model = chain()
        gc.collect()
        assert live.now == 6 * 40_000
        # Input 20,000 and two kept activations of 20,000; the last layer's gradients come when all of them still live.
        assert live.peak >= 6 * 40_000 + 20_000
        assert live.peak <= 6 * 40_000 + 4 * 20_000
        del model
        gc.collect()
        assert live.now == 0


def test_operations_worked_out_by_hand():
    """Two operations a multiply-add: forward 50 x 100 x 100 three times, backward twice that, but none for the input."""
    with FakeTensorMode(), Live() as live:
        chain()
    assert live.flops == 2 * 50 * 100 * 100 * (3 + 3 + 2)


AT_ONCE = {"vit_micro.toy", "vit_tiny.small_images", "vit_small.small_data"}
"""Recipes that are forecast in seconds; tests/contract/test_recipes.py asks for the plan of every one."""


@pytest.mark.parametrize(
    "name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.long) for name in RECIPES]
)
def test_every_recipe_without_having_its_memory(name):
    found = forecast(made(name, "bf16"))
    config = recipe(name)
    parameters = count(config)
    assert found.memory.weights == 4 * parameters
    # A frozen teacher whose features are matched is as large as the student where nothing is said, and without its maps.
    frozen = 4 * parameters - MAPS if matches(config) else 0
    assert found.memory.teacher == found.memory.weights + frozen
    assert found.memory.optimizer == 2 * found.memory.weights
    assert found.memory.activations > 0
    assert found.flops > 6 * config.plan.batch * parameters  # a global view alone has many tokens


def test_angles_of_rotary_positions_are_counted():
    """Once for a token of the packed pass: cosines and sines of a head, next to a share of blocks times heads as much."""
    rope = {"backbone.positions": "rope", "backbone.rope_rescale": 2.0, "backbone.position_std": 0.02}
    table, rotary = (forecast(made("vit_micro.toy", **{"plan.batch": 64}, **more)) for more in ({}, rope))
    assert rotary.memory.weights == 4 * count(with_settings(recipe("vit_micro.toy"), rope))
    assert rotary.memory.weights < table.memory.weights
    augment, backbone = recipe("vit_micro.toy").data.augment, recipe("vit_micro.toy").backbone
    tokens = sum(
        views * 64 * (1 + (side // backbone.patch) ** 2)
        for views, side in ((2, augment.global_pixels), (augment.local_views, augment.local_pixels))
    )
    angles = 4 * tokens * backbone.width // backbone.heads
    assert angles <= rotary.memory.activations - table.memory.activations <= 4 * angles
    assert rotary.flops == table.flops


MAPS = 4 * 2 * (384 * 384 + 384)
"""Bytes of the linear maps of class and patch tokens from one ViT-S to another, with biases."""


def matches(config):
    return config.distil is not None and config.distil.matching is not None


def test_features_of_a_probe_by_hand():
    """Three times 128 channels an image, and cosines of 256 with all, but with no more than 65,536 at once; 4 bytes each."""
    few, more, many = (
        forecast(made("vit_micro.toy", **{"probe.rank_rows": rows})) for rows in (1_024, 61_024, 200_000)
    )
    assert more.memory.allocator - few.memory.allocator == 4 * 60_000 * (3 * 128 + 256)
    assert many.memory.allocator - more.memory.allocator == 4 * ((200_000 - 61_024) * 3 * 128 + (65_536 - 61_024) * 256)


def count(config):
    """Parameters by the networks' own list, made without memory."""
    heads = [] if matches(config) else [config.objective.head, config.objective.patch_head]
    with torch.device("meta"):
        backbone = BACKBONES[config.backbone.kind][1](config.backbone)
        made = [backbone, *(Head(backbone.width, head) for head in heads if head is not None)]
    maps = MAPS // 4 if matches(config) else 0
    return sum(p.numel() for module in made for p in module.parameters()) + maps


def test_activations_grow_with_the_batch_and_shrink_in_bf16():
    one, two = (forecast(made("vit_micro.toy", **{"plan.batch": batch})).memory for batch in (64, 128))
    assert two.activations / one.activations == pytest.approx(2, rel=0.05)
    half = forecast(made("vit_micro.toy", "bf16", **{"plan.batch": 64})).memory
    assert 0.5 < half.activations / one.activations < 0.8
    assert one.total == sum(getattr(one, part) for part in type(one).__slots__)


def test_parts_and_ranks_need_less_each_and_compute_as_much_together():
    whole = made("vit_micro.toy", **{"plan.batch": 128})
    one, parts, ranks = (forecast(replace(whole, **how)) for how in ({}, {"micro_batch": 32}, {"ranks": 4}))
    assert (parts.memory.weights, parts.memory.data) == (one.memory.weights, pytest.approx(one.memory.data, rel=0.02))
    assert parts.memory.activations == pytest.approx(one.memory.activations / 4, rel=0.2)
    for part in ("weights", "teacher", "optimizer"):
        assert getattr(ranks.memory, part) == getattr(one.memory, part) // 4
    assert ranks.memory.data == pytest.approx(one.memory.data / 4, rel=0.02)
    # What a rank computes with is whole between a step's forward and backward pass.
    assert ranks.memory.activations == pytest.approx(parts.memory.activations + one.memory.weights, rel=0.2)
    assert parts.flops == pytest.approx(one.flops, rel=0.05)
    assert ranks.flops == pytest.approx(one.flops, rel=0.05)


def test_a_large_probe_of_quality_is_the_peak_of_a_small_batch():
    small = {"plan.batch": 2, "objective.group": 2, "objective.head.prototypes": 16}
    one = made("vit_micro.toy", **small)
    without, with_ = (forecast(replace(one, probe_rows=rows)).memory for rows in (2, 256))
    assert with_.activations > 2 * without.activations


def test_pace_is_measured_and_scales():
    found = pace(made("vit_micro.toy", **{"plan.batch": 4, "objective.group": 4, "backbone.depth": 1}), images=4)
    assert found.networks > 0
    assert found.update > 0
    assert Pace(networks=0.5, update=2.0).seconds(8) == 6.0


def test_a_gram_teacher_is_counted():
    """Its weights exactly, once, whenever it begins; twice the pixels are four times its operations."""
    plain = forecast(made("vit_micro.toy"))
    late = {"from_share": 0.5, "start": 0.9}
    one, two = (
        forecast(made("vit_micro.toy", **{"objective.gram": late | {"pixels_factor": factor}})) for factor in (1, 2)
    )
    with torch.device("meta"):
        config = recipe("vit_micro.toy").backbone
        backbone = 4 * sum(p.numel() for p in BACKBONES[config.kind][1](config).parameters())
    assert one.memory.teacher - plain.memory.teacher == two.memory.teacher - plain.memory.teacher == backbone
    for part in ("weights", "optimizer"):
        assert getattr(one.memory, part) == getattr(plain.memory, part)
    assert one.flops > plain.flops
    assert 3.5 < (two.flops - plain.flops) / (one.flops - plain.flops) < 6


def test_pace_is_that_of_steps_with_the_gram_teacher(monkeypatch):
    """However late it begins: it sees both global views in each of the three steps."""
    calls, forward = [], GramTeacher.forward

    def counted(self, images):
        calls.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(GramTeacher, "forward", counted)
    small = {"plan.batch": 4, "objective.group": 4, "backbone.depth": 1}
    pace(made("vit_micro.toy", **small, **{"objective.gram": {"from_share": 0.8}}), images=4)
    assert calls == [8, 8, 8]


def test_a_gram_teacher_of_another_size():
    small = {"plan.batch": 4, "objective.group": 4, "backbone.depth": 1}
    whole = made("vit_micro.toy", **small, **{"objective.gram": {"from_share": 0.5}})
    anchor = whole.backbone.model_copy(update={"width": 12, "heads": 2})
    found = replace(whole, objective=whole.objective.model_copy(update={"gram": GramConfig(backbone="x")}), gram=anchor)
    assert pace(found, images=4).networks > 0
    assert forecast(found).memory.teacher < forecast(whole).memory.teacher
