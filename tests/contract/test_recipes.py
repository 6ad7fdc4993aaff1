"""What every recipe promises: it builds, survives YAML, is itself, trains a step, and its settings say where they come from."""

import math

import pytest
import torch
import yaml

from dinoforge.base.config import fingerprint, science, with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.data.loader import Groups, Loader
from dinoforge.data.sources.table import open_source
from dinoforge.model.table import build
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import setting_lines, settle, to_yaml
from dinoforge.recipes.table import RECIPES, recipe
from dinoforge.train.loop import fit
from dinoforge.train.optim import optimizer
from dinoforge.train.step import Pretrain, networks, teacher_of


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
        small = {
            "backbone.kind": "toy", "objective.head.prototypes": 32, "objective.head.hidden": 8,
            "objective.head.bottleneck": 4, "objective.group": 4, "plan.batch": 4, "data.augment.global_pixels": 32,
            "data.augment.local_pixels": 16, "plan.images": 8,
        }  # fmt: skip
        if recipe(name).objective.patch_head is not None:
            small |= {
                "objective.patch_head.prototypes": 16,
                "objective.patch_head.hidden": 8,
                "objective.patch_head.bottleneck": 4,
            }
        made = with_settings(recipe(name), small)
        student = networks(build(made.backbone, seed=0), made.objective, seed=0)
        step = Pretrain(student, teacher_of(student), made.objective, seed=0)
        groups = Groups(open_source("toy://species?images=8&size=24"), made.data.augment, made.data.masks, seed=0, group=4,
                        patch=made.backbone.patch)  # fmt: skip
        loader = Loader(groups, batch=4, workers=0, device=torch.device("cpu"), on_broken=lambda *_: None)
        before = {key: value.clone() for key, value in student.state_dict().items()}
        totals = []
        fit(step, optimizer(student, made.plan), loader.batches(first=0, steps=2), plan=made.plan, steps=2,
            observers=[lambda done: totals.append(done.losses["total"].item())])  # fmt: skip
        assert len(totals) == 2
        assert all(math.isfinite(total) for total in totals)
        assert before.keys() == student.state_dict().keys()


def test_recipes_are_different_runs():
    marks = [fingerprint(science(recipe(name))) for name in RECIPES]
    assert len(set(marks)) == len(marks)


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
