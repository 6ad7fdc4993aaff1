"""The teacher of a distillation: a run of ours, with the heads that it was trained with, or a backbone whose features are
matched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, RunError
from dinoforge.base.files import resolved
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.model.foreign import is_foreign
from dinoforge.model.table import empty
from dinoforge.model.weights import fingerprint, refuse_pixels
from dinoforge.recipes.headless import counted_as, opened_teacher
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import settle
from dinoforge.recipes.stages import stage_of, stages
from dinoforge.train.checkpoint import Checkpoints, Saved
from dinoforge.train.diary import Diary
from dinoforge.train.distil import Design
from dinoforge.train.matching import Mapped
from dinoforge.train.step import Networks, networks

REQUIRED = (
    "teacher= is required: the folder of the run that trained the teacher, with its checkpoints; where features are matched "
    "(distil.matching), any backbone."
)
_WANTED = "give the folder of the run that trained it"


@dataclass(frozen=True, slots=True)
class Teacher:
    """Networks as a run left them."""

    networks: Networks
    fingerprint: str
    """16 hexadecimal digits of architectures and weights, heads included."""


def required(recipe: Recipe) -> None:
    """Refuse a distillation without a teacher.

    Raises:
        ConfigError: It names none.
    """
    if recipe.distil is not None and recipe.distil.teacher is None:
        raise ConfigError(REQUIRED)


def design(recipe: Recipe) -> Design | None:
    """What the teacher of a recipe is made of; None where it has none. One whose features are matched and that is not named yet
    counts as the student's like. Of others no weight is read.

    Raises:
        ConfigError: No run with its heads, or one whose targets this student cannot be held to.
    """
    if recipe.distil is not None and recipe.distil.matching is not None:
        address = recipe.distil.teacher
        made = recipe.backbone if address is None else counted_as(opened_teacher(recipe, address))
        return Design(made, recipe.objective)
    found = _found(recipe)
    return None if found is None else found[0]


def teacher(recipe: Recipe, *, out: Path) -> Teacher | None:
    """The teacher of a recipe from the last whole checkpoint of its run; None where it has none. Every rank reads all of it.

    Args:
        out: The folder of the student's run.

    Raises:
        ConfigError: As ``design``; or the teacher is what the student's run would overwrite.
        RunError: The checkpoint is damaged.
    """
    address = recipe.distil and recipe.distil.teacher
    if address and not is_foreign(address) and resolved(at_home(address), "read").is_relative_to(resolved(out)):
        raise ConfigError(
            f"teacher={address} is the folder of this very run, or in it; give the run of another backbone, or another out=."
        )
    if address and recipe.distil is not None and recipe.distil.matching is not None:
        backbone = opened_teacher(recipe, address)
        say(f"Teacher: {address}, {backbone.loaded}; its features are matched.")
        return Teacher(Mapped(backbone.module, None), backbone.fingerprint)
    found = _found(recipe)
    if found is None:
        return None
    from dinoforge.train.shards import read, shapes

    made, saved = found
    module = networks(empty(made.backbone), made.objective, seed=0)
    with dist.apart():
        # The moving average is what a run hands on, also one that was itself distilled.
        role = "spare" if any(name.startswith("spare.") for name in shapes(saved.folder)) else "teacher"
        read(saved.folder, {f"{role}.{name}": tensor for name, tensor in module.state_dict().items()})
    heads = {
        "head": made.objective.head.model_dump(),
        "patch_head": made.objective.patch_head and made.objective.patch_head.model_dump(),
    }
    architecture = {"backbone": made.backbone.model_dump(mode="json"), **heads}
    say(f"Teacher: the weights of {saved.folder}.")
    return Teacher(module.eval(), fingerprint(architecture, module.state_dict()))


def _found(recipe: Recipe) -> tuple[Design, Saved] | None:
    """What the teacher is made of, and where its weights are."""
    if recipe.distil is None or recipe.distil.teacher is None:
        return None
    address = recipe.distil.teacher
    run = at_home(address)
    theirs, saved = _run(run, address)
    wrong = list(_misfits(recipe, theirs))
    if wrong:
        raise ConfigError(f"teacher={address} {' Besides, it '.join(wrong)}")
    return Design(theirs.backbone, theirs.objective), saved


def _run(run: Path, address: str) -> tuple[Recipe, Saved]:
    """The settings of a run in the stage of its last whole checkpoint, and that checkpoint."""
    refuse_pixels(address, f"teacher={address}")
    if not run.exists() and not is_foreign(address):
        raise ConfigError(f"teacher={address} does not exist; {_WANTED}.")
    if not all((run / name).exists() for name in ("run.json", "config.yaml", "checkpoints")):
        raise ConfigError(
            f"teacher={address} has no heads; {_WANTED}, with its checkpoints, or of one that has fitted heads to it "
            f"(dinoforge pretrain init={address} recipe=vit_small.heads), or match its features (recipe=vit_small.matched)."
        )
    try:
        images = int(json.loads((run / "run.json").read_text(encoding="utf-8"))["images"])
    except (OSError, ValueError, LookupError, TypeError):
        raise RunError(f"teacher={address}: its run.json is damaged.") from None
    with dist.apart():
        past = Diary(run / "events.jsonl")
    whole = [
        saved
        for saved in Checkpoints(run / "checkpoints", keep=1).all()
        if past.owns(saved.step, saved.facts.get("rollbacks", 0))
    ]
    if not whole:
        raise ConfigError(f"teacher={address} has no whole checkpoint, so no heads; {_WANTED}, or train it further.")
    settings = settle({"config": str(run / "config.yaml")}).recipe
    return stage_of(stages(settings, images), whole[-1].step).recipe, whole[-1]


def _misfits(recipe: Recipe, theirs: Recipe) -> Iterator[str]:
    """What a student cannot be held to, one reason each."""
    if theirs.distil is not None and theirs.distil.matching is not None:
        yield "has no heads, for it was trained to match features; match its own (recipe=vit_small.matched)."
        return
    for name in ("patch", "channels"):
        has, wanted = getattr(theirs.backbone, name), getattr(recipe.backbone, name)
        if has != wanted:
            yield f"has {name}={has}, the student backbone.{name}={wanted}; both must be the same."
    mine, goal = recipe.objective, theirs.objective
    if goal.patch_head is not None and mine.patch_head is None:
        yield "has a head of its own for patches; give the student one: set objective.patch_head."
    pairs = [("head", mine.head, goal.head), ("patch_head", mine.patch_head, goal.patch_head or goal.head)]
    for name, head, wants in pairs:
        if head is not None and head.prototypes != wants.prototypes:
            yield (
                f"has {wants.prototypes:,} prototypes, the student {head.prototypes:,}; set "
                f"objective.{name}.prototypes={wants.prototypes}."
            )
    colours = [data.augment.colour for data in (theirs.data, recipe.data)]
    values = {name: [getattr(colour, name) for colour in colours] for name in ("mean", "std")}
    values = {f"data.augment.colour.{name}": pair for name, pair in values.items()}
    for name, (has, wanted) in (values | {"data.range": [theirs.data.range, recipe.data.range]}).items():
        if has != wanted:
            yield f"was trained with {name}={_plain(has)}, the student has {_plain(wanted)}; both see the same views."


def _plain(value: object) -> str:
    return "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
