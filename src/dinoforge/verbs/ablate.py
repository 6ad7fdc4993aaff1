"""``ablate``: a study of the paper in miniature, from its settings to its table and its plot."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoforge.base.config import differences, science
from dinoforge.base.errors import ConfigError, Interrupted, RunError, SentinelStop, unknown
from dinoforge.base.files import place_for, read_lines, write_json, write_lines, write_text
from dinoforge.base.hardware import choose_precision, cores, device, processor, versions
from dinoforge.base.interrupt import interruptible
from dinoforge.base.lock import locked
from dinoforge.base.log import say
from dinoforge.base.provenance import source_mark
from dinoforge.recipes.settle import settle
from dinoforge.recipes.studies import STUDIES
from dinoforge.recipes.study import FORMS, Arm, Column, Sign, Stage, Study, filled
from dinoforge.report.study import Panel, drawn
from dinoforge.runs import pretrain
from dinoforge.verbs.curate import curate
from dinoforge.verbs.distil import distil
from dinoforge.verbs.evaluate import evaluate
from dinoforge.verbs.looking import whole

_VERBS: dict[str, Callable[..., Any]] = {"curate": curate, "pretrain": pretrain, "distil": distil}


@dataclass(frozen=True, slots=True)
class Row:
    """An arm of one seed."""

    arm: str
    seed: int
    scores: dict[str, float]
    """By column; NaN where there is none."""
    date: str
    """When it was judged."""
    machine: str
    """Where, and with what."""
    stopped: str = ""
    """What the sentinel said where it stopped a run of the arm."""


@dataclass(frozen=True, slots=True)
class Found:
    """A sign, and what was seen of it."""

    sign: Sign
    difference: float
    """Mean over seeds of the better arm's score less the worse one's; of two that are to be the same, the largest share by
    which they differ."""
    seeds: int
    """In how many seeds it holds."""
    holds: bool


@dataclass(frozen=True, slots=True)
class Ablated:
    """What a study came to."""

    study: str
    form: str
    rows: list[Row]
    signs: list[Found]
    table: str
    """The file with the table in Markdown, as docs/records.md has it."""
    plot: str

    def text(self) -> str:
        """The table."""
        return Path(self.table).read_text(encoding="utf-8")


def ablate(*, study: str, out: str, form: str = "quick", arms: str = "", longer: str | int = 1) -> Ablated:
    """Run a study of the paper in miniature: its arms with several seeds, judged alike, in a table beside the paper's numbers.

    What is run is written down before the first run (study.json). The same command goes on where it stopped. An arm that the
    sentinel stops has no score; the others go on.

    Args:
        study: STUDIES.
        out: Folder of the study: study.json, precision.json, a folder of runs for every seed, rows.jsonl, table.md, plot.svg.
        form: quick: one seed, some minutes on two cores, to see it run. record: three seeds, hours. gpu: larger, for one GPU.
        arms: Names of two or more arms, with commas between; empty: all.
        longer: Times as many images seen as the form says.
    """
    if study not in STUDIES:
        raise unknown("study", study, list(STUDIES))
    if form not in FORMS:
        raise unknown("form", form, list(FORMS))
    times, names = whole("longer", longer), [name.strip() for name in arms.split(",") if name.strip()]
    if arms and not names:
        raise ConfigError(f"arms={arms!r} names no arm; leave it out for all.")
    asked, folder = STUDIES[study]().rerun(arms=names, longer=times), Path(out)
    typed = (
        f"study={study} form={form}" + (f' arms="{arms}"' if arms else "") + (f" longer={times}" if times > 1 else "")
    )
    mark = source_mark()  # of what runs, whatever is saved meanwhile
    with locked(folder):
        _put_down(asked, form, folder / "study.json")
        precision = _precision(folder / "precision.json")
        rows = list[Row]()
        for number, (seed, arm) in enumerate(asked.pairs(form)):
            say(f"{study}, seed {seed}: {arm.name} ({number + 1} of {len(asked.arms) * len(asked.forms[form].seeds)})")
            rows.append(_row(asked, form, arm, seed=seed, folder=folder, precision=precision, mark=mark))
        write_lines(folder / "rows.jsonl", [asdict(row) for row in rows])
        signs = [seen(sign, asked, rows) for sign in asked.signs]
        write_text(folder / "plot.svg", drawn(asked.question, _panels(asked, rows)))
        write_text(folder / "table.md", written(asked, typed, rows, signs))
    return Ablated(study, form, rows, signs, str(folder / "table.md"), str(folder / "plot.svg"))


ablate.__doc__ = (ablate.__doc__ or "").replace(
    "STUDIES", "; ".join(f"{name}: {function().question}" for name, function in STUDIES.items())
)


def _put_down(study: Study, form: str, path: Path) -> None:
    """Write down what will be run, or see that it is what was written down before.

    With every setting of every training, for a recipe may be another one when the same command goes on.

    Raises:
        ConfigError: There is another study, or the same with other settings.
        RunError: There is something else.
    """
    said = json.loads(json.dumps({"form": form, "study": asdict(study), "settings": _settings(study, form)}))
    if not path.exists():
        if any(not one.name.startswith(".") for one in path.parent.iterdir()):
            raise RunError(f"out={path.parent} holds other files and no {path.name}; give another out.")
        write_json(path, said)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        arms = [[arm["name"] for arm in one["study"]["arms"]] for one in (before, said)]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not what ablate writes there; give another out.") from None
    if arms[0] != arms[1]:
        changed = f"arms {', '.join(arms[0])} -> {', '.join(arms[1])}"
    elif before != said:
        changed = "; ".join(line if len(line) < 200 else f"{line[:196]} ..." for line in differences(before, said)[:3])
    else:
        return
    raise ConfigError(f"{path.parent} holds another study ({changed}); give another out.")


def _settings(study: Study, form: str) -> dict[str, Any]:
    """All that the trainings of a study depend on, by the stage; of the form's first seed."""
    known = {**study.forms[form].words, "seed": study.forms[form].seeds[0], "folder": "{folder}"}
    return {
        stage.name: science(settle(filled(stage.words, known)).recipe)
        for arm in study.arms
        for stage in arm.stages
        if stage.verb != "curate"
    }


def _precision(path: Path) -> str:
    """What all arms are trained in that say nothing: chosen once, for the choice goes by a measurement that load may sway."""
    if not path.exists():
        if any(path.parent.glob("seed[0-9]*")):
            raise RunError(
                f"{path} is not there, so it is not known what the runs beside it are trained in; give another out."
            )
        write_json(path, {"precision": choose_precision("auto", device("auto")).precision})
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not what ablate writes there; give another out.") from None


def _row(study: Study, form: str, arm: Arm, *, seed: int, folder: Path, precision: str, mark: str) -> Row:
    """Do an arm's stages, as far as they are not done, and judge its backbone; once.

    Args:
        precision: Of stages that name none.
        mark: Of the source that does it.
    """
    place = folder / f"seed{seed}"
    known_already = place / "rows" / f"{arm.stages[-1].name}.json"
    with suppress(OSError, ValueError, TypeError, LookupError):  # none, or not one that was written here
        row = json.loads(known_already.read_text(encoding="utf-8"))
        scores = {name: math.nan if one is None else one for name, one in row["scores"].items()}
        return Row(**row | {"scores": scores})
    known = {**study.forms[form].words, "seed": seed, "folder": str(place)}
    run, stopped = place, ""
    for stage in arm.stages:
        run, words = place / stage.name, filled(stage.words, known)
        if stage.verb != "curate":
            words.setdefault("precision", precision)
        try:
            _do(stage, words | {"out": str(run)})
        except SentinelStop as stop:
            stopped = str(stop)
            say(f"{arm.name}, seed {seed}, has no score: {stopped}")
            break
    kept = place / "scores" / f"{arm.stages[-1].name}.jsonl"
    place_for(kept)
    found = {
        column.name: math.nan
        if stopped
        else _score(column, run, filled({**column.words, **_own(arm, column)}, known), scores=kept)
        for column in study.columns
    }
    machine = f"{_machine(words.get('device'))}, {words.get('precision', precision)}, source {mark}"
    row = Row(arm.name, seed, found, f"{datetime.now(UTC):%Y-%m-%d}", machine, stopped)
    write_json(known_already, asdict(row))
    return row


def _own(arm: Arm, column: Column) -> dict[str, Any]:
    """The arm's settings that are of the column's task."""
    return {key: value for key, value in arm.judged.items() if key.partition(".")[0] == column.task}


def _do(stage: Stage, words: Mapping[str, Any]) -> None:
    """One command, here or by several processes.

    Raises:
        UserError: What the command raises.
        SentinelStop: The sentinel stopped it.
    """
    if stage.ranks == 1:
        _VERBS[stage.verb](**words)
        return
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(stage.ranks), "-m", "dinoforge"]
    command = [sys.executable, *start, stage.verb, *(f"{key}={value}" for key, value in words.items())]
    say(shlex.join(command))
    with interruptible("the ranks write a checkpoint"), subprocess.Popen(command) as ranks:
        try:
            status = ranks.wait()
        except Interrupted:
            # Asked once more, this process would end before its ranks, which then write where the next start reads.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            ranks.terminate()
            ranks.wait()
            raise
    if status:
        raise RunError(f"{stage.verb} on {stage.ranks} ranks ended with {status}; what it said stands above.")


def _score(column: Column, run: Path, words: dict[str, Any], *, scores: Path) -> float:
    """Of an arm in a column.

    Raises:
        UserError: What ``evaluate`` raises, or that it gives no such score.
    """
    if column.task == "run":
        return _recorded(column.score, run)
    words |= {"features": str(scores.parents[1] / "features"), "out": str(scores), "precision": "fp32"}
    found = evaluate(backbone=str(run), tasks=column.task, **words).scores
    for score in found:
        if score.name == column.score:
            return score.value
    raise RunError(f"{column.task} of {run} has no {column.score}; it has {', '.join(score.name for score in found)}.")


def _recorded(what: str, run: Path) -> float:
    """What a run wrote down of itself: the loss of its last step, or the operations of its plan."""
    if what == "loss":
        return float(read_lines(run / "metrics.jsonl")[-1]["losses"]["total"])
    return float(json.loads((run / "plan.json").read_text(encoding="utf-8"))["flops"])


def values(rows: list[Row], arm: str, column: str) -> np.ndarray:
    """Scores of an arm in a column, ``[seeds]``."""
    return np.asarray([row.scores[column] for row in rows if row.arm == arm])


def seen(sign: Sign, study: Study, rows: list[Row]) -> Found:
    """Whether a sign is as expected: by the mean over seeds; two that are to be the same, in every seed.

    Seeds in which one of the two has no score do not count for the mean; that two are the same they leave open, so it is not.
    """
    better, worse = (values(rows, arm, sign.column) for arm in (sign.better, sign.worse))
    both = np.isfinite(better) & np.isfinite(worse)
    if not both.any():
        return Found(sign, math.nan, 0, holds=False)
    if sign.within is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = np.where(better == worse, 0, np.abs(better - worse) / np.abs(worse))
        same = apart <= sign.within
        return Found(sign, float(apart[both].max()), int(same.sum()), bool(same.all()))
    (column,) = (one for one in study.columns if one.name == sign.column)
    difference = (better - worse)[both]
    ahead = difference if column.higher_is_better else -difference
    return Found(sign, float(difference.mean()), int((ahead > 0).sum()), bool(ahead.mean() > 0))


def written(study: Study, typed: str, rows: list[Row], signs: list[Found]) -> str:
    """The study as docs/records.md has it: command, machine, table with all seeds, signs.

    Args:
        typed: The settings of the command, but for ``out``.
    """
    seeds = list(dict.fromkeys(row.seed for row in rows))
    papers = list(dict.fromkeys(name for arm in study.arms for name in arm.paper))
    dates, machines = (list(dict.fromkeys(getattr(row, what) for row in rows)) for what in ("date", "machine"))
    head = ["arm", *(column.name for column in study.columns), *(f"paper: {name}" for name in papers)]
    lines = [
        f"## {study.question} (`{study.name}`, {', '.join(dates)})",
        "",
        f"`dinoforge ablate {typed} out=DIR`; {'; '.join(machines)}. Seeds "
        f"{', '.join(map(str, seeds))}: mean ± standard deviation (each). The paper: {study.paper}.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for arm in study.arms:
        cells = [_cell(values(rows, arm.name, column.name)) for column in study.columns]
        cells += [f"{arm.paper[name]:g}" if name in arm.paper else "" for name in papers]
        lines.append(f"| {' | '.join([arm.name, *cells])} |")
    lines += ["", *(f"- {_told(one, len(seeds))}" for one in signs)]
    lines += [f"- {row.arm}, seed {row.seed}, has no score: {row.stopped}" for row in rows if row.stopped]
    return "\n".join(lines) + "\n"


def _panels(study: Study, rows: list[Row]) -> list[Panel]:
    return [
        Panel(column.name, {arm.name: _there(values(rows, arm.name, column.name)) for arm in study.arms})
        for column in study.columns
    ]


def _there(found: np.ndarray) -> list[float]:
    return [float(value) for value in found[np.isfinite(found)]]


def _machine(device: str | None) -> str:
    known = versions()
    where = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available() and device != "cpu"
        else f"{cores()} cores of {processor()} ({known['cpu']})"
    )
    return f"{where}, Python {known['python']}, torch {known['torch']}"


def _cell(found: np.ndarray) -> str:
    each = [f"{value:.4g}" if math.isfinite(value) else "none" for value in found]
    there = found[np.isfinite(found)]
    if len(found) == 1 or not len(there):
        return ", ".join(each)
    spread = f" ± {there.std(ddof=1):.2g}" if len(there) > 1 else ""
    return f"{there.mean():.4g}{spread} ({', '.join(each)})"


def _told(found: Found, seeds: int) -> str:
    sign = found.sign
    verdict = "as expected" if found.holds else "NOT as expected"
    if sign.within is not None:
        return (
            f"{sign.better} and {sign.worse}, {sign.column}: {verdict}, they differ by {found.difference:.2g} of it at most "
            f"(the same within {sign.within:g})."
        )
    return (
        f"{sign.better} over {sign.worse}, {sign.column}: {verdict}, by {found.difference:+.4g} on average, in {found.seeds} "
        f"of {seeds} seeds."
    )
