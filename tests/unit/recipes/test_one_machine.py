"""Recipes for 1 and 8 GPUs of 80 GB: what differs from the published runs, and that their batch fits at once and twice it does not."""

import pytest
import torch

from dinoforge.base.config import paths, with_settings
from dinoforge.base.hardware import Choice
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.cost import MOST_MEMORY, job, planned
from dinoforge.recipes.hardware import HARDWARE, Cluster
from dinoforge.recipes.table import RECIPES, recipe
from dinoforge.train.forecast import forecast

CPU, BF16 = torch.device("cpu"), Choice("bf16", "asked for")
GPUS = {"1gpu": 1, "8gpu": 8}
BASES = {
    "vit_small.imagenet_1gpu": "vit_large.imagenet",
    "vit_base.imagenet_1gpu": "vit_large.imagenet",
    "vit_large.imagenet_8gpu": "vit_large.imagenet",
    "vit_large.lvd142m_8gpu": "vit_large.lvd142m",
}
SMALLER = {f"backbone.{name}" for name in ("width", "depth", "heads", "drop_path")}


def test_all_of_them_are_known_here():
    assert {name for name in RECIPES if name.endswith(tuple(GPUS))} == BASES.keys()


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_only_batch_and_size_differ_from_the_published_run(name, base):
    made, published = (dict(paths(recipe(each))) for each in (name, base))
    changed = {key for key, value in made.items() if published[key] != value}
    assert changed - SMALLER == {"recipe", "plan.batch"}
    assert bool(changed & SMALLER) == (not name.startswith("vit_large"))


@pytest.mark.parametrize(
    ("name", "steps", "rate"),
    [
        ("vit_small.imagenet_1gpu", 500_000, 4e-3 * 2**-0.5),
        ("vit_base.imagenet_1gpu", 1_000_000, 2e-3),
        ("vit_large.imagenet_8gpu", 250_000, 4e-3),
        ("vit_large.lvd142m_8gpu", 3_750_000, 2e-4 * 2**-0.5),
    ],
)
def test_steps_and_rates_by_hand(name, steps, rate):
    """As many images as published in smaller steps; the rate goes with the root of the batch over 1,024."""
    plan = recipe(name).plan
    assert plan.steps(1) == steps
    assert plan.peak_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    "name", [name if name.startswith("vit_small") else pytest.param(name, marks=pytest.mark.long) for name in BASES]
)
def test_the_batch_fits_at_once(name):
    made, there = recipe(name), machine(name)
    found = planned(made, open_source("toy://species?images=2000&size=16"), CPU, BF16, there)
    print(f"{name}: {found.line()}")  # `pytest -s` shows it
    share = made.plan.batch // there.ranks
    assert found.micro_batch == share >= made.objective.group
    assert share % made.objective.group == 0
    assert found.memory_bytes < budget(there)
    assert not any("needs about" in warning for warning in found.warnings)


@pytest.mark.long
@pytest.mark.parametrize("name", BASES)
def test_twice_the_batch_does_not_fit_at_once(name):
    made = recipe(name)
    twice = with_settings(made, {"plan.batch": 2 * made.plan.batch})
    assert forecast(job(twice, CPU, BF16, None, machine(name))).memory.total > budget(machine(name))


def machine(name):
    """As many GPUs of 80 GB as the recipe is named after; both kinds have as much memory."""
    assert HARDWARE["a100-80"].memory_gib == HARDWARE["h100"].memory_gib
    return Cluster(HARDWARE["a100-80"], GPUS[name.rpartition("_")[2]])


def budget(there):
    return MOST_MEMORY * there.hardware.memory_gib * 2**30
