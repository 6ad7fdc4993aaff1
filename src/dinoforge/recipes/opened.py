"""A settled recipe, and what its addresses name: the images to train on, those to probe with, the backbone to start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.log import say
from dinoforge.data.sources.options import split_address
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.model.weights import Backbone, load_backbone
from dinoforge.recipes.quality import same_eyes
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import settle
from dinoforge.recipes.teacher import required


def opened(settings: Mapping[str, Any]) -> tuple[Recipe, Source, Backbone | None]:
    """The settled recipe, the images that are trained on, and the backbone to start from.

    Raises:
        ConfigError: No data, or settings that are unknown, wrong, or contradict one another.
        DataError: Nothing there.
        WeightsError: The backbone to start from cannot be read.
    """
    recipe = settle(settings).recipe
    if recipe.data.source is None:
        raise ConfigError("data= is required: a folder of images, a Parquet file or toy://species.")
    required(recipe)
    if recipe.continuation is not None and recipe.init is None:
        raise ConfigError("init= is required: the backbone to go on from.")
    source = training_rows(recipe.data.source)
    start = load_backbone(recipe.init) if recipe.init else None
    if start is not None:
        say(f"init={recipe.init}: {start.loaded}")
        recipe = _with_architecture(recipe, start, settings)
    return recipe, source, start


def _with_architecture(recipe: Recipe, start: Backbone, given: Mapping[str, Any]) -> Recipe:
    """The recipe with the architecture of the backbone it starts from; what only training needs stays the recipe's."""
    own = {name: getattr(recipe.backbone, name, None) for name in ("drop_path", "drop_path_uniform")}
    keep = {name: value for name, value in own.items() if name in type(start.config).model_fields}
    architecture = start.config.model_copy(update=keep)
    for path in given:
        name = path.removeprefix("backbone.")
        if path.startswith("backbone.") and name not in keep:
            raise ConfigError(f"{path} cannot be set together with init=: the architecture is that of {recipe.init}.")
    if recipe.continuation is not None:
        same_eyes(recipe, start.preprocessing, f"init={recipe.init}")
    return Recipe.build(recipe.model_dump() | {"backbone": architecture.model_dump()})


def anchor(recipe: Recipe) -> Backbone | None:
    """The backbone that is named as Gram teacher; None where none is.

    Raises:
        ConfigError: It cuts pictures into other patches than the backbone that is trained, takes other channels, or colours
            that are normalised otherwise.
        WeightsError: It cannot be read.
    """
    gram, backbone = recipe.objective.gram, recipe.backbone
    if gram is None or gram.backbone is None:
        return None
    found = load_backbone(gram.backbone)
    for name in ("patch", "channels"):
        theirs, ours = getattr(found.config, name), getattr(backbone, name)
        if theirs != ours:
            raise ConfigError(
                f"objective.gram.backbone={gram.backbone} has {name}={theirs}, which must be that of the backbone, {ours}."
            )
    same_eyes(recipe, found.preprocessing, f"objective.gram.backbone={gram.backbone}")
    return found


def training_rows(address: str) -> Source:
    """The images of an address that may be trained on: the train split where it has splits, which is said aloud."""
    whole = open_source(address)  # once: a million files take seconds
    if has_split(whole, "train"):
        train = np.flatnonzero(whole.columns["split"] == "train")
        if len(train) < len(whole):
            say(f"{whole.address}: {len(train):,} of its {len(whole):,} images are used, those of the split train.")
        return whole.select(train)
    others = sorted(set(whole.columns["split"].tolist()) - {""}) if "split" in whole.columns else []
    if others and "split" not in split_address(address)[1]:
        say(
            f"{whole.address} has no split train, only {', '.join(others)}: all its {len(whole):,} images are used; "
            "?split=NAME behind the address chooses one."
        )
    return whole


def labelled(address: str) -> tuple[Source, Source]:
    """A labelled source's rows that vote and rows that are asked, see ``apart``."""
    return apart(open_source(address))


def apart(whole: Source) -> tuple[Source, Source]:
    """Rows of a labelled source that vote and rows that are asked: train and test, else val, else every fifth.

    Raises:
        DataError: The source has no labels, or only one class.
    """
    labels = whole.columns.get("label")
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        raise DataError(
            f"{whole.address} has no labels; a probe takes folders named by class, or a column 'label' (or ?label=NAME)."
        )
    whole = whole if (labels >= 0).all() else whole.select(np.flatnonzero(labels >= 0))
    test = next((name for name in ("test", "val") if has_split(whole, name)), None)
    if has_split(whole, "train") and test:
        splits = whole.columns["split"]
        return whole.select(np.flatnonzero(splits == "train")), whole.select(np.flatnonzero(splits == test))
    asked = np.arange(len(whole)) % 5 == 4
    return whole.select(np.flatnonzero(~asked)), whole.select(np.flatnonzero(asked))
