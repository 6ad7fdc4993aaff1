"""What the folder of a run says of it, whatever state it was left in. Reads only; files may be missing or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Float

from dinoforge.base.errors import RunError
from dinoforge.base.lock import in_use

State = Literal["finished", "running", "interrupted", "stopped", "crashed", "not started"]

_LARGEST = 1e30
"""Larger numbers are taken for damage: they cannot be drawn."""
_NESTED = ("losses", "gradient_norms", "vitals")
BASELINES = ("knn_pixels", "knn_histogram", "knn_untrained")
"""k-NN accuracies that the trained one is compared with."""


@dataclass(frozen=True, slots=True)
class Account:
    """Facts of one run."""

    folder: Path
    state: State
    step: int
    """Last step that was written down."""
    steps: int | None
    """Steps that were planned."""
    series: dict[str, Float[np.ndarray, " rows"]]
    """Columns of metrics.jsonl, ``losses.total`` for nested ones; NaN where a row lacks one. ``step`` is always there."""
    settings: dict[str, Any]
    """config.yaml, read."""
    config: str
    """config.yaml, as it is."""
    apart: frozenset[int]
    """Steps at which quality was measured otherwise than at last, of other images or at another size: not to be compared."""
    run: dict[str, Any]
    summary: dict[str, Any]
    plan: dict[str, Any]
    """What was predicted: plan.json."""
    curation: dict[str, Any]
    baselines: dict[str, float]
    events: list[str]
    quarantine: list[dict[str, str]]
    backbone: dict[str, Any]
    """backbone.json of the kept backbone."""

    def setting(self, path: str) -> Any:
        """A setting by its dotted path; None where config.yaml does not have it."""
        here: Any = self.settings
        for name in path.split("."):
            here = here.get(name) if isinstance(here, Mapping) else None
        return here

    def points(self, name: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Steps and values of one column where it has a value."""
        values = self.series.get(name)
        if values is None:
            return np.zeros(0), np.zeros(0)
        there = np.isfinite(values)
        return self.series["step"][there], values[there]

    def compared(self, name: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The same of a measure of quality, as far as it was measured as at last."""
        steps, values = self.points(name)
        alike = ~np.isin(steps, [*self.apart])
        return steps[alike], values[alike]

    @property
    def seconds(self) -> float | None:
        """Seconds of training: as the run says, else by the rates that it wrote down."""
        said = number(self.summary.get("seconds"))
        if math.isfinite(said):
            return said
        batches, rates = self._batches(), self.series.get("images_per_second", np.zeros(len(self.series["step"])))
        there = (rates > 0) & (batches > 0)
        return float((batches[there] / rates[there]).sum()) if there.any() else None

    @property
    def images(self) -> float:
        """Images seen until the last step; NaN where that is not known."""
        return float(self._images()[-1]) if self.step and len(self.series["step"]) else self.step * self._batch

    @property
    def phase(self) -> int | None:
        """Steps before the high-resolution phase; None without one."""
        if not isinstance(self.setting("high_resolution"), Mapping):
            return None
        return _steps_of(self.setting("plan"), self.run)

    @property
    def _batch(self) -> float:
        return number(self.setting("plan.batch"))

    def _images(self) -> Float[np.ndarray, " rows"]:
        """Images seen until each row: as it says, else by the batch."""
        said = self.series.get("images", np.full(len(self.series["step"]), math.nan))
        return np.where(np.isfinite(said), said, self.series["step"] * self._batch)

    def _batches(self) -> Float[np.ndarray, " rows"]:
        """Images of the step of each row."""
        steps, images = (np.diff(values, prepend=0) for values in (self.series["step"], self._images()))
        return np.divide(images, steps, out=np.zeros_like(images), where=steps > 0)


def read_account(folder: Path) -> Account:
    """Everything that is known of a run.

    Raises:
        RunError: No such folder, or it holds no run.
    """
    if not folder.is_dir():
        raise RunError(f"run={folder} does not exist; give the folder that pretrain wrote (its out=).")
    if not any((folder / name).is_file() for name in ("run.json", "metrics.jsonl")):
        raise RunError(f"run={folder} holds no run: it has neither run.json nor metrics.jsonl; give pretrain's out=.")
    config = _text(folder / "config.yaml")
    settings, summary, run = _settings(config), _facts(folder / "summary.json"), _facts(folder / "run.json")
    series = _series(folder / "metrics.jsonl")
    saved, events = _newest_checkpoint(folder / "checkpoints"), list(_rows(folder / "events.jsonl"))
    step = int(series["step"][-1]) if len(series["step"]) else 0
    apart = _apart(summary.get("history") or saved.get("history"))
    found: dict[str, Any] = {
        "folder": folder, "step": step, "steps": _steps(summary, settings, run), "series": series,
        "settings": settings, "config": config, "apart": apart, "run": run, "summary": summary,
        "plan": _facts(folder / "plan.json"),
        "curation": _facts(folder / "curation.json") or _facts(folder.parent / "curation.json"),
        "baselines": _baselines(folder, summary, settings, series, apart),
        "events": [str(row.get("sentence", "")) for row in events],
        "quarantine": [
            {"id": str(row.get("id", "")), "reason": str(row.get("reason", ""))}
            for row in _rows(folder / "quarantine.jsonl")
        ],
        "backbone": _facts(folder / "backbone" / "backbone.json"),
    }  # fmt: skip
    state = _state(folder, step, summary, saved, series)
    if state == "crashed" and events and events[-1].get("kind") == "stop" and number(events[-1].get("step")) >= step:
        state = "stopped"
    return Account(state=state, **found)


def number(value: Any) -> float:
    """A plain finite number, else NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    # An integer of hundreds of digits is legal JSON and no float.
    return float(value) if abs(value) < _LARGEST else math.nan


def _state(
    folder: Path, step: int, summary: dict[str, Any], saved: dict[str, Any], series: dict[str, np.ndarray]
) -> State:
    if summary:
        return "finished"
    if in_use(folder):
        return "running"
    if not len(series["step"]):
        return "not started"
    # A run that was asked to stop writes a checkpoint of its very last step; a crash comes in between.
    return "interrupted" if step > 0 and saved.get("step") == step else "crashed"


def _apart(history: Any) -> frozenset[int]:
    """Steps at which quality was measured by another protocol than the last time."""
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    return frozenset(
        int(step) for row in rows
        if row.get("protocol") != rows[-1].get("protocol") and math.isfinite(step := number(row.get("step")))
    )  # fmt: skip


def _steps(summary: dict[str, Any], settings: dict[str, Any], run: dict[str, Any]) -> int | None:
    """Planned steps: of the summary, else worked out from the images or passes of the plan and the high-resolution phase."""
    said = number(summary.get("steps"))
    if math.isfinite(said):
        return int(said)
    plan, phase = settings.get("plan"), settings.get("high_resolution")
    first = _steps_of(plan, run)
    if first is None or not isinstance(phase, dict):
        return first
    batch = phase.get("batch") or (plan.get("batch") if isinstance(plan, dict) else None)
    return first + (_steps_of({**phase, "batch": batch}, run) or 0)


def _steps_of(plan: Any, run: dict[str, Any]) -> int | None:
    """Steps that so many images or passes take."""
    plan = plan if isinstance(plan, dict) else {}
    batch, images = number(plan.get("batch")), number(plan.get("images"))
    if math.isnan(images):
        images = number(plan.get("passes")) * number(run.get("images"))
    return max(1, round(images / batch)) if batch > 0 and math.isfinite(images) else None


def _baselines(
    folder: Path,
    summary: dict[str, Any],
    settings: dict[str, Any],
    series: dict[str, np.ndarray],
    apart: frozenset[int],
) -> dict[str, float]:
    """Known k-NN baselines; a run from fresh weights has measured the untrained backbone itself, before its first step."""
    told = {**summary, **_facts(folder / "baselines.json")}
    found = {name: value for name in BASELINES if math.isfinite(value := number(told.get(name)))}
    knn = series.get("knn", np.zeros(0))
    measured = len(knn) > 0 and 0 not in apart and series["step"][0] == 0 and np.isfinite(knn[0])
    if "knn_untrained" not in found and measured and settings.get("init") is None:
        found["knn_untrained"] = float(knn[0])
    return found


def _series(path: Path) -> dict[str, Float[np.ndarray, " rows"]]:
    """Columns of a file of JSON lines; what cannot be read is left out, of a step written twice the later row counts."""
    rows: dict[int, dict[str, float]] = {}
    for row in _rows(path):
        step = number(row.get("step"))
        if math.isnan(step) or step < 0:
            continue
        flat = {name: number(value) for name, value in row.items()}
        for group in _NESTED:
            inside = row.get(group)
            if isinstance(inside, dict):
                flat |= {f"{group}.{name}": number(value) for name, value in inside.items()}
        rows[int(step)] = flat
    names = {"step": None} | {name: None for row in rows.values() for name in row if name not in _NESTED}
    table = [rows[step] for step in sorted(rows)]
    return {name: np.asarray([row.get(name, math.nan) for row in table], dtype=np.float64) for name in names}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON lines file that are whole objects, one at a time."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except OSError:
        return


def _facts(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _settings(config: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(config)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _newest_checkpoint(folder: Path) -> dict[str, Any]:
    """What the newest readable checkpoint says of itself."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        facts = _facts(path / "state.json")
        if facts:
            return facts
    return {}
