"""A settled recipe, and what its addresses name: the images to train on, those to probe with, the backbone to start from.

Axes: N images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

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
    """Rows of a labelled source that vote and rows that are asked: train, which val joins, and test; else train and val; else
    every fifth is asked, see ``every_fifth``.

    Raises:
        DataError: The source has no labels, only one class, or too few images to be divided.
    """
    labels = whole.columns.get("label")
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        raise DataError(
            f"{whole.address} has no labels; a probe takes folders named by class, or a column 'label' (or ?label=NAME)."
        )
    if (labels < 0).any():
        say(f"{whole.address}: {(labels < 0).sum():,} of its {len(whole):,} images have no label and are left out.")
        whole = whole.select(np.flatnonzero(labels >= 0))
    test = next((name for name in ("test", "val") if has_split(whole, name)), None)
    if has_split(whole, "train") and test:
        # Sets that have all three (DTD, FGVC-Aircraft, Flowers-102) are published with both learnt from.
        voting = ["train", "val"] if test == "test" else ["train"]
        nowhere = (whole.columns["split"] == "").sum()
        if nowhere:
            say(f"{whole.address}: {nowhere:,} of its {len(whole):,} images are in no split and are left out.")
        return _divided(whole, ~np.isin(whole.columns["split"], voting), whole.columns["split"] == test)
    return every_fifth(whole, classes=True)


def every_fifth(whole: Source, *, classes: bool) -> tuple[Source, Source]:
    """All images but every fifth, and every fifth of them.

    Images of one ``clip`` or ``group`` are asked together or not at all, which is said aloud: they are often nearly the same,
    and one that is learnt from would tell of those that are asked.

    Args:
        classes: Whether they are to be told apart. Clips and groups are divided where else a side would have fewer than two
            classes, or one would be asked that is not learnt; an image alone of its class is never asked.

    Raises:
        DataError: There are too few for one to be asked.
    """
    what = " or ".join(name for name in ("clip", "group") if name in whole.columns)
    unit = _together(whole)
    if unit.max(initial=-1) + 1 < len(whole):  # some images belong together
        asked = unit % 5 == 4
        if _can_be_asked(whole, asked, classes=classes):
            say(f"{whole.address}: every fifth {what} is asked, all its images together.")
            return _divided(whole, asked, asked)
        say(
            f"{whole.address}: every fifth image is asked; each {what} as a whole would leave classes on one side alone."
        )
    asked = np.arange(len(whole)) % 5 == 4
    if classes and (unlearnt := asked & ~np.isin(whole.columns["label"], whole.columns["label"][~asked])).any():
        say(
            f"{whole.address}: {unlearnt.sum():,} images that would be asked are the only ones of their class, and are not."
        )
        asked &= ~unlearnt
    if not asked.any():
        raise DataError(
            f"{whole.address} has {len(whole):,} images and no splits train and test; every fifth is asked, so it takes 5 or "
            "more, and more than one of a class."
        )
    return _divided(whole, asked, asked)


def _divided(whole: Source, left: np.ndarray, asked: np.ndarray) -> tuple[Source, Source]:
    return whole.select(np.flatnonzero(~left)), whole.select(np.flatnonzero(asked))


def _together(whole: Source) -> Int[np.ndarray, " N"]:
    """A number for every image, the same for those that share a clip or a group, in the order in which they first appear."""
    first = np.arange(len(whole))
    columns = [whole.columns[name] for name in ("clip", "group") if name in whole.columns]
    before = None
    while before is None or (first != before).any():  # until groups that share a clip, and so on, have become one
        before = first.copy()
        for column in columns:
            known = np.flatnonzero(column >= 0 if column.dtype.kind == "i" else column != "")
            number = np.unique(column[known], return_inverse=True)[1]
            least = np.full(len(known), len(whole))
            np.minimum.at(least, number, first[known])
            first[known] = least[number]
    found: np.ndarray = np.unique(first, return_inverse=True)[1]
    return found


def _can_be_asked(whole: Source, asked: np.ndarray, *, classes: bool) -> bool:
    """Whether some are asked and, where they have classes, at least two, all of them learnt from."""
    if not classes:
        return bool(asked.any())
    labels = whole.columns["label"]
    return len(np.unique(labels[asked])) >= 2 and bool(np.isin(labels[asked], labels[~asked]).all())
