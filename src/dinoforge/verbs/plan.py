"""``plan``: what a run would cost, before it is started."""

from __future__ import annotations

from typing import Any

from dinoforge.base.hardware import choose_precision, device
from dinoforge.base.log import say
from dinoforge.recipes.cost import Planned, planned, probed
from dinoforge.recipes.opened import opened


def plan(**settings: Any) -> Planned:
    """Say what `pretrain` with the same words would cost: steps, passes, memory by part, seconds; and what is odd about it.

    Nothing is written. Memory is counted on shapes, so a plan may be far too large for this machine; seconds come from a few
    real steps.

    Args:
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        out: Taken so that the words are those of pretrain; not written.
        recipe: Where to start from, see `dinoforge recipes`; vit_small.small_data if nothing is said.
        config: A YAML file with a whole recipe, or an official dinov2 one, instead of a recipe.
        probe: Labelled images whose k-NN accuracy is measured during the run.
        init: A backbone to start from; its architecture is taken too.
    """
    recipe, source, _ = opened({name: value for name, value in settings.items() if name != "out"})
    where = device(recipe.speed.device)
    precision = choose_precision(recipe.speed.precision, where)
    say(f"Device {where}, precision {precision.precision}: {precision.why}.")
    return probed(planned(recipe, source, where, precision), recipe, source, where, precision)
