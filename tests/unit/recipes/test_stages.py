"""A high-resolution phase as settings: what it is made of, what is refused, and that runs without one stay what they were."""

import math

import pytest
import torch
import yaml

from dinoforge.base.config import fingerprint, science, with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice
from dinoforge.data.sources.table import open_source
from dinoforge.recipes import cost
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import setting_lines, settle, to_yaml
from dinoforge.recipes.stages import stage_after, stage_of, stages
from dinoforge.recipes.table import recipe
from dinoforge.train.forecast import Forecast, Memory

BIG = {"high_resolution.images": 20_000, "high_resolution.global_pixels": 64}


def of(data_images=1_000, **settings):
    return stages(with_settings(recipe("vit_micro.toy"), BIG | settings), data_images)


def test_a_run_without_a_phase_is_one_stage_and_the_run_it_was():
    plain = recipe("vit_micro.toy")
    (only,) = stages(plain, 1_000)
    assert (only.recipe, only.steps, only.before, only.end) == (plain, 1_000, 0, 1_000)
    assert "high_resolution" not in science(plain)


def test_a_phase_is_science():
    with_phase = with_settings(recipe("vit_micro.toy"), BIG)
    assert fingerprint(science(with_phase)) != fingerprint(science(recipe("vit_micro.toy")))
    smaller = with_settings(with_phase, {"high_resolution.images": 10_000})
    assert fingerprint(science(with_phase)) != fingerprint(science(smaller))


def test_what_the_phase_is_made_of():
    """vit_micro.toy: 32,000 images in batches of 32, views of 48 and 24 pixels in patches of 8."""
    first, phase = of()
    assert (first.steps, first.pixels, first.recipe.backbone.pixels) == (1_000, 48, 48)
    assert (phase.before, phase.steps, phase.end, phase.images_before) == (1_000, 625, 1_625, 32_000)
    made, was = phase.recipe, first.recipe
    assert (made.data.augment.global_pixels, made.data.augment.local_pixels, made.backbone.pixels) == (64, 32, 64)
    assert made.data.short_side == 64  # as the 48 of 48
    assert made.plan.learning_rate.peak == was.plan.learning_rate.peak / 4
    assert made.plan.peak_rate == pytest.approx(6e-3 / 4 * math.sqrt(32 / 1024))
    changed = {"images", "learning_rate"}
    assert made.plan.model_dump(exclude=changed) == was.plan.model_dump(exclude=changed)
    changed = {"backbone", "data", "plan"}
    assert made.model_dump(exclude=changed) == was.model_dump(exclude=changed)
    Recipe.build(made.model_dump())  # a recipe like any other


def test_images_and_stages_by_the_step():
    run = of(**{"high_resolution.batch": 64})
    first, phase = run
    assert phase.steps == 312
    assert [first.images(0), first.images(1_000), phase.images(1_001)] == [0, 32_000, 32_064]
    assert [stage_after(run, step) is phase for step in (0, 999, 1_000, 1_312)] == [False, False, True, True]
    assert [stage_of(run, step) is phase for step in (0, 1_000, 1_001, 1_312)] == [False, False, True, True]


def test_passes_are_those_of_the_plan():
    run = of(**{"plan.passes": 3.2})
    assert [(stage.steps, stage.before) for stage in run] == [(100, 0), (625, 100)]


@pytest.mark.parametrize(
    ("pixels", "local"), [(56, 32), (72, 40), (96, 48), (480, 240)]
)  # 28, 36, 48, 240 by the share
def test_local_views_grow_with_the_global_ones_to_a_whole_patch(pixels, local):
    assert of(**{"high_resolution.global_pixels": pixels})[1].recipe.data.augment.local_pixels == local


def test_what_is_given_is_taken():
    phase = of(
        **{"high_resolution.local_pixels": 24, "high_resolution.batch": 16, "high_resolution.learning_rate": 1e-3}
    )[1]
    assert phase.recipe.data.augment.local_pixels == 24
    assert (phase.recipe.plan.batch, phase.recipe.plan.learning_rate.peak) == (16, 1e-3)


def test_schedules_are_compressed():
    """Twice the steps at a place of the phase are the plan's at the same share of it, but for the peak of the rate."""
    first, phase = of(**{"high_resolution.images": 16_000})
    assert (first.steps, phase.steps) == (1_000, 500)
    for step in (0, 20, 100, 499):
        mine, plan = phase.recipe.plan.at(step, steps=500), first.recipe.plan.at(2 * step, steps=1_000)
        assert mine.teacher_momentum == pytest.approx(plan.teacher_momentum)
        assert mine.weight_decay == pytest.approx(plan.weight_decay)
        assert (mine.last_layer_rate == 0) == (plan.last_layer_rate == 0)
    assert phase.recipe.plan.at(0, steps=500).learning_rate == 0
    assert phase.recipe.plan.at(49, steps=500).learning_rate == pytest.approx(phase.recipe.plan.peak_rate)


def test_gram_goes_on_with_its_teacher():
    gram = {"objective.gram.from_share": 0.2, "objective.gram.start": 0.5, "objective.gram.every_share": 0.25,
            "objective.gram.refreshes": 1}  # fmt: skip
    first, phase = of(**gram)
    assert first.recipe.objective.gram.copies(200, steps=1_000)
    kept = phase.recipe.objective.gram
    assert [kept.weight_at(step, steps=100) for step in (0, 50, 99)] == [2.0] * 3
    assert not any(kept.copies(step, steps=100) for step in range(100))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"high_resolution.global_pixels": 60}, "high_resolution.global_pixels=60 is no multiple of backbone.patch=8; 56 or 64 would be."),
        ({"high_resolution.local_pixels": 20}, "high_resolution.local_pixels=20 is no multiple of backbone.patch=8; 16 or 24 would be."),
        ({"high_resolution.global_pixels": 48}, "high_resolution.global_pixels=48 must be above data.augment.global_pixels=48."),
        ({"high_resolution.batch": 40}, "high_resolution.batch=40 is no multiple of objective.group=16; 32 or 48 would be."),
        ({"high_resolution.batch": 0}, "high_resolution.batch must be above 0; got 0."),
        ({"high_resolution.images": 0}, "high_resolution.images must be above 0; got 0."),
        ({"high_resolution.learning_rate": 0}, "high_resolution.learning_rate must be above 0; got 0."),
        (
            {"high_resolution.local_pixels": 32, "data.augment.local_views": 0},
            "high_resolution.local_pixels=32 has no effect with data.augment.local_views=0; leave it out.",
        ),
        ({"high_resolution.image": 64}, "Unknown setting 'high_resolution.image'. Did you mean 'high_resolution.images'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        settle({"recipe": "vit_micro.toy", **BIG, **settings})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_one_line():
    with pytest.raises(ConfigError, match=r"^high_resolution.global_pixels is required and was not given.$"):
        settle({"recipe": "vit_micro.toy", "high_resolution.images": "20000"})


def test_field_by_field_from_the_command_line_or_partly_from_a_file(tmp_path):
    typed = settle({"recipe": "vit_micro.toy", "high_resolution.images": "20k", "high_resolution.global_pixels": "64"})
    assert typed.recipe.high_resolution.images == 20_000
    assert typed.origins["high_resolution.images"] == "command line"
    assert typed.origins["high_resolution.batch"] == "default"
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(typed.recipe))
    assert settle({"config": str(file)}).recipe == typed.recipe
    file.write_text(yaml.safe_dump({"plan": {"batch": 16}, "high_resolution": {"global_pixels": 448}}))
    found = settle({"config": str(file), "plan.images": "1k", "high_resolution.images": "100"})
    assert (found.recipe.plan.images, found.recipe.plan.batch) == (1_000, 16)
    assert (found.recipe.high_resolution.images, found.recipe.high_resolution.global_pixels) == (100, 448)
    assert found.origins["plan.batch"] == found.origins["high_resolution.global_pixels"] == "file"
    with pytest.raises(ConfigError, match=r"plan.images|plan takes exactly one of"):
        settle({"config": str(file), "high_resolution.images": "100"})
    none = settle({"config": str(file), "plan.images": "1k", "high_resolution": "null"}).recipe
    assert none.high_resolution is None


def test_help_names_every_field():
    lines = "\n".join(setting_lines())
    for name in ("images", "global_pixels", "local_pixels [null]", "batch [null]", "learning_rate [null]"):
        assert f"  high_resolution.{name}  " in lines


PARTS = dict.fromkeys(Memory.__slots__, 0)
CPU, FP32 = torch.device("cpu"), Choice("fp32", "asked for")


def planned(monkeypatch, need=lambda side: side, **settings):
    """The plan where a step's memory is ``need`` of its side, and its operations are its pixels."""

    def forecast(job):
        side = job.augment.global_pixels
        memory = Memory(**PARTS | {"activations": need(side) * job.images})
        return Forecast(memory=memory, flops=float(side * side * job.plan.batch))

    monkeypatch.setattr(cost, "forecast", forecast)
    source = open_source("toy://species?images=2000&size=16&split=train")
    made = with_settings(recipe("vit_micro.toy"), {"plan.images": 40_960} | BIG | settings)
    return cost.planned(made, source, CPU, FP32), made, source


def test_the_plan_of_both_stages(monkeypatch):
    found, _, source = planned(monkeypatch, **{"high_resolution.batch": 64, "high_resolution.images": 6_400})
    assert (found.steps, found.images, found.batch) == (1_280 + 100, 40_960 + 6_400, 32)
    assert found.passes == pytest.approx(47_360 / len(source))
    assert found.flops == 48 * 48 * 40_960 + 64 * 64 * 6_400
    assert found.memory_bytes == found.memory["activations"] == 64 * 64
    assert [(part.micro_batch, part.pixels, part.steps) for part in found.parts] == [(32, 48, 1_280), (64, 64, 100)]
    assert found.line().startswith(
        "Plan: 1,280 steps of 32 images at 48 pixels, then 100 steps of 64 images at 64 pixels, "
    )
    assert found.warnings == []


def test_each_stage_computes_as_many_images_at_once_as_fit(monkeypatch):
    found, *_ = planned(monkeypatch, need=lambda side: side * 2**20, **{"speed.memory_gib": 1.5})
    assert [part.micro_batch for part in found.parts] == [32, 16]
    assert "(16 at once)" in found.line()
    assert found.memory_bytes == 48 * 32 * 2**20


def test_seconds_add_up(monkeypatch):
    found, made, source = planned(monkeypatch)
    alone = {48: 10.0, 64: 30.0}

    def probed(part, stage, *_):
        return cost.replace(part, seconds=alone[stage.data.augment.global_pixels], bound="step")

    monkeypatch.setattr(cost, "_probed", probed)
    both = cost.probed(found, made, source, CPU, FP32)
    assert (both.seconds, both.images_per_second) == (40.0, both.images / 40)
    alone[64] = None
    assert cost.probed(found, made, source, CPU, FP32).seconds is None


def test_warnings_name_the_phase(monkeypatch):
    found, *_ = planned(monkeypatch, need=lambda side: 2**60 if side == 64 else 1)
    (said,) = found.warnings
    assert said.startswith("High-resolution phase: The run needs about")
    assert "lower high_resolution.global_pixels, objective.group=16" in said
    found, *_ = planned(monkeypatch, **{"high_resolution.batch": 16})
    (said,) = found.warnings
    assert said.startswith("high_resolution.batch=16 is one group of objective.group=16: below 64")
