"""``plan``: what a run would cost, before it is started."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dinoforge.base.config import merged, paths
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice, choose_precision, device
from dinoforge.base.log import say
from dinoforge.data.sources.source import Source
from dinoforge.recipes.cost import Planned, planned, probed
from dinoforge.recipes.curation import CurationPlanConfig, PlannedCuration, planned_curation
from dinoforge.recipes.hardware import Cluster, named, ranks_of, this_device
from dinoforge.recipes.opened import labelled, opened
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.retained import reference
from dinoforge.recipes.settle import lines_of, setting_lines, settle
from dinoforge.recipes.stages import PHASE
from dinoforge.verbs.settings import Settings

STAGES = ("pretrain", "curate")


def plan(
    *, stage: str = "pretrain", ranks: int | str | None = None, hardware: str | None = None, **settings: Any
) -> Planned | PlannedCuration:
    """Say what `pretrain` with the same words would cost: steps, passes, memory by part, seconds; and what is odd about it.

    Nothing is written. Memory is counted on shapes, so a plan may be far too large for this machine; seconds come from a few
    real steps. With ranks= these are shared out, and bytes between ranks come on top, worked out. With hardware= seconds come
    from a model instead, of operations, kernels that are launched, bytes through memory and bytes between ranks. Either is
    without reading; the constants stand in recipes/hardware.py.

    With stage=curate pool_size=1.2e9: what a curation of so many images would cost, by stage: core-hours, GPU-hours, memory of
    a task, disk, network. It is worked out from rates that bench/curate.py measured, and beside it stands what the authors of
    DINOv2 report. It takes pool_size= and the settings named at the end alone.

    Args:
        stage: pretrain or curate [pretrain].
        ranks: For so many devices instead of one, of the kind that hardware= names, or else of this machine's.
        hardware: For devices of this name, which need not be here: h100, h200, a100-40, a100-80, l40s.
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        out: Taken so that the words are those of pretrain; not written.
        recipe: Where to start from, see `dinoforge recipes`; vit_small.small_data if nothing is said.
        config: A YAML file with a whole recipe, or an official dinov2 one, instead of a recipe.
        probe: Labelled images whose k-NN accuracy is measured during the run.
        init: A backbone to start from; its architecture is taken too.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage={stage} cannot be planned; {' and '.join(STAGES)} can.")
    if stage == "curate":
        return planned_curation(_curation({"ranks": ranks, "hardware": hardware, **settings}))
    return pretraining(settings, ranks=ranks, hardware=hardware)


def pretraining(
    settings: Mapping[str, Any], *, ranks: int | str | None = None, hardware: str | None = None
) -> Planned:  # fmt: skip
    """The plan of a run of `pretrain` with these words, see ``plan``."""
    device_there = None if hardware is None else named(hardware)
    many = None if ranks is None else ranks_of(ranks)
    recipe, source, _ = opened({name: value for name, value in settings.items() if name != "out"})
    # Only to see that they are there, as pretrain does.
    if recipe.probe.source:
        labelled(recipe.probe.source)
    reference(recipe.continuation)
    if device_there is not None:
        return _there(recipe, source, Cluster(device_there, many or 1))
    where = device(recipe.speed.device)
    precision = choose_precision(recipe.speed.precision, where)
    say(f"Device {where}, precision {precision.precision}: {precision.why}.")
    if many is None:
        return probed(planned(recipe, source, where, precision), recipe, source, where, precision)
    there = Cluster(this_device(where, precision.precision), many, here=True)
    return _told(planned(recipe, source, where, precision, there))


def _there(recipe: Recipe, source: Source, there: Cluster) -> Planned:
    """The plan for devices that are not here, counted on the processor's shapes.

    Raises:
        ConfigError: A device of this machine is asked for besides.
    """
    if recipe.speed.device != "auto":
        raise ConfigError(
            f"hardware={there.hardware.name} and device={recipe.speed.device} exclude each other; leave one out."
        )
    wish = recipe.speed.precision
    precision = Choice("fp32", "asked for") if wish == "fp32" else Choice("bf16", "it has bf16 instructions")
    say(f"Device {there.hardware.name}, precision {precision.precision}: {precision.why}.")
    return _told(planned(recipe, source, torch.device("cpu"), precision, there))


def _told(found: Planned) -> Planned:
    say(found.line())
    for part in found.parts:
        if part.each_step is not None:
            say(("" if part is found.parts[0] else f"{PHASE}: ") + part.each_step.line())
    return found


def _curation(words: Mapping[str, Any]) -> CurationPlanConfig:
    """The settings of the plan of a curation.

    Raises:
        ConfigError: Something that it does not take, or no pool.
    """
    given = {name: value for name, value in words.items() if value is not None}
    if "pool_size" not in given:
        raise ConfigError("pool_size= is required: how many images are to be curated, 1.2e9 or 10M.")
    return merged(CurationPlanConfig, {}, given)


def _described(words: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    if words.get("stage") == "curate":
        given = {name: value for name, value in words.items() if name != "stage"}
        return {
            name: (value, "command line" if name in given else "default") for name, value in paths(_curation(given))
        }
    own = {"out"} | {name for name, one in inspect.signature(plan).parameters.items() if one.kind is one.KEYWORD_ONLY}
    return settle({name: value for name, value in words.items() if name not in own}).values()


def _lines() -> Iterator[str]:
    yield from setting_lines()
    yield from ("", "With stage=curate, beside pool_size= these alone (defaults):", "")
    yield from (line for line in lines_of(CurationPlanConfig(pool_size=1)) if line.split()[0] != "pool_size")


SETTINGS = Settings(_described, _lines)
