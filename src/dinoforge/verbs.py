"""The verbs: one function each, with the words of the command line as keywords."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoforge.base.config import Config, with_settings
from dinoforge.base.errors import ConfigError, DataError, unknown
from dinoforge.base.files import append_line, locked, write_json
from dinoforge.base.hardware import Choice, choose_precision, device, matmul_rate, versions
from dinoforge.base.log import say, track
from dinoforge.data.manifest import write_manifest
from dinoforge.data.scan import scan as scan_source
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.features.extract import Extraction, extract, image_features
from dinoforge.features.store import TOKENS, write_features
from dinoforge.model.weights import Backbone, load_backbone
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import to_yaml
from dinoforge.recipes.table import RECIPES
from dinoforge.recipes.table import recipe as recipe_named
from dinoforge.runs import labelled, pretrain


def doctor(*, data: str | None = None) -> dict[str, Any]:
    """Look at this machine: device, memory, versions, how fast it computes and decodes, and what to do about it.

    Args:
        data: Images to measure reading with.
    """
    where = device("auto")
    choice = choose_precision("auto", where)
    side = 4096 if where.type == "cuda" else 1024
    facts: dict[str, Any] = {
        "device": _device_name(where),
        "memory_bytes": _memory(where),
        "threads": torch.get_num_threads(),
        "precision": choice.precision,
        "why": choice.why,
        "gflops": round(matmul_rate(torch.float32, side=side, device=where) / 1e9, 1),
        **versions(),
    }
    advice = []
    if where.type == "cpu":
        advice.append("No GPU: take a recipe for small pictures (vit_tiny.small_images, vit_micro.toy).")
    if data is not None:
        facts["images_decoded_per_second"] = round(_decode_rate(open_source(data)), 1)
    facts["step_images_per_second"] = round(_step_rate(where, choice), 1)
    return {**facts, "ok": True, "advice": advice}


def _device_name(where: torch.device) -> str:
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def _memory(where: torch.device) -> int:
    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _decode_rate(source: Source) -> float:
    """Images a second that one thread reads and decodes, over the first 200."""
    from dinoforge.data.decode import Broken

    began, count = time.perf_counter(), min(200, len(source))
    for row in range(count):
        try:
            source.pixels(row)
        except Broken:
            continue
    return count / (time.perf_counter() - began)


def _step_rate(where: torch.device, choice: Choice) -> float:
    """Images a second of a forward and backward pass of the smallest recipe's backbone, without loading."""
    from dinoforge.base.hardware import compute_context
    from dinoforge.model.table import build

    config = recipe_named("vit_micro.toy").backbone
    module = build(config, seed=0).to(where)
    images = torch.zeros(32, 3, config.pixels, config.pixels, device=where)
    rate = 0.0
    for _ in range(3):
        began = time.perf_counter()
        with compute_context(choice.precision, where):
            features = module(images)
        features.image.float().sum().backward()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        rate = max(rate, len(images) / (time.perf_counter() - began))
    return rate


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan found."""

    images: int
    rejected: int
    exact_duplicates: int
    out: str


def scan(*, data: str, out: str) -> Scanned:
    """Look at every image once and write a manifest: size, key, label, exact copies. Broken ones are named in it.

    Args:
        data: Images: a folder, a Parquet file, toy://species.
        out: Manifest to write, a .parquet file.
    """
    path = Path(out)
    if path.suffix != ".parquet":
        raise ConfigError(f"out={out} must be a .parquet file.")
    source = open_source(data)
    rows, rejected = [], list(source.rejected)
    for seen in track(scan_source(source), "scan", len(source)):
        if seen.row is None:
            rejected.append((seen.name, seen.reason))
        else:
            rows.append(seen.row)
    made = {
        "verb": "scan", "data": data, "fingerprint": source.fingerprint,
        "rejected": [{"id": name, "reason": reason} for name, reason in rejected],
    }  # fmt: skip
    write_manifest(path, rows, made=made)
    copies = sum(bool(row["reason"]) for row in rows)
    return Scanned(images=len(rows), rejected=len(rejected), exact_duplicates=copies, out=out)


def evaluate(
    *, backbone: str, tasks: str = "knn", data: str | None = None, train: str | None = None, test: str | None = None,
    train_rows: str | int | None = None, test_rows: str | int | None = None, out: str | None = None,
    precision: str = "auto", **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure a frozen backbone. Scores are fractions between 0 and 1 unless their unit says otherwise.

    Args:
        backbone: A backbone folder, a run, a Hugging Face folder, or a file of official weights.
        tasks: Names joined by commas; knn.
        data: Labelled images with train and test (or val) splits; without splits every fifth is asked.
        train: Labelled images that vote, instead of data.
        test: Labelled images that are asked, together with train.
        train_rows: First so many rows that vote; all if not given.
        test_rows: First so many rows that are asked; all if not given.
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
    known, asked = _train_and_test(data, train, test)
    known, asked = _first(known, train_rows, "train_rows"), _first(asked, test_rows, "test_rows")
    found = _opened(backbone)
    how = _how(precision)
    bank, bank_rows = image_features(found.module.to(how.device), known, found.preprocessing, how, on_broken=_told)
    queries, query_rows = image_features(found.module, asked, found.preprocessing, how, on_broken=_told)
    scores = []
    for name in names:
        _, measure = EVALUATIONS[name]
        for score in measure(
            bank, torch.from_numpy(known.columns["label"][bank_rows]),
            queries, torch.from_numpy(asked.columns["label"][query_rows]), config=configs[name],
        ):  # fmt: skip
            scores.append(
                dataclasses.replace(score, backbone=found.fingerprint, data=f"{known.fingerprint} {asked.fingerprint}")
            )
    rows = [dataclasses.asdict(score) for score in scores]
    for row in rows if out else []:
        append_line(Path(str(out)), row)
    return {"scores": rows}


def _task_settings(names: list[str], settings: Mapping[str, Any]) -> dict[str, Config]:
    """The config of every task, from settings such as ``knn.neighbours``."""
    configs: dict[str, Config] = {name: EVALUATIONS[name][0]() for name in names}
    allowed = [f"{name}.{field}" for name in names for field in EVALUATIONS[name][0].model_fields]
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
    return source.select(np.arange(min(count, len(source))))


def _opened(address: str) -> Backbone:
    found = load_backbone(address)
    say(f"{address}: {found.loaded}")
    return found


def _how(precision: str) -> Extraction:
    if precision not in {"auto", "fp32", "bf16"}:
        raise ConfigError(f"precision must be one of auto, fp32, bf16; got {precision!r}.")
    where = device("auto")
    choice = choose_precision(precision, where)
    say(f"Device {where}, precision {choice.precision}: {choice.why}.")
    return Extraction(where, choice.precision)


def _told(name: str, reason: str) -> None:
    say(f"Set aside {name}: {reason}")


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was embedded."""

    rows: int
    width: int
    images_per_second: float
    quarantined: int
    out: str


def embed(*, backbone: str, data: str, out: str, tokens: str = "image", precision: str = "auto") -> Embedded:
    """Write the features of every image: features.npy (any NumPy reads it), ids.parquet, features.json.

    Args:
        backbone: A backbone folder, a run, a Hugging Face folder, or a file of official weights.
        data: Images: a folder, a Parquet file, toy://species.
        out: Folder to write; one that holds features is replaced.
        tokens: image (one vector an image) or patches (a grid of them).
        precision: auto, fp32 or bf16.
    """
    if tokens not in TOKENS:
        raise ConfigError(f"tokens must be {' or '.join(TOKENS)}; got {tokens!r}.")
    path = Path(out)
    if path.exists() and not (path / "features.json").exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out={out} exists and holds no features; give a new folder.")
    source, found = open_source(data), _opened(backbone)
    how = _how(precision)
    broken: list[dict[str, str]] = [{"id": name, "reason": reason} for name, reason in source.rejected]

    def set_aside(name: str, reason: str) -> None:
        _told(name, reason)
        broken.append({"id": name, "reason": reason})

    parts = extract(found.module.to(how.device), source, found.preprocessing, how, on_broken=set_aside)
    facts = {"backbone": found.fingerprint, "data": source.fingerprint, "address": data, "precision": how.precision}
    began = time.perf_counter()
    total = -(-len(source) // how.rows_at_once)
    rows = write_features(
        path, track(parts, "embed", total, unit="batches"), columns=source.columns, tokens=tokens, facts=facts
    )
    rate = rows / (time.perf_counter() - began)
    for line in broken:
        append_line(path / "quarantine.jsonl", line)
    return Embedded(rows=rows, width=found.module.width, images_per_second=rate, quarantined=len(broken), out=out)


def recipes(*, show: str | None = None) -> dict[str, Any]:
    """List the recipes, or show one with all its settings.

    Args:
        show: Name of a recipe.
    """
    if show is not None:
        return {"recipes": [show], "yaml": to_yaml(recipe_named(show))}
    return {"recipes": [{"name": name, "what": _first_line(make)} for name, make in RECIPES.items()]}


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check config.yaml."""
    return Recipe.model_json_schema()


def demo(*, out: str = "demo-out", seed: str | int = 0) -> dict[str, Any]:
    """The main job in minutes, offline: pretrain a micro ViT on drawn pictures, k-NN before and after, a PCA picture.

    Args:
        out: Folder for everything that is made.
        seed: Of the pictures and of the training.
    """
    from dinoforge.data.augment import centre
    from dinoforge.model.table import build
    from dinoforge.report.pca import pca_picture

    folder, world = Path(out), f"toy://species?images=5000&seed={int(seed)}"
    done = pretrain(data=world, probe=world, out=folder / "run", recipe="vit_micro.toy", seed=seed)
    best = load_backbone(folder / "run")
    source = open_source(world + "&split=test").select(np.arange(8))
    before = build(best.config, seed=int(seed))
    pixels = torch.stack(
        [
            centre(source.pixels(row), short_side=best.preprocessing.short_side, side=best.preprocessing.side)
            for row in range(8)
        ]
    )
    rows = {}
    for name, module in (("before", before), ("after", best.module)):
        part = next(iter(extract(module, source, best.preprocessing, Extraction(torch.device("cpu")), on_broken=_told)))
        rows[name] = part.features.patches
    pca_picture(folder / "pca.png", pixels, rows)
    assert done.knn is not None
    facts = {
        "knn_untrained": done.knn["first"], "knn_trained": done.knn["last"], "knn_best": done.knn["best"],
        "rank": done.rank, "pca": str(folder / "pca.png"), "backbone": done.backbone,
    }  # fmt: skip
    with locked(folder):
        write_json(folder / "demo.json", {**facts, "versions": versions()})
    return facts


VERBS: list[Callable[..., Any]] = [doctor, scan, pretrain, evaluate, embed, recipes, schema, demo]
VERBS_WITH_RECIPE = frozenset({"pretrain"})
"""Verbs that take any setting of a recipe besides their own keys."""
