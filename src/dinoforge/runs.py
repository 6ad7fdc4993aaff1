"""Assembles a run from a recipe: data, networks, optimiser, what watches; then hands it to the loop."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dinoforge.base import dist
from dinoforge.base.config import fingerprint, science
from dinoforge.base.errors import ConfigError, RunError
from dinoforge.base.files import append_line, write_json, write_text
from dinoforge.base.hardware import Choice, choose_precision, compute_context, device, resumed_precision, versions
from dinoforge.base.lock import locked
from dinoforge.base.log import Ticker, progress, say
from dinoforge.base.memory import peak_bytes
from dinoforge.data.loader import Groups, Loader, share_of
from dinoforge.data.order import weights_of
from dinoforge.data.quarantine import Quarantine
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction
from dinoforge.model.table import build
from dinoforge.model.weights import Backbone
from dinoforge.recipes.cost import memory_of_a_rank, planned, too_large
from dinoforge.recipes.kept import Keep
from dinoforge.recipes.opened import anchor, labelled, opened
from dinoforge.recipes.outcome import Pretrained, concluded
from dinoforge.recipes.quality import Quality
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.retained import reference, watch
from dinoforge.recipes.settle import to_yaml
from dinoforge.recipes.stages import PHASE, Stage, stage_after, stage_of, stages
from dinoforge.recipes.teacher import Teacher, teacher
from dinoforge.report.film import Film
from dinoforge.train.assembly import assembled, student_of
from dinoforge.train.checkpoint import Checkpoints, Saved
from dinoforge.train.diary import Diary
from dinoforge.train.distil import Shared
from dinoforge.train.folder import clear, refuse_strangers
from dinoforge.train.loop import Done, Observer, steps_of
from dinoforge.train.observe import (
    Agreement,
    Checkpointing,
    Metrics,
    Probe,
    Stop,
    best_rank,
    cut_metrics,
)
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import gathered, quicken, shard
from dinoforge.train.retention import Retention
from dinoforge.train.sentinel import RollBack, Sentinel
from dinoforge.train.step import Networks, Pretrain, teacher_of
from dinoforge.train.trackers.table import tracking
from dinoforge.train.trackers.tracker import Opening, Tracker, library
from dinoforge.train.vitals import Pulse


def pretrain(**settings: Any) -> Pretrained:
    """Train a backbone on images without labels. The same command again goes on where it stopped.

    Args:
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        out: Folder of the run: config.yaml, metrics.jsonl, checkpoints/, backbone/ (the best), summary.json.
        recipe: Where to start from, see `dinoforge recipes`; vit_small.small_data if nothing is said.
        config: A YAML file with a whole recipe, such as config.yaml of another run, instead of a recipe.
        probe: Labelled images whose k-NN accuracy is measured during the run.
        init: A backbone to start from; its architecture is taken too.
        retention: Images of the kind that init= was trained on: what it could do there is watched, and kept.
        teacher: A run whose networks, frozen, are the teacher; see `dinoforge distil`.
    """
    with dist.joined():
        return dist.together(lambda: prepared(dict(settings))).go()


def prepared(rest: dict[str, Any]) -> Run:
    """What was asked for, checked as far as that is possible before anything is written."""
    out = rest.pop("out", None)
    if not out:
        raise ConfigError("out= is required: the folder of the run.")
    recipe, source, start = opened(rest)
    gram = anchor(recipe)
    taught_by = teacher(recipe, out=Path(str(out)))
    probed = labelled(recipe.probe.source) if recipe.probe.source else None
    old = reference(recipe.continuation)
    for tracker in recipe.speed.trackers:
        library(tracker)  # its absence is told before anything is written
    where = device(recipe.speed.device)
    for stage in stages(recipe, len(source)):
        share_of(
            stage.recipe.plan.batch, group=recipe.objective.group, world=dist.world(), setting=stage.batch_setting
        )  # fmt: skip
    precision = choose_precision(recipe.speed.precision, where)
    return Run(recipe, source, probed, start, Path(str(out)), where, precision, gram, taught_by, old)


@dataclass(frozen=True, slots=True)
class Around:
    """What goes on over all stretches of a start."""

    checkpoints: Checkpoints
    diary: Diary
    quarantine: Quarantine
    stop: Stop
    tick: Ticker
    trackers: Sequence[Tracker]
    began: float
    """When the run would have begun had it never stopped, by the monotonic clock."""

    def flush(self, metrics: Metrics | None = None) -> None:
        """Write the lines that a full disk has refused, and all steps of ``metrics``; only the first rank has any.

        Raises:
            RunError: It is still full.
        """
        if metrics is not None:
            metrics.flush()
        self.diary.flush()
        self.quarantine.flush()


class Run:
    """One run folder: made, resumed, finished."""

    def __init__(
        self, recipe: Recipe, source: Source, probed: tuple[Source, Source] | None, start: Backbone | None, out: Path,
        where: torch.device, precision: Choice, gram: Backbone | None = None, teacher: Teacher | None = None,
        old: tuple[Source, ...] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.source, self.probed, self.out = recipe, source, probed, out
        self.device, self.precision, self.start, self.gram = where, precision, start, gram
        self.teacher, self.old = teacher, old
        self.shared: Shared | None = None
        self.stop: Stop | None = None
        self.shows, self.at_once = True, list[int]()
        self.stages = stages(recipe, len(source))
        self.steps, self.images = self.stages[-1].end, self.stages[-1].images(self.stages[-1].end)
        self.micro_batch: dict[int, int] = {}
        """Of each stage, by the steps before it: images that a rank computes at once."""
        self.history: list[dict[str, Any]] = []
        """What was measured, oldest first."""
        self.identity: dict[str, Any] = {
            "settings": science(recipe),
            "data": source.fingerprint,
            "init": None if start is None else start.fingerprint,
        }
        named = {"gram": gram, "teacher": teacher}
        self.identity |= {name: found.fingerprint for name, found in named.items() if found is not None}
        if old is not None:  # how much is lost of them decides the course
            self.identity["retention"] = [rows.fingerprint for rows in old]
        weights = weights_of(source.columns, recipe.data.sampling)
        if weights is not None:  # they decide the order
            self.identity["sampling"] = fingerprint(weights.tolist())
        self.fingerprint = fingerprint(self.identity)

    def share(self, shared: Shared, stop: Stop, *, shows: bool, at_once: list[int]) -> None:
        """Take turns with the runs of other students of the same teacher.

        Args:
            stop: Asks all of them.
            shows: Whether this one shows how far all are.
            at_once: Images that all compute at once, in each stage.
        """
        self.shared, self.stop, self.shows, self.at_once = shared, stop, shows, at_once

    def go(self) -> Pretrained:
        """Train to the end of the plan.

        Raises:
            UserError, Interrupted, SentinelStop: As ``steps_of_go``.
        """
        steps = self.steps_of_go()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                done: Pretrained = end.value
                return done

    def steps_of_go(self) -> Generator[int, None, Pretrained]:
        """Train to the end of the plan; gives the number of each step that is done, so that other runs may do theirs.

        Raises:
            RunError: The folder is in use or holds something else.
            Interrupted: Stopped on request, after a checkpoint.
            SentinelStop: It is not healthy, and what the sentinel may do is spent or would not help.
        """
        self._compare_ranks()
        dist.leading(lambda: refuse_strangers(self.out, self.identity))
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
            at_once = dist.leading(self._plan)
            self.micro_batch = {stage.before: images for stage, images in zip(self.stages, at_once, strict=True)}
            try:
                return (yield from self._train(checkpoints))
            except (Exception, GeneratorExit):
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
        refuse_strangers(self.out, self.identity)
        clear(self.out)
        # First of all files: from here on, whatever is cut off, the folder is known as this run's.
        write_json(
            self.out / "run.json",
            {"fingerprint": self.fingerprint, **self.identity, "images": len(self.source), "versions": versions()},
        )
        write_text(self.out / "config.yaml", to_yaml(self.recipe))

    def _plan(self) -> list[int]:
        """Say and keep what the run will be; speed is not probed, the first steps show it.

        Returns:
            Images that a rank computes at once in each stage.

        Raises:
            ConfigError: Nothing fits into the memory that there is.
        """
        facts = planned(self.recipe, self.source, self.device, self.precision)
        for stage, part in zip(self.stages, facts.parts, strict=True):
            if part.memory_bytes > memory_of_a_rank(self.device) and self.recipe.speed.micro_batch == "auto":
                raise ConfigError(too_large(stage, part.memory_bytes, self.device))
        write_json(self.out / "plan.json", asdict(facts))
        for line in (facts.line(), *(f"Warning: {warning}" for warning in facts.warnings)):
            say(line)
        return self.at_once or [part.micro_batch for part in facts.parts]

    def _train(self, checkpoints: Checkpoints) -> Generator[int, None, Pretrained]:
        """Stretch after stretch, each from the newest checkpoint, until there is one of the last step."""
        quarantine = Quarantine(self.out / "quarantine.jsonl")
        for name, reason in self.source.rejected:
            quarantine(name, reason)
        diary, metrics = Diary(self.out / "events.jsonl"), self.out / "metrics.jsonl"
        latest = _past(checkpoints, diary)
        if latest is not None:
            self.history = list(latest.facts["history"])
        first = latest.step if latest else 0
        began = time.monotonic() - (float(latest.facts.get("seconds", 0)) if latest else 0)
        written = dist.leading(lambda: cut_metrics(metrics, latest.step if latest else None))
        opening = Opening(folder=self.out, run=self.fingerprint, name=self.out.name, first=first, written=written)
        seen = stage_of(self.stages, first).images(first)
        with (
            Stop() if self.stop is None else nullcontext(self.stop) as stop,
            progress("pretrain", self.images, start=seen, shows=self.shows) as tick,
            tracking(self.recipe.speed.trackers if dist.rank() == 0 else (), opening) as trackers,
        ):
            around = Around(checkpoints, diary, quarantine, stop, tick, trackers, began)
            try:
                while latest is None or latest.step < self.steps:
                    try:
                        yield from self._stretch(around, latest)
                    except RollBack as back:
                        with suppress(RunError):
                            checkpoints.wait()
                        # Where all are later than that it begins again: a checkpoint from after the first sign may be as
                        # ill as what followed, and no lower rate mends weights.
                        good = _past(checkpoints, diary, until=back.good)
                        diary.note(back.act(good.step if good else 0))
                    gc.collect()  # networks are held in circles: those of one stretch go before the next one's come
                    latest = _past(checkpoints, diary)
                dist.leading(around.flush)
            finally:
                with suppress(Exception):  # however it ended, that is what is told
                    around.flush()
        seconds = time.monotonic() - began
        most = max(dist.gather(peak_bytes(self.device)))
        return dist.leading(lambda: self._summary(first, around, seconds=seconds, peak=most))

    def _stretch(self, around: Around, latest: Saved | None) -> Iterator[int]:
        """From a checkpoint, or from nothing, to the end of the stage that its next step lies in, and a checkpoint there.

        All that a stage needs is made here and gone afterwards: networks, optimiser, loader, observers.

        Raises:
            RollBack: The run is to go on from an earlier checkpoint.
        """
        first = latest.step if latest else 0
        stage = stage_after(self.stages, first)
        plan, began = stage.recipe.plan, around.began
        self.history = [row for row in self.history if latest is not None and row["step"] <= first]
        diary = around.diary
        diary.resume(first)
        # Those that it went back from have later steps, and would push out the ones to come.
        around.checkpoints.remove(lambda saved: not _owned(saved, diary))
        step, adamw = self._networks(stage, around.checkpoints, latest)
        metrics_file, quarantine, stop = self.out / "metrics.jsonl", around.quarantine, around.stop
        how = Extraction(self.device, self.precision.precision)
        quality = Quality(stage, self.source, self.probed, how, latest=latest, on_broken=quarantine)
        protocol = quality.protocol
        dist.leading(lambda: cut_metrics(metrics_file, latest.step if latest else None))
        retention: Retention | None = None

        def measured() -> dict[str, float]:
            return quality.measure(step.average.backbone) | (dict(retention.scores()) if retention else {})

        probe = Probe(
            measured, self._keep(stage, step, around, latest, protocol), every=stage.between_looks, steps=stage.steps,
            before=stage.before, history=self.history, protocol=protocol, film=self._film(quality, step), failed=diary.not_kept,
        )  # fmt: skip
        if latest is None:
            scores = probe.look(0)
            dist.leading(lambda: append_line(metrics_file, {"step": 0, "images": 0, "losses": {}, **scores}))
            say("Before the first step: " + _named(scores))
        metrics = Metrics(
            metrics_file, images=stage.images, tick=around.tick, waits=self.device.type != "cpu",
            trackers=around.trackers,
        )  # fmt: skip
        agreement = Agreement(stop, quarantine.news, lambda report: quarantine(*report))
        sentinel = Sentinel(
            self.recipe.sentinel, diary, due=lambda done: stop.asked or probe.due(done) or checkpointing.due(done),
            record=metrics.last, rows_at_once=metrics.rows_at_once, precision=self.precision.precision,
            steps=stage.end, pulse=Pulse(step.student, step.average),
            memory=latest.facts.get("sentinel") if latest and latest.step > stage.before else {"good": first},
        )  # fmt: skip
        if self.old is not None and self.start is not None:
            retention = watch(
                self.recipe, self.old, self.start.module, quality, step, diary=diary, guard=sentinel.guard,
                record=metrics.last, steps=self.steps, memory=latest.facts.get("retention") if latest else None,
            )  # fmt: skip
        checkpointing = Checkpointing(
            around.checkpoints, (step, adamw),
            facts=lambda done: {"step": done, "images": stage.images(done), "run": self.fingerprint,
                                "precision": self.precision.precision,
                                # Copied: training goes on, and measures, while they are written.
                                "history": list(self.history), "sentinel": sentinel.memory(), "sound": sentinel.sound(done),
                                "retention": retention and retention.memory(),
                                "rollbacks": len(diary.rollbacks()),
                                "neighbours": {"protocol": protocol, "rows": quality.neighbours},
                                "seconds": time.monotonic() - began},
            settle=lambda: around.flush(metrics), failed=sentinel.write_failed, stop=stop, due=stage.saves,
            retry=max(1, stage.between // 5), end=stage.end, steps=self.steps,
        )  # fmt: skip

        def judge(done: Done) -> None:
            """Whether what a probe has found is still healthy."""
            if "rank" in done.facts:
                best = best_rank(self.history, protocol, steps=stage.end)
                sentinel.scores(done, done.facts["rank"], best)

        watching: list[Observer] = [sentinel] if retention is None else [sentinel, retention]
        observers: list[Observer] = [agreement, *watching, probe, judge, metrics, checkpointing]

        def observe(done: Done) -> None:
            """Of a step of the stage, by its number in the run."""
            done = replace(done, step=stage.before + done.step)
            for observer in observers:
                observer(done)

        loader, own = self._loader(stage, quarantine), first - stage.before
        groups = stage.images_before // self.recipe.objective.group
        for done in steps_of(
            step, adamw, loader.batches(first=own, steps=stage.steps, before=groups), plan=plan, steps=stage.steps,
            first=own, parts=loader.parts, compute=compute_context(self.precision.precision, self.device),
            guard=sentinel.guard, observers=[observe],
        ):  # fmt: skip
            yield stage.before + done
        agreement.exchange()  # what the last probe found

    def _keep(self, stage: Stage, step: Pretrain, around: Around, latest: Saved | None, protocol: str) -> Keep:
        """What keeps the best backbone; from now on the one that is kept is of the run's past."""
        data, init = self.identity["data"], self.identity["init"]
        keep = Keep(self.out, stage, step, around.diary, run=self.fingerprint, data=data, init=init)
        keep.go_back(around.checkpoints, latest, self.history, protocol=protocol)
        return keep

    def _film(self, quality: Quality, step: Pretrain) -> Callable[[int], None]:
        """What records pictures for the report."""
        rows = self.probed[1] if self.probed else self.source
        film = Film(self.out / "film", rows, quality.preprocessing, quality.how, on_broken=quality.on_broken)

        def look(done: int) -> None:
            with gathered(step.average.backbone):
                dist.leading(lambda: film(step.average.backbone, done))

        return look

    def _loader(self, stage: Stage, quarantine: Quarantine) -> Loader:
        """This rank's share of every batch of a stage."""
        recipe = stage.recipe
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
            parts=recipe.plan.batch // dist.world() // self.micro_batch[stage.before],
        )

    def _networks(
        self, stage: Stage, checkpoints: Checkpoints, latest: Saved | None
    ) -> tuple[Pretrain, torch.optim.Optimizer]:
        """Student and teachers of a stage and their optimiser: fresh, as a checkpoint of the stage has them, or fresh
        but for the weights that the stage before left."""
        recipe = stage.recipe
        backbone = build(recipe.backbone, seed=recipe.seed)
        if self.start is not None:
            backbone.load_state_dict(backbone.fitted(self.start.module.state_dict()))
        # Copies, for every stretch spreads its own over the ranks.
        gram = None if self.gram is None else copy.deepcopy(self.gram.module)
        frozen = None if self.teacher is None else self._frozen(self.teacher)
        width = None if self.teacher is None else self.teacher.networks.backbone.width
        student = student_of(backbone, recipe.objective, seed=recipe.seed, how=recipe.distil, width=width)
        step = assembled(
            student, teacher_of(student), recipe.objective, seed=recipe.seed, gram=gram, teacher=frozen, how=recipe.distil,
            shared=self.shared,
        )  # fmt: skip
        begins = latest is not None and stage.before == latest.step
        if latest is not None and begins:
            checkpoints.begin_from(latest, step, step.fitted)
            say(f"{PHASE}: {stage.pixels} pixels from step {latest.step} on, with the weights of {latest.folder}.")
        step = step.to(self.device)
        quicken(step, recipe.speed, self.device)
        shard(step, recipe.speed, self.device, self.precision.precision)
        how = fused(recipe.speed.optimizer, self.device)
        adamw = optimizer(step.student, recipe.plan, fused=how, continuation=recipe.continuation)
        if latest is not None and not begins:
            checkpoints.load(latest, step, adamw)
            say(f"Going on from {latest.folder} (step {latest.step} of {self.steps}).")
        return step, adamw

    def _frozen(self, teacher: Teacher) -> Networks:
        """The teacher's networks: a copy of one's own, or the one that several students have together."""
        if self.shared is None or dist.active():  # spread over ranks anew in every stretch
            return copy.deepcopy(teacher.networks)
        if self.shared.teacher is None:
            self.shared.teacher = teacher.networks
        return self.shared.teacher

    def _summary(self, first: int, around: Around, *, seconds: float, peak: int) -> Pretrained:
        return concluded(
            self.out, self.history, Pretrained(
                steps=self.steps, images=self.images, events=around.diary.sentences(), resumed_from=first,
                quarantined=len(around.quarantine.seen), backbone=str(self.out / "backbone"), seconds=seconds,
                images_per_second=self.images / seconds, peak_memory_bytes=peak,
            ),
        )  # fmt: skip


def _past(checkpoints: Checkpoints, diary: Diary, until: int | None = None) -> Saved | None:
    """The newest checkpoint, not counting those from which the run went back, or which are later than ``until``."""
    return checkpoints.latest(lambda saved: _owned(saved, diary) and (until is None or saved.step <= until))


def _owned(saved: Saved, diary: Diary) -> bool:
    """Whether a checkpoint is the run's past."""
    return diary.owns(saved.step, saved.facts.get("rollbacks", 0))


def _named(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
