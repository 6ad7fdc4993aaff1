"""``evaluate``: a frozen backbone becomes scores."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.config import Config, fingerprint, paths, with_settings
from dinoforge.base.errors import ConfigError, DataError, unknown
from dinoforge.base.files import append_line, explained, place_for, put_back, read_lines
from dinoforge.base.hardware import device
from dinoforge.base.home import at_home
from dinoforge.base.interrupt import interruptible
from dinoforge.base.log import say
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.classes import classes_of
from dinoforge.evaluate.evaluation import Needs, Sides
from dinoforge.evaluate.leak import leaked, spared
from dinoforge.evaluate.repeated import measured, seeded
from dinoforge.evaluate.score import Score
from dinoforge.evaluate.several import shows_several
from dinoforge.evaluate.table import EVALUATIONS, SUITES
from dinoforge.features.eyes import Eyes, seen_in
from dinoforge.model.head_files import FACTS as HEAD
from dinoforge.recipes.settle import lines_of
from dinoforge.verbs.among import refuse_among_images
from dinoforge.verbs.describing import describer_of
from dinoforge.verbs.looking import whole
from dinoforge.verbs.manifests import stored_at
from dinoforge.verbs.opening import extraction, opened, told
from dinoforge.verbs.reading import worker_count
from dinoforge.verbs.settings import Settings
from dinoforge.verbs.sides import Named, opened_sides
from dinoforge.verbs.states import beside, maps, named_files, state, unstamped

WITHOUT = "_without_leaks"
"""Behind the name of a score of the images alone that were not seen in training."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a backbone scores."""

    scores: list[Score]
    reused: list[str]
    """Tasks whose scores an earlier start had put down in ``out``."""

    def text(self) -> str:
        """The scores as a table, and below it how each was measured."""
        head = ("task", "score", "value", "95 % interval", "std", "n")
        rows = [head, *(_cells(score) for score in self.scores)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        how = dict.fromkeys(f"{score.task}: {score.protocol}" for score in self.scores)
        return "\n".join([*lines, "", *how])


def _cells(score: Score) -> tuple[str, ...]:
    value = f"{score.value:.4f}" + ("" if score.unit == "fraction" else f" {score.unit}")
    within = "" if score.interval is None else "{:.4f} to {:.4f}".format(*score.interval)
    spread = "" if score.spread is None else f"{score.spread:.4f}"
    better = "" if score.higher_is_better else " (lower is better)"
    return score.task, score.name + better, value, within, spread, f"{score.n:,}"


def evaluate(  # noqa: PLR0913 - the keys of the verb
    *, backbone: str, tasks: str | Sequence[str] = "knn", data: str | None = None, train: str | None = None,
    test: str | None = None, train_rows: str | int | None = None, test_rows: str | int | None = None,
    out: str | None = None, save_heads: str | None = None, features: str | None = None, trained_on: str | None = None,
    descriptor: str | None = None, trust_sha256: str | None = None, precision: str = "auto",
    workers: str | int | None = None, seeds: str | int = 1, **settings: Any,
) -> Evaluated:  # fmt: skip
    """Measure a frozen backbone. Scores are fractions between 0 and 1 unless their unit says otherwise.

    Features of whole images are computed once and kept: a second evaluation of the same images, backbone and precision reads
    none, and one that was interrupted goes on where it was. Maps, correspondence and tracking look at their pictures again.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER, timm:NAME,
            or to compare with, no network: pixels:16, thumbnails of that side, or for maps colours:8, pixels of patches.
        tasks: Names joined by commas, or the name of a suite: TASKS.
        data: Images with splits train (val joins it) and test, or train and val; where there are none every fifth is asked,
            clips and groups whole; retrieval and copies search gallery for query, where there are none each image among all
            others; correspondence and tracking ask test, else val, else all; health takes all; video takes clips.
        train: Labelled images that are learnt from, or the gallery, instead of data.
        test: Images that are asked, together with train.
        train_rows: First so many rows of the one, strewn over a source sorted by class; all if not given.
        test_rows: First so many rows of the other, in the same way; all if not given.
        out: JSON lines file that the scores are appended to. Tasks whose scores are there are not measured again, unless nobody
            can tell whether an image was changed, as on the web.
        save_heads: Folder that trained heads are written to, each into one of its task's name; predict reads them.
        features: Folder that features are kept in [~/.cache/dinoforge/features]; none keeps nothing.
        trained_on: What the backbone was trained on: a folder of curate, a manifest or a run. Images that are asked of which it
            holds copies are counted, and every score is given without them too.
        descriptor: The file or backbone that curate looked for copies with, where it had one.
        trust_sha256: SHA-256 of that file where it is TorchScript, a program that is run then.
        precision: auto, fp32 or bf16; auto stays with that of features that are kept.
        workers: Processes that look for such copies; all cores by default.
        seeds: How many seeds each task is measured with that draws anything, from its own on; scores are their mean, std how
            far they lie apart.
    """
    names = task_names(tasks)
    configs = _task_settings(names, settings)
    named = Named(data, train, test, _rows("train_rows", train_rows), _rows("test_rows", test_rows))
    named.check()
    count = _seeds(seeds, names, configs)
    if out is not None:
        _check_out(Path(out))
    check = _leak_check(trained_on, {"descriptor": descriptor, "trust_sha256": trust_sha256, "workers": workers})
    folder = _folder(features)
    refuse_among_images(named, configs, features=features, save_heads=save_heads)
    heads = _head_folders(names, save_heads)
    chosen = not (isinstance(tasks, str) and tasks.strip() in SUITES)
    sides = _all_sides(named, names, chosen=chosen)
    for name in names if chosen else ():
        if (look := EVALUATIONS[name].check) is not None:
            look(sides[EVALUATIONS[name].needs], configs[name])  # before hours go into another task
    found = opened(backbone)
    found = dataclasses.replace(found, known=found.fingerprint)  # a digest of all weights, asked for by every score
    eyes = Eyes(found, extraction(precision, seen_in(folder, found, device("auto"))), folder=folder, on_broken=told)
    scores, reused = list[Score](), list[str]()
    with interruptible(_what_is_kept(out, folder)):
        for name in [one for one in names if EVALUATIONS[one].needs in sides]:
            needs = EVALUATIONS[name].needs
            try:
                mine = _one(
                    eyes, sides[needs], name, configs[name], check=check, out=out, save=heads.get(name), seeds=count
                )
            except DataError as error:
                if chosen:
                    raise
                say(f"Left out {name}: {error}")
                continue
            scores += mine.scores
            reused += mine.reused
    return Evaluated(scores, reused)


def _what_is_kept(out: str | None, folder: Path | None) -> str:
    """What an interrupted evaluation leaves, in words."""
    if out is None and folder is None:
        return "nothing is kept, for that needs out= or features="
    scores = f"scores so far are in {out}" if out else "scores are not kept without out="
    return scores + (", features of whole images are kept" if folder else "")


_NAMES = "".join(
    [", ".join(EVALUATIONS), *(f"\n{' ' * 12}{name} stands for {', '.join(some)}" for name, some in SUITES.items())]
)
evaluate.__doc__ = (evaluate.__doc__ or "").replace("TASKS", _NAMES)


def _head_folders(names: Sequence[str], save_heads: str | None) -> dict[str, Path]:
    """Where the heads of the tasks that train some are written to.

    Raises:
        ConfigError: No task trains one, or a folder of a task's name holds something else.
        RunError: There is a file, or nothing can be written there.
    """
    if save_heads is None:
        return {}
    found = {name: at_home(save_heads) / name for name in names if EVALUATIONS[name].heads}
    if not found:
        training = ", ".join(name for name, evaluation in EVALUATIONS.items() if evaluation.heads)
        raise ConfigError(
            f"save_heads={save_heads} has no effect: none of {','.join(names)} trains a head that is kept; {training} do."
        )
    with explained(Path(save_heads)):
        at_home(save_heads).mkdir(parents=True, exist_ok=True)
        for path in found.values():
            put_back(path)
            if path.exists() and not (path / HEAD).exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(f"save_heads={save_heads}: {path} exists and holds no head; give another folder.")
    return found


def _leak_check(trained_on: str | None, words: Mapping[str, Any]) -> Callable[[Source], np.ndarray] | None:
    """What says which images of a source were seen in training; None where nobody says what was.

    Raises:
        ConfigError: There is nothing there, or settings of what is not looked for.
    """
    if trained_on is None:
        for name, value in words.items():
            if value is not None:
                raise ConfigError(f"{name}={value} has no effect without trained_on=.")
        return None
    count = worker_count(words["workers"])
    path, stored = stored_at("trained_on", Path(trained_on))
    finds = describer_of(path, stored, words["descriptor"], trust_sha256=words["trust_sha256"], precision="auto")

    known = dict[str, np.ndarray]()

    def check(asked: Source) -> np.ndarray:
        key = f"{asked.address} {asked.fingerprint}"
        if key not in known:
            known[key] = leaked(asked, stored, embed=None if finds is None else finds.embed, workers=count)
            say(f"{int(known[key].sum()):,} of {len(asked):,} images of {asked.address} were seen in training.")
        return known[key]

    return check


def _one(
    eyes: Eyes,
    sides: Sides,
    name: str,
    config: Config,
    *,
    check: Callable[[Source], np.ndarray] | None,
    out: str | None,
    save: Path | None,
    seeds: int,
) -> Evaluated:
    """The scores of one task; those that are put down already are taken from there, unless its head is to be written anew."""
    data = sides.known.fingerprint if sides.itself else f"{sides.known.fingerprint} {sides.asked.fingerprint}"
    leaks = None if check is None else check(sides.asked)
    key = fingerprint(
        {"backbone": eyes.backbone.fingerprint, "preprocessing": eyes.backbone.preprocessing.model_dump(mode="json"),
         "precision": eyes.how.precision, "data": [state(sides.known), state(sides.asked)], "itself": sides.itself,
         "leaks": None if leaks is None else leaks.tolist(), "task": name, "config": config.model_dump(mode="json"),
         "files": named_files(name, config) | beside(sides, name), **({} if out is None else maps(sides, name)),
         **({"seeds": seeds} if seeds > 1 and seeded(EVALUATIONS[name], config) else {})}
    )  # fmt: skip
    before = _put_down(out, key, head=None if save is None else _mark(save))
    if before and (silent := unstamped(sides, name, config)):
        say(f"{name}: {silent} does not tell when its images were changed; the scores in {out} are not taken over.")
        before = []
    if before:
        say(f"{name}: {len(before)} scores are in {out} from an earlier start.")
        return Evaluated(before, [name])
    what = "clips" if EVALUATIONS[name].needs == "clips" else "images"
    say(f"{name}: {len(sides.known):,} {what} known, {len(sides.asked):,} asked.")
    found = measured(EVALUATIONS[name], eyes, sides, config, seeds=seeds, save=save)
    if leaks is not None:
        found += _without(eyes, sides, name, config, leaks, seeds=seeds)
    found = [dataclasses.replace(score, backbone=eyes.backbone.fingerprint, data=data) for score in found]
    more = {} if save is None else {"head": _mark(save)}
    for score in found if out else []:
        append_line(Path(str(out)), {**dataclasses.asdict(score), "key": key, "of": len(found), **more})
    return Evaluated(found, [])


def _mark(save: Path) -> str:
    """The fingerprint of the head in a folder; empty where there is none."""
    try:
        return str(json.loads((save / HEAD).read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _without(eyes: Eyes, sides: Sides, name: str, config: Config, leaks: np.ndarray, *, seeds: int) -> list[Score]:
    """The scores without leaked images, where there are some and others, and the share of them."""
    how = "copies, exact or near, among the images that were trained on"
    share = Score(name, "leaked", float(leaks.mean()), "fraction", False, len(leaks), how)
    if not leaks.any():
        return [share]
    if EVALUATIONS[name].once:
        say(f"{name} is not given without the leaked images: it would take as long again.")
        return [share]
    try:
        rest = measured(EVALUATIONS[name], eyes, spared(sides, leaks), config, seeds=seeds)
    except DataError as error:  # what is left may be too little
        say(f"{name} is not given without the leaked images: {error}")
        return [share]
    return [*(dataclasses.replace(score, name=score.name + WITHOUT) for score in rest), share]


def _check_out(path: Path) -> None:
    """See that scores can be put down there.

    Raises:
        ConfigError: The file holds something else.
        RunError: It cannot be written.
    """
    place_for(path)
    with explained(path):
        empty = not path.stat().st_size
    if not empty and not any("key" in row for row in read_lines(path)):
        with explained(path), path.open("rb") as file:
            cut_off = file.read(9) == b'{"task": '
        if not cut_off:
            raise ConfigError(f"out={path} holds something else than scores; give another file.")


def _put_down(out: str | None, key: str, *, head: str | None) -> list[Score]:
    """The scores of a key, where all of them are there.

    Args:
        head: Fingerprint of the head that must be theirs; None: of any, or of none.
    """
    if out is None or not Path(out).exists():
        return []
    rows = [row for row in read_lines(Path(out)) if row.get("key") == key and head in {None, row.get("head")}]
    if not rows or len(rows) < rows[0]["of"]:
        return []
    names = [field.name for field in dataclasses.fields(Score)]
    found = []
    for row in rows[-rows[0]["of"] :]:
        value = {name: row[name] for name in names}
        value["value"] = math.nan if row["value"] is None else row["value"]  # JSON has none that are not finite
        value["interval"] = None if row["interval"] is None or None in row["interval"] else tuple(row["interval"])
        found.append(Score(**value))
    return found


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """The tasks of a suite, or those that are named, each once.

    Raises:
        ConfigError: No such task, or none.
    """
    if isinstance(tasks, str) and tasks.strip() in SUITES:
        return list(SUITES[tasks.strip()])
    words = tasks.split(",") if isinstance(tasks, str) else tasks
    names = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    for name in names:
        if name in SUITES:
            raise ConfigError(f"tasks={name} is a suite and stands alone; it is {','.join(SUITES[name])}.")
        if name not in EVALUATIONS:
            raise unknown("task", name, [*EVALUATIONS, *SUITES])
    if not names:
        raise ConfigError(f"tasks= is empty; it takes {', '.join(EVALUATIONS)}, or {' or '.join(SUITES)}.")
    return names


def _all_sides(named: Named, names: Sequence[str], *, chosen: bool) -> dict[Needs, Sides]:
    """The images for every way of asking that the tasks have.

    Args:
        chosen: Whether the tasks were named one by one: then each must have what it needs. Of a suite, those run that do.

    Raises:
        DataError: What a task needs is not there.
    """
    found = dict[Needs, Sides]()
    for needs in dict.fromkeys(EVALUATIONS[name].needs for name in names):
        try:
            found[needs] = opened_sides(named, needs)
            several = (all if chosen else any)(
                EVALUATIONS[name].several for name in names if EVALUATIONS[name].needs == needs
            )
            if needs in {"classes", "clips"} and not (several and shows_several(found[needs].known)):
                classes_of(found[needs].known, found[needs].asked)  # said before any feature is computed
        except DataError as error:
            if chosen:
                raise
            left = [name for name in names if EVALUATIONS[name].needs == needs]
            say(f"Left out {', '.join(left)}: {error}")
    if not found:
        raise DataError("none of the tasks of the suite can be asked of these images.")
    if named.train_rows is not None and all(sides.itself for sides in found.values()):
        raise ConfigError(f"train_rows={named.train_rows} has no effect: {', '.join(names)} look at one set of images.")
    return found


def _task_settings(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Config]:
    """The config of every task, from settings such as ``knn.neighbours``."""
    configs: dict[str, Config] = {name: EVALUATIONS[name].config() for name in names}
    allowed = [f"{name}.{field}" for name in names for field in EVALUATIONS[name].config.model_fields]
    for path in settings:
        if ".".join(path.split(".")[:2]) not in allowed:
            task = path.partition(".")[0]
            if task in EVALUATIONS and task not in names:
                raise ConfigError(f"{path} has no effect: tasks={','.join(names)} does not name {task}.")
            raise unknown("setting", path, [*allowed, *inspect.signature(evaluate).parameters])
    for name in names:
        own = {p.partition(".")[2]: value for p, value in settings.items() if p.partition(".")[0] == name}
        try:
            configs[name] = with_settings(configs[name], own)
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from None
    return configs


def _rows(name: str, rows: str | int | None) -> int | None:
    if rows is None:
        return None
    count = whole(name, rows)
    if count < 1:
        raise ConfigError(f"{name} must be at least 1; got {count}.")
    return count


def _seeds(seeds: str | int, names: Sequence[str], configs: Mapping[str, Config]) -> int:
    count = whole("seeds", seeds)
    if count < 1:
        raise ConfigError(f"seeds must be at least 1; got {count}.")
    if count > 1 and not any(seeded(EVALUATIONS[name], configs[name]) for name in names):
        raise ConfigError(f"seeds={count} has no effect: nothing is drawn in {', '.join(names)}.")
    for name in names:
        for field in EVALUATIONS[name].of_one_seed if count > 1 else ():
            if (value := getattr(configs[name], field)) is not None:
                raise ConfigError(f"{name}.{field}={value} has pictures of one seed; leave out seeds={count}.")
    return count


def _folder(features: str | None) -> Path | None:
    """Where features are kept."""
    if features == "none":
        return None
    if features is not None:
        path = at_home(features)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"features={features} is a file; give a folder, or none.")
        return path
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return at_home(cache) / "dinoforge" / "features"


def _described(words: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    own = {
        name: parameter.default
        for name, parameter in inspect.signature(evaluate).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    names = task_names(words.get("tasks", own["tasks"]))
    configs = _task_settings(names, {name: value for name, value in words.items() if name not in own})
    found = {
        name: (words.get(name, default), "command line" if name in words else "default")
        for name, default in own.items()
    }
    for name in names:
        for path, value in paths(configs[name], f"{name}."):
            found[path] = (value, "command line" if path in words else "default")
    return found


def _lines() -> Iterator[str]:
    for name, evaluation in EVALUATIONS.items():
        yield from lines_of(evaluation.config(), f"{name}.")


SETTINGS = Settings(_described, _lines)
