"""Assembles a run from a recipe: data, networks, optimiser, what watches; then hands it to the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dinoforge.base import dist
from dinoforge.base.config import differences, fingerprint, science
from dinoforge.base.errors import ConfigError, RunError
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
from dinoforge.data.loader import Groups, Loader, share_of
from dinoforge.data.order import weights_of
from dinoforge.data.quarantine import Quarantine
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.evaluate.card import DENSE, Neighbours, card
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.features.extract import Extraction, Seen, shared_features
from dinoforge.model.table import build, empty
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone
from dinoforge.recipes.cost import memory_of_a_rank, planned, too_large
from dinoforge.recipes.opened import anchor, labelled, opened
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import to_yaml
from dinoforge.report.film import Film
from dinoforge.train.checkpoint import Checkpoints, Saved
from dinoforge.train.guard import Finite
from dinoforge.train.loop import Observer, fit
from dinoforge.train.observe import Agreement, Checkpointing, Metrics, Probe, Stop, comparable, cut_metrics, due
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import gathered, quicken, shard
from dinoforge.train.step import Pretrain, networks, teacher_of
from dinoforge.train.trackers.table import tracking
from dinoforge.train.trackers.tracker import Opening, library

_LABEL_FREE = ("rank", "uniformity", "smoothness", "stability")


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
    uniformity: float | None
    """How evenly the features lie on the sphere then; lower is more even."""
    smoothness: float | None
    """How much more alike neighbouring patches are then than others of the same image."""
    stability: float | None
    """Share of nearest neighbours that the last two looks have in common."""
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
    """The most that the main process of a rank held (on a GPU: that torch took there) in this start."""


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
    with dist.joined():
        return dist.together(lambda: _run(dict(settings))).go()


def _run(rest: dict[str, Any]) -> Run:
    """What was asked for, checked as far as that is possible before anything is written."""
    out = rest.pop("out", None)
    if not out:
        raise ConfigError("out= is required: the folder of the run.")
    recipe, source, start = opened(rest)
    gram = anchor(recipe.objective.gram, recipe.backbone)
    probed = labelled(recipe.probe.source) if recipe.probe.source else None
    for tracker in recipe.speed.trackers:
        library(tracker)  # its absence is told before anything is written
    where = device(recipe.speed.device)
    share_of(recipe.plan.batch, group=recipe.objective.group, world=dist.world())
    precision = choose_precision(recipe.speed.precision, where)
    return Run(recipe, source, probed, start, Path(str(out)), where, precision, gram)


class Run:
    """One run folder: made, resumed, finished."""

    def __init__(
        self, recipe: Recipe, source: Source, probed: tuple[Source, Source] | None, start: Backbone | None, out: Path,
        where: torch.device, precision: Choice, gram: Backbone | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.source, self.probed, self.out = recipe, source, probed, out
        self.device, self.precision, self.start, self.gram = where, precision, start, gram
        self.steps = recipe.plan.steps(len(source))
        self.micro_batch = 0
        self.neighbours: Neighbours | None = None
        """What the last look at the features leaves for the next."""
        self.identity = {
            "settings": science(recipe),
            "data": source.fingerprint,
            "init": None if start is None else start.fingerprint,
        }
        if gram is not None:
            self.identity["gram"] = gram.fingerprint
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
        self._compare_ranks()
        dist.leading(self._refuse_strangers)
        with ExitStack() as held:
            dist.leading(lambda: held.enter_context(locked(self.out)))
            dist.leading(self._open_folder)
            background = {"auto": self.device.type == "cuda", "background": True, "at_once": False}
            checkpoints = Checkpoints(
                self.out / "checkpoints", keep=self.recipe.plan.checkpoints,
                background=background[self.recipe.speed.checkpoints],
            )  # fmt: skip
            latest = checkpoints.latest()
            before = latest.facts.get("precision") if latest else None
            # Measured where it is automatic: the first rank's choice is everyone's.
            self.precision = dist.tell(resumed_precision(self.recipe.speed.precision, self.precision, before))
            say(f"Device {self._where()}, precision {self.precision.precision}: {self.precision.why}.")
            self.micro_batch = dist.leading(self._plan)
            try:
                return self._train(checkpoints, latest)
            except Exception:
                with suppress(Exception):  # whatever ended the run, a checkpoint that is being written is finished
                    checkpoints.wait()
                raise

    def _where(self) -> str:
        return str(self.device) if not dist.active() else f"{self.device.type} on {dist.world()} ranks"

    def _compare_ranks(self) -> None:
        """Refuse to train with ranks that were told something else or see other data."""
        prints = dist.gather(self.fingerprint)

        def compare() -> None:
            other = next((rank for rank, found in enumerate(prints) if found != prints[0]), None)
            if other is not None:
                raise RunError(
                    f"Rank {other} has another run than rank 0: other settings, or other rows under "
                    f"{self.source.address}. Start all ranks with the same command, on the same files."
                )

        dist.leading(compare)  # all know of it, so it is said once

    def _open_folder(self) -> None:
        """Make the folder this run's, or take up the run in it."""
        self._refuse_strangers()
        self._clear_leftovers()
        # First of all files: from here on, whatever is cut off, the folder is known as this run's.
        write_json(
            self.out / "run.json",
            {"fingerprint": self.fingerprint, **self.identity, "images": len(self.source), "versions": versions()},
        )
        write_text(self.out / "config.yaml", to_yaml(self.recipe))

    def _plan(self) -> int:
        """Say and keep what the run will be; speed is not probed, the first steps show it.

        Returns:
            Images that a rank computes at once.

        Raises:
            ConfigError: Nothing fits into the memory that there is.
        """
        facts = planned(self.recipe, self.source, self.device, self.precision)
        if facts.memory_bytes > memory_of_a_rank(self.device) and self.recipe.speed.micro_batch == "auto":
            raise ConfigError(too_large(self.recipe, facts.memory_bytes, self.device))
        write_json(self.out / "plan.json", asdict(facts))
        for line in (facts.line(), *(f"Warning: {warning}" for warning in facts.warnings)):
            say(line)
        return facts.micro_batch

    def _clear_leftovers(self) -> None:
        """Remove what an earlier start was writing when it was killed; a backbone or checkpoint set aside is put back."""
        clear_leftovers(
            self.out, "run.json", "config.yaml", "plan.json", "metrics.jsonl", "summary.json", "backbone"
        )  # fmt: skip
        clear_leftovers(self.out / "film", "*.npz")
        for path in clear_leftovers(self.out / "checkpoints", "step_*"):
            say(f"Removed {path}: a checkpoint that was not finished.")

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
        protocol = self._protocol()
        self.neighbours = _neighbours(latest, protocol)
        began = time.monotonic() - (float(latest.facts.get("seconds", 0)) if latest else 0)
        metrics_file = self.out / "metrics.jsonl"
        written = dist.leading(lambda: cut_metrics(metrics_file, latest.step if latest else None))
        every = max(1, round(plan.probe_images / plan.batch))
        film = Film(
            self.out / "film", self.probed[1] if self.probed else self.source, self.preprocessing,
            Extraction(self.device, self.precision.precision), on_broken=quarantine,
        )  # fmt: skip

        def look(done: int) -> None:
            with gathered(step.teacher.backbone):
                dist.leading(lambda: film(step.teacher.backbone, done))

        probe = Probe(
            self._measure(step, quarantine), self._keep(step), every=every, steps=self.steps, history=history,
            protocol=protocol, film=look,
        )  # fmt: skip
        if latest is None:
            scores = probe.look(0)
            dist.leading(lambda: append_line(metrics_file, {"step": 0, "images": 0, "losses": {}, **scores}))
            say("Before the first step: " + _named(scores))
        opening = Opening(folder=self.out, run=self.fingerprint, name=self.out.name, first=first, written=written)
        loader = self._loader(quarantine)
        with (
            Stop() as stop,
            progress("pretrain", self.steps * plan.batch, start=first * plan.batch) as tick,
            tracking(recipe.speed.trackers if dist.rank() == 0 else (), opening) as trackers,
        ):
            metrics = Metrics(
                metrics_file, batch=plan.batch, tick=tick, waits=self.device.type != "cpu", trackers=trackers
            )
            between = max(1, round(plan.checkpoint_images / plan.batch))
            agreement = Agreement(stop, quarantine.news, lambda report: quarantine(*report))
            finite = Finite(
                lambda done: stop.asked or any(due(done, every=n, steps=self.steps) for n in (every, between)),
                metrics.last, precision=self.precision.precision, rows_at_once=metrics.rows_at_once,
            )  # fmt: skip
            checkpointing = Checkpointing(
                checkpoints, step, adamw,
                facts=lambda done: {"step": done, "images": done * plan.batch, "run": self.fingerprint,
                                    "precision": self.precision.precision,
                                    # Copied: training goes on, and measures, while they are written.
                                    "history": list(history), "events": list(events),
                                    "neighbours": {"protocol": protocol, "rows": self.neighbours},
                                    "seconds": time.monotonic() - began},
                settle=metrics.flush, stop=stop, every=between, steps=self.steps,
            )  # fmt: skip
            observers: list[Observer] = [agreement, finite, probe, metrics, checkpointing]
            fit(
                step, adamw, loader.batches(first=first, steps=self.steps), plan=plan, steps=self.steps, first=first,
                parts=loader.parts, compute=compute_context(self.precision.precision, self.device), observers=observers,
            )  # fmt: skip
            agreement.exchange()  # what the last probe found
        seconds = time.monotonic() - began
        most = max(dist.gather(peak_bytes(self.device)))
        return dist.leading(
            lambda: self._summary(metrics_file, history, events, first, quarantine, seconds=seconds, peak=most)
        )

    def _loader(self, quarantine: Quarantine) -> Loader:
        """This rank's share of every batch."""
        recipe = self.recipe
        groups = Groups(
            self.source, recipe.data.augment, recipe.data.masks, recipe.data.sampling,
            seed=recipe.seed, group=recipe.objective.group, patch=recipe.backbone.patch, reading=recipe.reading,
        )  # fmt: skip
        return Loader(
            groups,
            batch=recipe.plan.batch,
            workers=recipe.speed.workers,
            device=self.device,
            on_broken=quarantine,
            stall_seconds=recipe.speed.stall_seconds,
            rank=dist.rank(),
            world=dist.world(),
            parts=recipe.plan.batch // dist.world() // self.micro_batch,
        )

    def _keep(self, step: Pretrain) -> Callable[[int, Mapping[str, float]], None]:
        """How the best backbone is kept: put together from all ranks, written by the first."""

        def keep(done: int, scores: Mapping[str, float]) -> None:
            state = {}
            for name, tensor in step.teacher.backbone.state_dict().items():
                whole = dist.whole(tensor)  # one at a time: together they may be more than a device has room for
                if dist.rank() == 0:
                    state[name] = whole.cpu()

            def write() -> None:
                module = empty(self.recipe.backbone)
                module.load_state_dict(state, assign=True)
                lineage = {
                    "run": self.fingerprint, "data": self.identity["data"], "step": done, "recipe": self.recipe.recipe,
                }  # fmt: skip
                backbone = Backbone(module, self.recipe.backbone, self.preprocessing, lineage)
                save_backbone(self.out / "backbone", backbone, scores=scores)

            dist.leading(write)

        return keep

    def _networks(self) -> Pretrain:
        """Student and teachers, from the backbone to start from or freshly drawn."""
        recipe = self.recipe
        backbone = build(recipe.backbone, seed=recipe.seed)
        if self.start is not None:
            backbone.load_state_dict(self.start.module.state_dict())
        student = networks(backbone, recipe.objective, seed=recipe.seed)
        gram = None if self.gram is None else self.gram.module
        step = Pretrain(student, teacher_of(student), recipe.objective, seed=recipe.seed, gram=gram).to(self.device)
        quicken(step, recipe.speed, self.device)
        shard(step, recipe.speed, self.device, self.precision.precision)
        return step

    def _probe_rows(self) -> list[Source]:
        """The images that are looked at: those that vote and those that are asked, or some to train on."""
        config = self.recipe.probe
        if self.probed is None:
            return [first_rows(self.source, config.rank_rows)]
        counts = (config.train_rows, config.test_rows)
        return [first_rows(source, count) for source, count in zip(self.probed, counts, strict=True)]

    def _protocol(self) -> str:
        """What the probe measures, in 16 hexadecimal digits: two scores compare where these are the same."""
        return fingerprint([self.recipe.probe.neighbours, *(rows.fingerprint for rows in self._probe_rows())])

    def _measure(self, step: Pretrain, quarantine: Quarantine) -> Callable[[], dict[str, float]]:
        """How quality is measured during the run: k-NN where there are labels, the score card always."""
        module, how = step.teacher.backbone, Extraction(self.device, self.precision.precision)
        vote = KnnConfig(neighbours=self.recipe.probe.neighbours)

        def features(source: Source, dense: int = 0) -> Seen:
            return shared_features(module, source, self.preprocessing, how, on_broken=quarantine, dense=dense)

        def measure() -> dict[str, float]:
            *voting, asked = self._probe_rows()
            with gathered(module):
                banks = [features(source) for source in voting]
                seen = features(asked, DENSE)

            def judged() -> tuple[dict[str, float], Neighbours | None]:
                scores: dict[str, float] = {}
                for source, bank in zip(voting, banks, strict=True):
                    known, wanted = _labels(source, bank), _labels(asked, seen)
                    scores["knn"] = knn_scores(bank.image, known, seen.image, wanted, config=vote)[0].value
                label_free, neighbours = card(seen, self.neighbours)
                return scores | label_free, neighbours

            # Judged once: whether a backbone is kept must be the same everywhere.
            scores, self.neighbours = dist.leading(judged)
            return scores

        return measure

    def _summary(
        self, metrics: Path, history: list[dict[str, Any]], events: list[str], first: int, quarantine: Quarantine,
        *, seconds: float, peak: int,
    ) -> Pretrained:  # fmt: skip
        rows = read_lines(metrics)
        knn = [row["knn"] for row in comparable(history, self._protocol())]
        done = Pretrained(
            steps=self.steps,
            images=self.steps * self.recipe.plan.batch,
            losses=rows[-1]["losses"] if rows else {},
            knn={"first": knn[0], "last": knn[-1], "best": max(knn)} if knn else None,
            **{name: history[-1].get(name) if history else None for name in _LABEL_FREE},
            events=events,
            resumed_from=first,
            quarantined=len(quarantine.seen),
            backbone=str(self.out / "backbone"),
            seconds=seconds,
            images_per_second=self.steps * self.recipe.plan.batch / seconds,
            peak_memory_bytes=peak,
        )
        facts = {name: getattr(done, name) for name in Pretrained.__slots__}
        write_json(self.out / "summary.json", {**facts, "history": history, "versions": versions()})
        return done


def _memory(latest: Saved | None) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Steps done, what was measured, what happened."""
    if latest is None:
        return 0, [], []
    return latest.step, list(latest.facts["history"]), list(latest.facts["events"])


def _neighbours(latest: Saved | None, protocol: str) -> Neighbours | None:
    """What the last look left, if it was at the same images; checkpoints of earlier versions hold none."""
    there = latest.facts.get("neighbours", {}) if latest else {}
    return there.get("rows") if there.get("protocol") == protocol else None


def _labels(source: Source, seen: Seen) -> torch.Tensor:
    return torch.from_numpy(source.columns["label"][seen.rows])


def _named(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
