"""The small-data recipes, from scratch and by seed: their curves, as docs/records.md has them.

``python bench/small_data.py OUT [SIZE …] [seeds=0,1,2] [SETTING=VALUE …]``: SIZE is one of TASKS, all where none is named;
other settings are those of `pretrain`, but for the task's own, and hold for every run. The same command goes on where it
stopped, and trains nothing twice. OUT holds a folder for every size, with one for every seed and ``table.md``: k-NN of every
probe, and of thumbnails, which learn nothing, by the same vote.

Exit status: 0 when all is done, 75 when it was interrupted and the same command goes on, 1 when something is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import dinoforge
from dinoforge.base.errors import ConfigError, Interrupted, SentinelStop, UserError, unknown
from dinoforge.base.files import read_lines, write_text
from dinoforge.base.hardware import cores, processor, versions
from dinoforge.base.provenance import source_mark
from dinoforge.cli import parse

SHARED = Path(__file__).parents[2] / "shared" / "data"
NEIGHBOURS = 10
FIXED = {"recipe", "data", "probe", "seed", "out", "config"}
"""What a task says of a run, or its place."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on and who judges it."""

    recipe: str
    data: str
    probe: str
    """The larger toy world holds the smaller one, and its test individuals are not among those that are trained on."""
    train_rows: int
    """That vote."""
    test_rows: int

    def words(self) -> dict[str, Any]:
        """As settings of `pretrain`."""
        return {
            "recipe": self.recipe, "data": self.data, "probe": self.probe, "probe.neighbours": NEIGHBOURS,
            "probe.train_rows": self.train_rows, "probe.test_rows": self.test_rows,
        }  # fmt: skip

    def floor(self) -> float:
        """k-NN accuracy of thumbnails of 16 pixels, by the same vote."""
        found = dinoforge.evaluate(
            backbone="pixels:16", tasks="knn", data=self.probe, train_rows=self.train_rows, test_rows=self.test_rows,
            **{"knn.neighbours": NEIGHBOURS},
        )  # fmt: skip
        return next(score.value for score in found.scores if score.name == "accuracy")


TASKS = {
    "1k": Task("vit_micro.toy", "toy://species?images=1000", "toy://species?images=4000", 2_000, 600),
    "2k": Task("vit_tiny.photos", str(SHARED / "caltech101"), str(SHARED / "caltech101"), 20_000, 2_000),
    "50k": Task("vit_tiny.small_images", str(SHARED / "cifar10"), str(SHARED / "cifar10"), 20_000, 2_000),
}
"""By how many pictures there are."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One run."""

    seed: int
    knn: dict[int, float]
    """By images seen."""
    seconds: float


def trained(task: Task, seed: int, folder: Path, given: dict[str, Any]) -> Curve:
    """Train one seed, go on with it, or read what it came to."""
    done = dinoforge.pretrain(**{**task.words(), **given}, seed=seed, out=folder)
    rows = [row for row in read_lines(folder / "metrics.jsonl") if "knn" in row]
    return Curve(seed, {row["images"]: row["knn"] for row in rows}, done.seconds)


def table(name: str, task: Task, curves: Sequence[Curve], floor: float, typed: str, mark: str) -> str:
    """Markdown: a row a seed, a column a probe; below it mean and spread of the ends, the floor, the minutes, the machine."""
    seen = sorted({images for curve in curves for images in curve.knn})
    settings = f"`{task.recipe}`" + (f" with `{typed}`" if typed else "")
    lines = [
        f"**{name}**, {settings}: {NEIGHBOURS} neighbours, of {task.train_rows:,} at most; at most {task.test_rows:,} asked.",
        "",
        "| images seen | " + " | ".join(f"{images:,}" for images in seen) + " |",
        "|---" * (len(seen) + 1) + "|",
    ]
    for curve in curves:
        cells = [f"{curve.knn[images]:.3f}" if images in curve.knn else "" for images in seen]
        lines.append(f"| seed {curve.seed} | " + " | ".join(cells) + " |")
    ends = [curve.knn[max(curve.knn)] for curve in curves]
    facts = [f"ends at {mean(ends):.4f}" + (f" ± {stdev(ends):.4f}" if len(ends) > 1 else "")]
    facts.append(f"thumbnails {floor:.3f}")
    facts.append(", ".join(f"{curve.seconds / 60:.0f}" for curve in curves) + " minutes")
    of = ", ".join(f"{name} {version}" for name, version in versions().items())
    machine = f"{cores()} cores of {processor()}; {of}; source {mark}; {datetime.now(UTC):%Y-%m-%d}."
    return "\n".join([*lines, "", "; ".join(facts) + ".", "", machine]) + "\n"


def main(typed: Sequence[str]) -> int:
    """From the command line."""
    places, mark = [word for word in typed if "=" not in word], source_mark()
    try:
        given = parse([word for word in typed if "=" in word])
        asked = given.pop("seeds", "0,1,2").split(",")
        if not places or not all(seed.isdecimal() for seed in asked) or len(set(asked)) < len(asked):
            raise ConfigError(
                "It is written: python bench/small_data.py OUT [SIZE ...] [seeds=0,1,2] [SETTING=VALUE ...]."
            )
        for name in places[1:]:
            if name not in TASKS:
                raise unknown("size", name, list(TASKS))
        for key in given:
            if key in FIXED or key.startswith(("probe.", "data.source")):
                raise ConfigError(f"The task fixes {key}; other settings are yours.")
        words = " ".join(f"{key}={value}" for key, value in given.items())
        for name in places[1:] or TASKS:
            task, out = TASKS[name], Path(places[0]) / name
            curves = [trained(task, int(seed), out / f"seed{seed}", given) for seed in asked]
            # A row for every seed that was ever trained here: their runs lie there, and refuse other settings.
            done = {one.parent.name.removeprefix("seed") for one in out.glob("seed*/summary.json")}
            others = sorted(int(seed) for seed in done - set(asked) if seed.isdecimal())
            curves += [trained(task, seed, out / f"seed{seed}", given) for seed in others]
            write_text(out / "table.md", table(name, task, curves, task.floor(), words, mark))
            print((out / "table.md").read_text(encoding="utf-8"))
    except Interrupted as stop:
        print(f"small-data: {stop}", file=sys.stderr)
        return 75
    except (UserError, SentinelStop) as error:
        print(f"small-data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
