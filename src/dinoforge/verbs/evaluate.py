"""``evaluate``: a frozen backbone becomes scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoforge.base.config import Config, with_settings
from dinoforge.base.errors import ConfigError, DataError, unknown
from dinoforge.base.files import append_line, place_for
from dinoforge.data.sources.source import Source, agreed, first_rows
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.features.eyes import Eyes
from dinoforge.recipes.opened import labelled
from dinoforge.verbs.opening import extraction, opened, told


def evaluate(
    *, backbone: str, tasks: str = "knn", data: str | None = None, train: str | None = None, test: str | None = None,
    train_rows: str | int | None = None, test_rows: str | int | None = None, out: str | None = None,
    precision: str = "auto", **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure a frozen backbone. Scores are fractions between 0 and 1 unless their unit says otherwise.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER or timm:NAME.
        tasks: Names joined by commas; knn.
        data: Labelled images with train and test (or val) splits; without splits every fifth is asked.
        train: Labelled images that vote, instead of data.
        test: Labelled images that are asked, together with train.
        train_rows: First so many rows that vote, strewn over a source sorted by class; all if not given.
        test_rows: First so many rows that are asked, in the same way; all if not given.
        out: JSON lines file that the scores are appended to.
        precision: auto, fp32 or bf16.
        knn.neighbours: Neighbours that vote [20].
        knn.temperature: A vote weighs exp(cosine / temperature) [0.07].
        knn.rows_at_once: Queries compared at a time [4096].
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    for name in names:
        if name not in EVALUATIONS:
            raise unknown("task", name, EVALUATIONS)
    configs = _task_settings(names, settings)
    if out is not None:
        place_for(Path(out))
    known, asked = _train_and_test(data, train, test)
    known, asked = _first(known, train_rows, "train_rows"), _first(asked, test_rows, "test_rows")
    found = opened(backbone)
    eyes = Eyes(found, extraction(precision), folder=None, on_broken=told)
    scores = []
    for name in names:
        for score in EVALUATIONS[name].measure(eyes, Sides(known, asked), configs[name]):
            scores.append(
                dataclasses.replace(score, backbone=found.fingerprint, data=f"{known.fingerprint} {asked.fingerprint}")
            )
    rows = [dataclasses.asdict(score) for score in scores]
    for row in rows if out else []:
        append_line(Path(str(out)), row)
    return {"scores": rows}


def _task_settings(names: list[str], settings: Mapping[str, Any]) -> dict[str, Config]:
    """The config of every task, from settings such as ``knn.neighbours``."""
    configs: dict[str, Config] = {name: EVALUATIONS[name].config() for name in names}
    allowed = [f"{name}.{field}" for name in names for field in EVALUATIONS[name].config.model_fields]
    for path in settings:
        if path not in allowed:
            raise unknown("setting", path, [*allowed, "backbone", "data", "out", "tasks", "test", "train"])
    for name in names:
        own = {p.partition(".")[2]: value for p, value in settings.items() if p.partition(".")[0] == name}
        try:
            configs[name] = with_settings(configs[name], own)
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from None
    return configs


def _train_and_test(data: str | None, train: str | None, test: str | None) -> tuple[Source, Source]:
    if data is not None and (train or test):
        raise ConfigError("data= and train=, test= exclude each other.")
    if data is not None:
        return labelled(data)
    if train is None or test is None:
        raise ConfigError("data= is required, or train= and test= together.")
    known = open_source(train, "train") if has_split(open_source(train), "train") else open_source(train)
    asked = open_source(test, "test") if has_split(open_source(test), "test") else open_source(test)
    for source in (known, asked):
        labels = source.columns.get("label")
        if labels is None or (labels < 0).any():
            raise DataError(f"{source.address} has no labels, or not for every image.")
    known, asked = agreed([known, asked])
    return known, asked


def _first(source: Source, rows: str | int | None, name: str) -> Source:
    if rows is None:
        return source
    try:
        count = int(rows)
    except ValueError:
        raise ConfigError(f"{name} takes a whole number; got {rows!r}.") from None
    if count < 1:
        raise ConfigError(f"{name} must be at least 1; got {count}.")
    return first_rows(source, count)
