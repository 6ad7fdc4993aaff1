"""What every recipe promises: it builds, survives YAML, is itself, trains a step, and its settings say where they come from."""

from itertools import combinations

import pytest
import torch
import yaml

from dinoforge.base.config import fingerprint, science, with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice
from dinoforge.data.loader import Groups, Loader
from dinoforge.data.sources.table import open_source
from dinoforge.model.table import build
from dinoforge.recipes.cost import planned
from dinoforge.recipes.hardware import HARDWARE, Cluster
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import setting_lines, settle, to_yaml
from dinoforge.recipes.table import RECIPES, recipe
from dinoforge.train.assembly import assembled, frozen_of, student_of
from dinoforge.train.loop import fit
from dinoforge.train.optim import optimizer
from dinoforge.train.step import teacher_of


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_it_knows_its_name_and_says_what_it_is(self, name):
        assert recipe(name).recipe == name
        assert (RECIPES[name].__doc__ or "").strip()

    def test_it_survives_yaml(self, name):
        assert Recipe.build(yaml.safe_load(to_yaml(recipe(name)))) == recipe(name)

    def test_it_is_valid_as_a_whole(self, name):
        """A recipe derived by copying is checked like one that was typed."""
        assert Recipe.build(recipe(name).model_dump()) == recipe(name)

    def test_two_steps_with_a_toy_backbone(self, name):
        """In the middle of the plan, where nothing is frozen: all that the recipe trains moves, at the rates of its plan."""
        made, source = small(name), open_source("toy://species?images=64&size=16")
        steps = made.plan.steps(len(source))
        first = steps // 2
        how, like = made.distil, build(made.backbone, seed=1)
        student = student_of(build(made.backbone, seed=0), made.objective, seed=0, how=how, width=like.width)
        frozen = None if how is None else frozen_of(like, made.objective, how=how)
        step = assembled(student, teacher_of(student), made.objective, seed=0, teacher=frozen, how=made.distil)
        groups = Groups(source, made.data.augment, made.data.masks, made.data.sampling, seed=0, group=made.objective.group,
                        patch=made.backbone.patch, reading=made.reading)  # fmt: skip
        loader = Loader(groups, batch=made.plan.batch, workers=0, device=torch.device("cpu"), on_broken=lambda *_: None)
        before = {key: value.clone() for key, value in student.state_dict().items()}
        done, after = [], []

        def look(this):
            done.append(this)
            after.append({key: value.clone() for key, value in student.state_dict().items()})

        adamw = optimizer(student, made.plan, continuation=made.continuation)
        fit(step, adamw, loader.batches(first=first, steps=first + 2), plan=made.plan,
            steps=steps, first=first, observers=[look])  # fmt: skip
        assert [this.step for this in done] == [first + 1, first + 2]
        copies = made.objective.copies
        hidden = how is None and made.data.masks.probability > 0
        absent = {"dino_local": copies is not None, "ibot": how is None and not hidden}
        idle = {key for key, is_absent in absent.items() if is_absent}
        for this in done:
            assert all(term.isfinite() and (term != 0) == (key not in idle) for key, term in this.losses.items())
        weights, terms = made.objective, done[0].losses
        if how is not None and how.matching is not None:
            terms = dict.fromkeys(("dino_local", "dino_global", "ibot", "koleo"), torch.zeros(())) | terms
        images = weights.dino_weight * (terms["dino_local"] + terms["dino_global"])
        rest = weights.ibot_weight * terms["ibot"] + weights.koleo_weight * terms["koleo"]
        if how is not None and how.matching is not None:
            rest = how.matching.image_weight * terms["match_image"] + how.matching.patch_weight * terms["match_patches"]
        if copies is not None:
            rest = rest + terms["contrast"] + copies.entropy * terms["entropy"]
        torch.testing.assert_close(terms["total"], images + rest)
        unseen = [] if hidden else ["backbone.mask_token"]
        if made.continuation is not None and made.continuation.warmup == 1:
            unseen = [key for key in before if key.startswith("backbone.") and key != "backbone.mask_token"]
        still = [key for key, value in before.items() if torch.equal(value, after[1][key])]
        # Heads that weigh nothing at most decay.
        assert [key for key in still if copies is None or not key.startswith("dino_head.")] == unseen
        low, high = sorted([made.plan.peak_rate, made.plan.learning_rate.end])
        assert low < done[0].at.learning_rate < high
        assert done[0].at.last_layer_rate == done[0].at.learning_rate
        ends = made.plan.teacher_temperature
        assert min(ends.start, ends.end) <= done[0].at.teacher_temperature <= max(ends.start, ends.end)
        one, two = (this.at.teacher_momentum for this in done)
        for key, value in step.average.state_dict().items():
            follows = two * (one * before[key] + (1 - one) * after[0][key]) + (1 - two) * after[1][key]
            torch.testing.assert_close(value, follows, rtol=1e-6, atol=1e-7)

    def test_its_plan_is_told(self, name):
        """Steps by hand: all images of the plan, in its batches."""
        made = small(name)
        source = open_source("toy://species?images=2000&size=16")
        found = planned(made, source, torch.device("cpu"), Choice("fp32", "asked for"), Cluster(HARDWARE["h100"], 1))
        steps = round(made.plan.images / made.plan.batch)
        images = made.plan.images + (made.high_resolution.images if made.high_resolution else 0)
        assert f"{steps:,} steps of {made.plan.batch} images" in found.line()
        assert found.passes == pytest.approx(images / 2000, abs=made.plan.batch / 2000)
        assert 0 < sum(found.memory.values()) == found.memory_bytes
        assert found.seconds > 0


def small(name):
    """The recipe with few channels, blocks, patches and prototypes, and about 32 images a step in its groups; the rest as it is."""
    made = recipe(name)
    patch, group = made.backbone.patch, made.objective.group
    heads = (
        {
            "objective.head.prototypes": 32,
            "objective.head.hidden": 16,
            "objective.head.bottleneck": made.objective.head.bottleneck // 8,
        }
        if made.distil is None or made.distil.matching is None
        else {}
    )
    locals_ = {"data.augment.local_pixels": 2 * patch} if made.data.augment.local_views else {}
    settings = heads | locals_ | {
        "backbone.width": 16, "backbone.depth": 2, "backbone.heads": 2, "backbone.pixels": 4 * patch,
        "data.augment.global_pixels": 4 * patch, "plan.batch": group * max(1, 32 // group),
    }  # fmt: skip
    if made.high_resolution is not None:
        settings["high_resolution.global_pixels"] = 6 * patch
    if made.objective.patch_head is not None:
        settings |= {
            "objective.patch_head.prototypes": 24,
            "objective.patch_head.hidden": 16,
            "objective.patch_head.bottleneck": made.objective.patch_head.bottleneck // 8,
        }
    return with_settings(made, settings)


ALIKE = {("vit_large.imagenet22k", "vit_large.lvd142m")}
"""Published with the same settings for other images."""


def test_recipes_are_different_runs():
    marks = {name: fingerprint(science(recipe(name))) for name in RECIPES}
    assert {pair for pair in combinations(RECIPES, 2) if marks[pair[0]] == marks[pair[1]]} == ALIKE


def test_where_values_come_from():
    settled = settle(
        {"recipe": "vit_micro.toy", "data": "photos", "plan.clip": "2", "data.augment.global_pixels": "56"}
    )
    values = settled.values()
    assert values["data.source"] == ("photos", "command line")
    assert values["plan.clip"] == (2.0, "command line")
    assert values["backbone.pixels"] == (56, "derived from data.augment.global_pixels")
    assert values["backbone.depth"] == (4, "recipe")
    assert values["seed"] == (0, "default")
    assert settled.recipe.backbone.pixels == 56
    assert values["data.resize"] == (56, "derived from data.augment.global_pixels")


def test_features_are_not_taken_of_squashed_pictures():
    """A short side below the square that is cut out would bring both sides to it."""
    with pytest.raises(ConfigError, match=r"data.resize=48 is smaller than the square .*global_pixels=56"):
        settle({"recipe": "vit_micro.toy", "data.augment.global_pixels": 56, "data.resize": 48})


def test_a_file_is_a_recipe(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(with_settings(recipe("vit_micro.toy"), {"seed": 5})))
    settled = settle({"config": str(path), "plan.batch": "64"})
    assert settled.recipe.seed == 5
    assert settled.origins["seed"] == "file"
    path.write_text(path.read_text().replace("seed: 5", "sead: 5"))
    with pytest.raises(ConfigError, match="Unknown setting 'sead'"):
        settle({"config": str(path)})


def test_speed_is_not_science():
    base = recipe("vit_micro.toy")
    same = with_settings(
        base, {"speed.workers": 7, "data.source": "elsewhere", "plan.probe_images": 9, "plan.checkpoints": 1}
    )
    assert fingerprint(science(same)) == fingerprint(science(base))
    assert fingerprint(science(with_settings(base, {"objective.group": 32}))) != fingerprint(science(base))


def test_help_names_every_setting():
    lines = list(setting_lines())
    assert any(line.startswith("  plan.clip [3.0]  Largest gradient norm") for line in lines)
    assert all(line.split("  ")[-1].strip() for line in lines)


def test_a_norm_of_local_views_where_there_are_none():
    untied = {"backbone.untie_local_norm": True}
    assert with_settings(recipe("vit_micro.toy"), untied).backbone.untie_local_norm
    with pytest.raises(ConfigError, match=r"untie_local_norm=true has no effect with data.augment.local_views=0"):
        with_settings(recipe("vit_micro.toy"), untied | {"data.augment.local_views": 0})
