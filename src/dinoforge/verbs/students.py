"""Several students of one teacher: each is a run of its own, with its own folder; the teacher looks at every image once.

On several ranks each student has a team of them, or each rank some of the students, and what the teacher makes of a team's part
of the images is told to all (``train.exchange``). In a team the run that is furthest behind takes the next step, so all see a
batch before any sees the next one, and what the teacher made of it for the first of them is handed to the others. Nothing else
is shared: every student ends as if it had been trained alone, by the same words without the others, and can be gone on with
alone. Every team reads and augments the images of whole batches: the teacher is shared, the loaders are not.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, Interrupted, RunError, SentinelStop
from dinoforge.base.hardware import Choice, Precision
from dinoforge.base.log import speaking
from dinoforge.base.teams import split
from dinoforge.recipes.cost import planned
from dinoforge.recipes.outcome import Pretrained
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import SHORT, settle
from dinoforge.runs import Run, prepared
from dinoforge.train.checkpoint import Checkpoints
from dinoforge.train.distil import Shared
from dinoforge.train.exchange import Exchange
from dinoforge.train.observe import Stop
from dinoforge.train.step import SinkhornConfig

SAME = (
    "seed", "data", "distil", "high_resolution", "backbone.patch", "objective.group", "objective.targets", "plan.images",
    "plan.passes", "plan.batch", "plan.teacher_temperature", "speed.precision", "speed.micro_batch",
)  # fmt: skip
"""What decides which pictures there are, in which parts, and what the teacher says of them: patch by patch, too."""


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
    words, out = named(students), settings.get("out")
    if not out:
        raise ConfigError("out= is required: the folder of the runs, one inside it for each of students=.")
    whole = {name: {**settings, **own, "out": str(Path(str(out)) / name)} for name, own in words.items()}
    with dist.joined():
        return _taught(whole)


def _taught(words: Mapping[str, dict[str, Any]]) -> dict[str, Pretrained]:
    """The same, once all ranks have joined."""
    count = teams(len(words), dist.world())
    dist.together(lambda: _alike({name: settle(_without_out(own)).recipe for name, own in words.items()}))
    team, alike = split(count)
    place = dist.rank() // len(team.ranks)
    mine = {name: words[name] for name in list(words)[place::count]}
    stop = Stop()
    shared = Exchange(alike, stop) if dist.active() else Shared()

    def made() -> dict[str, Run]:
        with dist.within(team):
            return {name: prepared(dict(own)) for name, own in mine.items()}

    runs = dist.together(made)
    _same_pictures(runs)
    _one_precision(runs, team, list(words))
    at_once = _fewest(runs, team)
    with dist.within(team), stop:
        for number, run in enumerate(runs.values()):
            run.share(shared, stop, shows=place == number == 0, at_once=at_once)
        group = [_Student(name, run, run.steps_of_go()) for name, run in runs.items()]
        _all_to_their_ends(group)
    if isinstance(shared, Exchange):
        shared.leave()
    return _ends(dist.gather([(one.name, one.done, one.ended) for one in group]), list(words))


def teams(students: int, ranks: int) -> int:
    """How many teams so many ranks make: one for each student, or each rank for itself with some students.

    Raises:
        ConfigError: The numbers do not divide one another.
    """
    if ranks % students and students % ranks:
        fitting = [count for count in range(1, ranks + students) if not (count % students and students % count)]
        below, above = (max(n for n in fitting if n < ranks), min(n for n in fitting if n > ranks))
        raise ConfigError(
            f"students= names {students}, which do not divide among {ranks} ranks; {below} or {above} ranks would do."
        )
    return min(students, ranks)


def _without_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "out"}


def _same_pictures(runs: Mapping[str, Run]) -> None:
    """Refuse to train with ranks that see other data, or another teacher, or from backbones of other patches.

    Raises:
        ConfigError: ``init=`` gives students patches of several sizes.
        RunError: They do.
    """
    told = {name: patch for some in dist.gather({name: run.recipe.backbone.patch for name, run in runs.items()})
            for name, patch in some.items()}  # fmt: skip
    if len(set(told.values())) > 1:
        raise ConfigError(
            f"students start from backbones of patches {', '.join(f'{name}: {patch}' for name, patch in told.items())}, which "
            "those of one teacher share; give init= of one patch size."
        )
    mine = next(iter(runs.values())).identity  # of those of one rank all have the same
    prints = dist.gather((mine["data"], mine["teacher"]))
    other = next((rank for rank, found in enumerate(prints) if found != prints[0]), None)
    if other is not None:
        raise RunError(f"Rank {other} sees other images than rank 0, or another teacher. Start all on the same files.")


def _one_precision(runs: Mapping[str, Run], team: dist.Team, names: Sequence[str]) -> None:
    """Have all students compute in one, whatever each would choose: in another the teacher would say other things.

    Raises:
        ConfigError: As ``agreed``.
    """

    def told() -> dict[str, tuple[Choice, Precision | None]]:
        with dist.within(team):
            return {name: (run.precision, _until_now(run)) for name, run in runs.items()}

    found: dict[str, tuple[Choice, Precision | None]] = {}
    for some in dist.gather(dist.together(told)):
        found = some | found  # what the first rank of a team says
    wish = next(iter(runs.values())).recipe.speed.precision  # of all the same
    choice = dist.together(lambda: agreed({name: found[name] for name in names}, wish))
    for run in runs.values():
        run.precision = choice


def _until_now(run: Run) -> Precision | None:
    """In which a student was trained; None where that is not known, or it was not."""
    latest = Checkpoints(run.out / "checkpoints", keep=run.recipe.plan.checkpoints).latest()
    return latest.facts.get("precision") if latest else None


def agreed(told: Mapping[str, tuple[Choice, Precision | None]], wish: str) -> Choice:
    """The precision of all students: the one they were trained in until now, else the first one's choice; a wish wins.

    Args:
        told: What each would choose, and in which it was trained until now.

    Raises:
        ConfigError: They were trained in several until now, and there is no wish.
    """
    until_now = [(name, before) for name, (_, before) in told.items() if before is not None]
    if wish != "auto" or not until_now:
        return next(iter(told.values()))[0]
    (first, one), *others = until_now
    for name, other in others:
        if other != one:
            raise ConfigError(
                f"students {first} and {name} were trained in {one} and {other} until now, and those of one teacher share "
                f"their precision; give precision={one} or precision={other} for all of them."
            )
    return Choice(one, f"as {first} until now")


def _fewest(runs: Mapping[str, Run], team: dist.Team) -> list[int]:
    """Images that all students compute at once in each stage: as many as the largest of them has room for.

    In other parts they would be none that the teacher could look at for all of them.

    Raises:
        ConfigError: As ``planned``, of any of them.
    """

    def found() -> list[list[int]]:
        with dist.within(team):
            facts = [planned(run.recipe, run.source, run.device, run.precision) for run in runs.values()]
        return [[part.micro_batch for part in each.parts] for each in facts]

    told = dist.gather(dist.together(found))
    return [min(stage) for stage in zip(*(one for some in told for one in some), strict=True)]


def _ends(told: list[list[tuple[str, Pretrained | None, SentinelStop | Interrupted | None]]], names: list[str]) -> Any:
    """What became of all students, by name and in their order, on every rank.

    Raises:
        SentinelStop: One of them or more were stopped.
        Interrupted: Stopped on request.
    """
    found = {name: (done, ended) for group in told for name, done, ended in group}
    for kind in (Interrupted, SentinelStop):
        ended = [f"{name}: {found[name][1]}" for name in names if isinstance(found[name][1], kind)]
        if ended:
            raise kind(" ".join(ended))
    return {name: found[name][0] for name in names}


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
