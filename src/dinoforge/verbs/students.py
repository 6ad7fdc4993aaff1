"""Several students of one teacher in one process: each is a run of its own, with its own folder; the teacher looks once.

The run that is furthest behind takes the next step, so all see a batch before any sees the next one, and what the teacher made
of it for the first of them is handed to the others. Nothing else is shared: every student ends as if it had been trained alone,
by the same words without the others, and can be gone on with alone.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, Interrupted, SentinelStop
from dinoforge.base.log import speaking
from dinoforge.recipes.outcome import Pretrained
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import SHORT
from dinoforge.runs import Run, prepared
from dinoforge.train.distil import Shared
from dinoforge.train.observe import Stop
from dinoforge.train.step import SinkhornConfig

SAME = (
    "seed", "data", "distil", "high_resolution", "objective.group", "objective.targets", "plan.images", "plan.passes",
    "plan.batch", "plan.teacher_temperature", "speed.precision",
)  # fmt: skip
"""What decides which pictures there are and what the teacher says of them."""


@dataclass(slots=True)
class _Student:
    name: str
    run: Run
    steps: Generator[int, None, Pretrained]
    """Gives the number of each step that is done."""
    at: int = -1
    done: Pretrained | None = None
    ended: SentinelStop | Interrupted | None = None


def taught(students: Any, settings: Mapping[str, Any]) -> dict[str, Pretrained]:
    """Train several students at once.

    Args:
        students: Settings of each by its name, which becomes a folder inside ``out``; as YAML or a mapping.
        settings: Those that all of them share.

    Raises:
        ConfigError: They cannot share what a teacher makes of pictures; the first difference is named.
        SentinelStop: One of them or more were stopped, after the others had gone on to their end.
        Interrupted: Stopped on request, after a checkpoint of each.
    """
    if dist.launched():
        raise ConfigError(
            "students= takes one process so far; start it without torchrun, or one student after another."
        )
    words, shared = named(students), Shared()
    out = settings.get("out")
    if not out:
        raise ConfigError("out= is required: the folder of the runs, one inside it for each of students=.")
    runs = {name: prepared({**settings, **own, "out": str(Path(str(out)) / name)}) for name, own in words.items()}
    _alike({name: run.recipe for name, run in runs.items()})
    with Stop() as stop:
        for number, run in enumerate(runs.values()):
            run.share(shared, stop, shows=number == 0)
        group = [_Student(name, run, run.steps_of_go()) for name, run in runs.items()]
        _all_to_their_ends(group)
    for kind in (Interrupted, SentinelStop):
        ended = [f"{one.name}: {one.ended}" for one in group if isinstance(one.ended, kind)]
        if ended:
            raise kind(" ".join(ended))
    return {one.name: one.done for one in group if one.done is not None}


def named(students: Any) -> dict[str, dict[str, Any]]:
    """Settings by student, from what was typed.

    Raises:
        ConfigError: No mapping of names to settings, a name that is no folder's, or one student alone.
    """
    found = students
    if isinstance(students, str):
        try:
            found = yaml.safe_load(students)
        except yaml.YAMLError:
            found = None
    if not isinstance(found, Mapping) or not all(isinstance(own, Mapping) for own in found.values()):
        raise ConfigError(
            "students= takes settings by name, such as {small: {backbone.width: 384}, tiny: {backbone.width: 192}}; got "
            f"{students!r}."
        )
    for name, own in found.items():
        if not str(name) or Path(str(name)).name != str(name) or str(name).startswith("."):
            raise ConfigError(f"students= names folders inside out=; {name!r} is none.")
        if "out" in own or "teacher" in own or "config" in own:
            raise ConfigError(
                f"students={name} sets out, teacher or config, which all of them share; leave it out there."
            )
    if len(found) < 2:
        raise ConfigError(f"students= takes two or more; got {', '.join(map(str, found)) or 'none'}.")
    return {str(name): {SHORT.get(key, key): value for key, value in own.items()} for name, own in found.items()}


def _alike(recipes: Mapping[str, Recipe]) -> None:
    """Refuse students for whom the teacher would have to look at other pictures, or to say other things of them.

    Raises:
        ConfigError: They are.
    """
    (first, one), *others = recipes.items()
    for path in SAME:
        for name, other in others:
            values = [_at(recipe, path) for recipe in (one, other)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"students {first} and {name} differ in {path}, which those of one teacher share; set it for all of them."
                )
    if not isinstance(one.objective.targets, SinkhornConfig):
        raise ConfigError("objective.targets.kind=centring follows one student's steps; several take sinkhorn.")


def _at(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _all_to_their_ends(group: Sequence[_Student]) -> None:
    """Step by step, whoever is furthest behind next, until each has ended; one that is stopped holds up no other.

    What is wrong with the machine or the settings ends all of them: every one is left as if it had been killed.
    """
    waiting = list(group)
    try:
        while waiting:
            student = min(waiting, key=lambda one: one.at)
            with speaking(student.name):
                try:
                    student.at = next(student.steps)
                    continue
                except StopIteration as end:
                    student.done = end.value
                except (SentinelStop, Interrupted) as end:
                    student.ended = end
            waiting.remove(student)
    finally:
        for student in waiting:
            student.steps.close()
