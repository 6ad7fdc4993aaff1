"""Assembles a run from a recipe: data, networks, optimiser, what watches; then hands it to the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoforge.base.config import differences, fingerprint, science
from dinoforge.base.errors import ConfigError, DataError, RunError
from dinoforge.base.files import append_line, clear_leftovers, locked, read_lines, write_json, write_text
from dinoforge.base.hardware import (
    Choice,
    choose_precision,
    compute_context,
    device,
    peak_bytes,
    resumed_precision,
    versions,
)
from dinoforge.base.log import progress, say
from dinoforge.data.loader import Groups, Loader
from dinoforge.data.order import weights_of
from dinoforge.data.sources.options import split_address
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.evaluate.health import effective_rank
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.features.extract import Extraction, image_features
from dinoforge.model.table import build
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone, save_backbone
from dinoforge.recipes.cost import planned
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import settle, to_yaml
from dinoforge.report.film import Film
from dinoforge.train.checkpoint import Checkpoints, Saved
from dinoforge.train.guard import Finite
from dinoforge.train.loop import Observer, fit
from dinoforge.train.observe import Checkpointing, Metrics, Probe, Stop, comparable, cut_metrics, due
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import quicken
from dinoforge.train.step import Pretrain, networks, teacher_of
from dinoforge.train.trackers.table import tracking
from dinoforge.train.trackers.tracker import Opening, library


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What a run came to."""

    steps: int
    images: int
    losses: dict[str, float]
    """Of the last step."""
    knn: dict[str, float] | None
    """First, last and best accuracy of the probe as it is now set; null without a labelled probe."""
    rank: float | None
    """Effective rank of the features after the last step."""
    events: list[str]
    resumed_from: int
    """Steps that earlier starts of the same run had done."""
    quarantined: int
    """Images that could not be used."""
    backbone: str
    seconds: float
    """Wall time of the steps, quality probes and checkpoints, over all starts whose steps count."""
    images_per_second: float
    peak_memory_bytes: int
    """The most that the main process held (on a GPU: that torch took there) in this start."""


def pretrain(**settings: Any) -> Pretrained:
    """Train a backbone on images without labels. The same command again goes on where it stopped.

    Args:
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        out: Folder of the run: config.yaml, metrics.jsonl, checkpoints/, backbone/ (the best), summary.json.
        recipe: Where to start from, see `dinoforge recipes`; vit_small.small_data if nothing is said.
        config: A YAML file with a whole recipe, such as config.yaml of another run, instead of a recipe.
        probe: Labelled images whose k-NN accuracy is measured during the run.
        init: A backbone to start from; its architecture is taken too.
    """
    rest = dict(settings)
    out = rest.pop("out", None)
    if not out:
        raise ConfigError("out= is required: the folder of the run.")
    recipe, source, start = opened(rest)
    probed = labelled(recipe.probe.source) if recipe.probe.source else None
    for tracker in recipe.speed.trackers:
        library(tracker)  # its absence is told before anything is written
    where = device(recipe.speed.device)
    precision = choose_precision(recipe.speed.precision, where)
    return Run(recipe, source, probed, start, Path(str(out)), where, precision).go()


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
    return Recipe.build(recipe.model_dump() | {"backbone": architecture.model_dump()})


def training_rows(address: str) -> Source:
    """The images of an address that may be trained on: the train split where it has splits."""
    whole = open_source(address)  # once: a million files take seconds
    if has_split(whole, "train"):
        return whole.select(np.flatnonzero(whole.columns["split"] == "train"))
    others = sorted(set(whole.columns["split"].tolist()) - {""}) if "split" in whole.columns else []
    if others and "split" not in split_address(address)[1]:
        say(
            f"{whole.address} has no split train, only {', '.join(others)}: all its {len(whole):,} images are used; "
            "?split=NAME behind the address chooses one."
        )
    return whole


def labelled(address: str) -> tuple[Source, Source]:
    """A labelled source's rows that vote and rows that are asked: train and test, else val, else every fifth.

    Raises:
        DataError: The source has no labels, or only one class.
    """
    whole = open_source(address)
    labels = whole.columns.get("label")
    if labels is None or len(np.unique(labels[labels >= 0])) < 2:
        raise DataError(
            f"{whole.address} has no labels; a probe takes folders named by class, or a column 'label' (or ?label=NAME)."
        )
    whole = whole if (labels >= 0).all() else whole.select(np.flatnonzero(labels >= 0))
    test = next((name for name in ("test", "val") if has_split(whole, name)), None)
    if has_split(whole, "train") and test:
        splits = whole.columns["split"]
        return whole.select(np.flatnonzero(splits == "train")), whole.select(np.flatnonzero(splits == test))
    asked = np.arange(len(whole)) % 5 == 4
    return whole.select(np.flatnonzero(~asked)), whole.select(np.flatnonzero(asked))


class Quarantine:
    """Images set aside: one JSON line each, with the reason; told of once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = {str(row["id"]) for row in read_lines(path)}

    def __call__(self, name: str, reason: str) -> None:
        """Note one; again is no news."""
        if name not in self.seen:
            self.seen.add(name)
            append_line(self.path, {"id": name, "reason": reason})


class Run:
    """One run folder: made, resumed, finished."""

    def __init__(
        self, recipe: Recipe, source: Source, probed: tuple[Source, Source] | None, start: Backbone | None, out: Path,
        where: torch.device, precision: Choice,
    ) -> None:  # fmt: skip
        self.recipe, self.source, self.probed, self.out = recipe, source, probed, out
        self.device, self.precision, self.start = where, precision, start
        self.steps = recipe.plan.steps(len(source))
        self.identity = {
            "settings": science(recipe),
            "data": source.fingerprint,
            "init": None if start is None else start.fingerprint,
        }
        weights = weights_of(source.columns, recipe.data.sampling)
        if weights is not None:  # they decide the order
            self.identity["sampling"] = fingerprint(weights.tolist())
        self.fingerprint = fingerprint(self.identity)
        colour, augment = recipe.data.augment.colour, recipe.data.augment
        self.preprocessing = Preprocessing(
            channels=recipe.backbone.channels, range=recipe.data.range, max_pixels=recipe.data.max_pixels,
            short_side=recipe.data.short_side, side=augment.global_pixels, mean=colour.mean, std=colour.std,
        )  # fmt: skip

    def go(self) -> Pretrained:
        """Train to the end of the plan.

        Raises:
            RunError: The folder is in use or holds something else.
            Interrupted: Stopped on request, after a checkpoint.
            SentinelStop: A loss or a gradient is not finite.
        """
        self._refuse_strangers()
        with locked(self.out):
            self._refuse_strangers()
            self._clear_leftovers()
            # First of all files: from here on, whatever is cut off, the folder is known as this run's.
            write_json(
                self.out / "run.json",
                {"fingerprint": self.fingerprint, **self.identity, "images": len(self.source), "versions": versions()},
            )
            write_text(self.out / "config.yaml", to_yaml(self.recipe))
            checkpoints = Checkpoints(self.out / "checkpoints", keep=self.recipe.plan.checkpoints)
            latest = next(reversed(checkpoints.all()), None)
            before = latest.facts.get("precision") if latest else None
            self.precision = resumed_precision(self.recipe.speed.precision, self.precision, before)
            say(f"Device {self.device}, precision {self.precision.precision}: {self.precision.why}.")
            self._plan()
            return self._train(checkpoints, latest)

    def _plan(self) -> None:
        """Say and keep what the run will be; speed is not probed, the first steps show it."""
        facts = planned(self.recipe, self.source, self.device, self.precision)
        write_json(self.out / "plan.json", asdict(facts))
        for line in (facts.line(), *(f"Warning: {warning}" for warning in facts.warnings)):
            say(line)

    def _clear_leftovers(self) -> None:
        """Remove what an earlier start was writing when it was killed; a backbone or checkpoint set aside is put back."""
        clear_leftovers(
            self.out, "run.json", "config.yaml", "plan.json", "metrics.jsonl", "summary.json", "backbone"
        )  # fmt: skip
        clear_leftovers(self.out / "checkpoints", "step_*")
        clear_leftovers(self.out / "film", "*.npz")

    def _refuse_strangers(self) -> None:
        """Leave folders alone that are not this run's."""
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise RunError(f"out={self.out} is a file; give a folder.")
        try:
            there = json.loads((self.out / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            # Names that begin with a dot are the lock, what a killed writer left, or the desktop's.
            if any(not path.name.startswith(".") for path in self.out.iterdir()):
                raise RunError(f"out={self.out} holds other files and no run; give a new folder.") from None
            return
        except ValueError:
            raise RunError(f"{self.out / 'run.json'} is damaged; give a new folder.") from None
        if not isinstance(there, dict) or "fingerprint" not in there:
            raise RunError(f"{self.out / 'run.json'} was not written by dinoforge pretrain; give a new folder.")
        if there["fingerprint"] != self.fingerprint:
            was = {name: there.get(name) for name in self.identity}
            lines = differences(was, json.loads(json.dumps(self.identity)))
            raise RunError(
                f"out={self.out} holds another run. It differs in: {'; '.join(lines[:6])}{' …' if len(lines) > 6 else ''}. "
                "Give a new folder, or the settings of that run."
            )

    def _train(self, checkpoints: Checkpoints, latest: Saved | None) -> Pretrained:
        recipe, plan = self.recipe, self.recipe.plan
        step = self._networks()
        adamw = optimizer(step.student, plan, fused=fused(recipe.speed.optimizer, self.device))
        quarantine = Quarantine(self.out / "quarantine.jsonl")
        for name, reason in self.source.rejected:
            quarantine(name, reason)
        if latest is not None:
            checkpoints.load(latest, step, adamw)
            say(f"Going on from {latest.folder} (step {latest.step} of {self.steps}).")
        first, history, events = _memory(latest)
        began = time.monotonic() - (float(latest.facts.get("seconds", 0)) if latest else 0)
        metrics_file = self.out / "metrics.jsonl"
        written = cut_metrics(metrics_file, latest.step if latest else None)

        def keep(done: int, scores: Mapping[str, float]) -> None:
            lineage = {"run": self.fingerprint, "data": self.identity["data"], "step": done, "recipe": recipe.recipe}
            backbone = Backbone(step.teacher.backbone, recipe.backbone, self.preprocessing, lineage)
            save_backbone(self.out / "backbone", backbone, scores=scores)

        every = max(1, round(plan.probe_images / plan.batch))
        film = Film(
            self.out / "film", self.probed[1] if self.probed else self.source, self.preprocessing,
            Extraction(self.device, self.precision.precision), on_broken=quarantine,
        )  # fmt: skip
        probe = Probe(
            self._measure(step, quarantine), keep, every=every, steps=self.steps, history=history,
            protocol=self._protocol(),
            film=lambda done: film(step.teacher.backbone, done),
        )  # fmt: skip
        if latest is None:
            scores = probe.look(0)
            append_line(metrics_file, {"step": 0, "images": 0, "losses": {}, **scores})
            say("Before the first step: " + _named(scores))
        groups = Groups(
            self.source, recipe.data.augment, recipe.data.masks, recipe.data.sampling,
            seed=recipe.seed, group=recipe.objective.group, patch=recipe.backbone.patch, reading=recipe.reading,
        )  # fmt: skip
        loader = Loader(
            groups,
            batch=plan.batch,
            workers=recipe.speed.workers,
            device=self.device,
            on_broken=quarantine,
            stall_seconds=recipe.speed.stall_seconds,
        )
        opening = Opening(folder=self.out, run=self.fingerprint, name=self.out.name, first=first, written=written)
        with (
            Stop() as stop,
            progress("pretrain", self.steps * plan.batch, start=first * plan.batch) as tick,
            tracking(recipe.speed.trackers, opening) as trackers,
        ):
            metrics = Metrics(
                metrics_file, batch=plan.batch, tick=tick, waits=self.device.type != "cpu", trackers=trackers
            )
            between = max(1, round(plan.checkpoint_images / plan.batch))
            finite = Finite(
                lambda done: stop.asked or any(due(done, every=n, steps=self.steps) for n in (every, between)),
                metrics.last, precision=self.precision.precision, rows_at_once=metrics.rows_at_once,
            )  # fmt: skip

            def settle_steps() -> None:
                metrics.flush()
                finite.check()  # a stop may have been asked for since this step was passed

            checkpointing = Checkpointing(
                checkpoints, step, adamw,
                facts=lambda done: {"step": done, "images": done * plan.batch, "run": self.fingerprint,
                                    "precision": self.precision.precision, "history": history, "events": events,
                                    "seconds": time.monotonic() - began},
                settle=settle_steps, stop=stop, every=between, steps=self.steps,
            )  # fmt: skip
            observers: list[Observer] = [finite, probe, metrics, checkpointing]
            fit(
                step, adamw, loader.batches(first=first, steps=self.steps), plan=plan, steps=self.steps, first=first,
                compute=compute_context(self.precision.precision, self.device), observers=observers,
            )  # fmt: skip
        seconds = time.monotonic() - began
        return self._summary(metrics_file, history, events, first, quarantine, seconds)

    def _networks(self) -> Pretrain:
        """Student and teacher, from the backbone to start from or freshly drawn."""
        recipe = self.recipe
        backbone = build(recipe.backbone, seed=recipe.seed)
        if self.start is not None:
            backbone.load_state_dict(self.start.module.state_dict())
        student = networks(backbone, recipe.objective, seed=recipe.seed)
        step = Pretrain(student, teacher_of(student), recipe.objective, seed=recipe.seed).to(self.device)
        quicken(step, recipe.speed, self.device)
        return step

    def _protocol(self) -> str:
        """What the probe measures, in 16 hexadecimal digits: two accuracies compare where these are the same."""
        config = self.recipe.probe
        rows = ((self.probed[0], config.train_rows), (self.probed[1], config.test_rows)) if self.probed else ()
        return fingerprint(
            [
                config.neighbours,
                *(first_rows(source, count).fingerprint for source, count in rows),
            ]
        )

    def _measure(self, step: Pretrain, quarantine: Quarantine) -> Callable[[], dict[str, float]]:
        """How quality is measured during the run: k-NN where there are labels, effective rank always."""
        config, module = self.recipe.probe, step.teacher.backbone
        how = Extraction(self.device, self.precision.precision)

        def features(source: Source) -> tuple[torch.Tensor, np.ndarray]:
            return image_features(module, source, self.preprocessing, how, on_broken=quarantine)

        def measure() -> dict[str, float]:
            if self.probed is None:
                return {"rank": effective_rank(features(first_rows(self.source, config.rank_rows))[0])}
            train, test = (
                first_rows(source, rows)
                for source, rows in zip(self.probed, (config.train_rows, config.test_rows), strict=True)
            )
            bank, bank_rows = features(train)
            asked, asked_rows = features(test)
            score = knn_scores(
                bank, torch.from_numpy(train.columns["label"][bank_rows]),
                asked, torch.from_numpy(test.columns["label"][asked_rows]),
                config=KnnConfig(neighbours=config.neighbours),
            )[0]  # fmt: skip
            return {"knn": score.value, "rank": effective_rank(asked)}

        return measure

    def _summary(
        self, metrics: Path, history: list[dict[str, Any]], events: list[str], first: int, quarantine: Quarantine,
        seconds: float,
    ) -> Pretrained:  # fmt: skip
        rows = read_lines(metrics)
        knn = [row["knn"] for row in comparable(history, self._protocol())]
        done = Pretrained(
            steps=self.steps,
            images=self.steps * self.recipe.plan.batch,
            losses=rows[-1]["losses"] if rows else {},
            knn={"first": knn[0], "last": knn[-1], "best": max(knn)} if knn else None,
            rank=history[-1]["rank"] if history else None,
            events=events,
            resumed_from=first,
            quarantined=len(quarantine.seen),
            backbone=str(self.out / "backbone"),
            seconds=seconds,
            images_per_second=self.steps * self.recipe.plan.batch / seconds,
            peak_memory_bytes=peak_bytes(self.device),
        )
        facts = {name: getattr(done, name) for name in Pretrained.__slots__}
        write_json(self.out / "summary.json", {**facts, "history": history, "versions": versions()})
        return done


def _memory(latest: Saved | None) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Steps done, what was measured, what happened."""
    if latest is None:
        return 0, [], []
    return latest.step, list(latest.facts["history"]), list(latest.facts["events"])


def _named(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
