"""``plan``: what a run would cost, before it is started."""

from __future__ import annotations

from typing import Any

import torch

from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice, choose_precision, device
from dinoforge.base.log import say
from dinoforge.data.sources.source import Source
from dinoforge.recipes.cost import Planned, planned, probed
from dinoforge.recipes.hardware import Cluster, named, ranks_of, this_device
from dinoforge.recipes.opened import opened
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.stages import PHASE


def plan(*, ranks: int | str | None = None, hardware: str | None = None, **settings: Any) -> Planned:
    """Say what `pretrain` with the same words would cost: steps, passes, memory by part, seconds; and what is odd about it.

    Nothing is written. Memory is counted on shapes, so a plan may be far too large for this machine; seconds come from a few
    real steps. With ranks= or hardware= seconds come from a model instead, of operations, bytes through memory and bytes
    between ranks, without reading; its constants stand in recipes/hardware.py.

    Args:
        ranks: For so many devices instead of one, of the kind that hardware= names, or else of this machine's.
        hardware: For devices of this name, which need not be here: h100, h200, a100-40, a100-80, l40s.
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        out: Taken so that the words are those of pretrain; not written.
        recipe: Where to start from, see `dinoforge recipes`; vit_small.small_data if nothing is said.
        config: A YAML file with a whole recipe, or an official dinov2 one, instead of a recipe.
        probe: Labelled images whose k-NN accuracy is measured during the run.
        init: A backbone to start from; its architecture is taken too.
    """
    device_there = None if hardware is None else named(hardware)
    many = None if ranks is None else ranks_of(ranks)
    recipe, source, _ = opened({name: value for name, value in settings.items() if name != "out"})
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
