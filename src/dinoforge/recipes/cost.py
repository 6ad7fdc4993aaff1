"""What a recipe costs and what should make its owner think twice, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache

import torch

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice, cores, cpu_flags, cpu_has_bf16, matmul_rate
from dinoforge.base.log import clock
from dinoforge.base.memory import memory_bytes
from dinoforge.data.loader import Group, Groups, Loader, share_of
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction
from dinoforge.model.table import BackboneConfig
from dinoforge.recipes.hardware import Cluster, Step, step_of
from dinoforge.recipes.opened import anchor
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.stages import PHASE, Stage, stages
from dinoforge.recipes.teacher import design
from dinoforge.train.distil import Design
from dinoforge.train.forecast import Forecast, Job, Pace, forecast, pace

MANY_PASSES = 500
"""Passes over the data from which on a plan is warned of; the published runs on ImageNet-1k make 200."""
FEW_IMAGES = 1_000
"""Images below which features learnt from nothing serve little."""
SMALL_BATCH = 64
"""Images below which a batch that is one group is warned of."""
SMALL_GROUP = 8
"""Images of a group below which KoLeo's nearest neighbours say little."""
MOST_MEMORY = 0.85
"""Share of a device's memory that a step may be forecast to take."""
PROBE_SECONDS = 5.0
"""Longest that a step of the probe may be expected to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a run would be and cost."""

    steps: int
    images: int
    """Seen in all, repeats counted."""
    passes: float
    """Times that the data are gone through."""
    batch: int
    micro_batch: int
    """Images of it that a device computes at once."""
    ranks: int
    """Devices that share it."""
    data_images: int
    memory_bytes: int
    """Peak of the main process (on a GPU: of the device) of each rank, predicted."""
    memory: dict[str, int]
    """By part, in bytes, at the moment of the peak."""
    flops: float
    """Floating-point operations of the matrix products of the whole run."""
    images_per_second: float | None = None
    """Predicted by the probe, or for named ranks or hardware by the model; null where neither was asked for."""
    seconds: float | None = None
    """Of all steps; probes of quality and checkpoints come on top."""
    bound: str | None = None
    """What the speed hangs on: step, data or cores (both together want more than there are); for named hardware compute,
    update, launch or exchange."""
    each_step: Step | None = None
    """By the model of ``recipes.hardware``, where ranks or hardware are named."""
    pixels: int = 0
    """Side of a global view."""
    warnings: list[str] = field(default_factory=list)
    stages: list[Planned] = field(default_factory=list)
    """Where there is a high-resolution phase: the plan itself and the phase, each as if alone. Of the whole, memory is that of
    the larger, batch, pixels and step those of the plan."""

    @property
    def parts(self) -> list[Planned]:
        """The stages, or the one that there is."""
        return self.stages or [self]

    def line(self) -> str:
        """The plan in one line."""
        time_ = f", about {clock(self.seconds)}" if self.seconds is not None else ""
        shared = f" on {self.ranks} ranks" if self.ranks > 1 else ""
        first, *later = (
            f"{part.steps:,} steps of {part.batch:,} images"
            + (f" at {part.pixels} pixels" if self.stages else "")
            + shared
            + (f" ({part.micro_batch:,} at once)" if part.micro_batch * part.ranks < part.batch else "")
            for part in self.parts
        )
        then = "".join(f", then {part}" for part in later)
        return (
            f"Plan: {first}{then}, {self.passes:,.1f} passes over "
            f"{self.data_images:,} images, about {self.memory_bytes / 2**30:.1f} GiB of memory{' a rank' if shared else ''}"
            f"{time_}."
        )


def planned(
    recipe: Recipe, source: Source, where: torch.device, precision: Choice, there: Cluster | None = None
) -> Planned:
    """Steps, passes, memory and warnings, without running a step of the recipe; on a cluster seconds too, by a model.

    Args:
        there: Where it is to run, if not in these very processes.

    Raises:
        ConfigError: A batch does not divide among the ranks, or their share not into such parts.
    """
    return _joined(
        recipe, [_planned(stage, source, where, precision, there) for stage in stages(recipe, len(source))]
    )  # fmt: skip


def _joined(recipe: Recipe, parts: list[Planned]) -> Planned:
    """The whole of a run's stages, and what is odd about it."""
    first, *later = parts
    whole = first
    if later:
        largest = max(parts, key=lambda part: part.memory_bytes)
        steps, images = sum(part.steps for part in parts), sum(part.images for part in parts)
        times = [part.seconds for part in parts]
        seconds = None if None in times else sum(time for time in times if time is not None)
        whole = replace(
            first, steps=steps, images=images, passes=images / first.data_images, memory_bytes=largest.memory_bytes,
            memory=largest.memory, flops=sum(part.flops for part in parts), seconds=seconds,
            images_per_second=images / seconds if seconds else None, stages=parts,
        )  # fmt: skip
    told = [f"{PHASE}: {warning}" for part in later for warning in part.warnings if warning not in first.warnings]
    return replace(whole, warnings=[*_doubts(recipe, whole), *first.warnings, *told])


def _planned(
    stage: Stage, source: Source, where: torch.device, precision: Choice, there: Cluster | None
) -> Planned:  # fmt: skip
    """One stage as if alone; warned of is what it costs."""
    recipe, images, steps = stage.recipe, len(source), stage.steps
    plan = recipe.plan
    found, micro_batch = fitted(stage, where, precision, there)
    facts = Planned(
        steps=steps,
        images=steps * plan.batch,
        passes=steps * plan.batch / images,
        batch=plan.batch,
        micro_batch=micro_batch,
        ranks=_ranks(there),
        data_images=images,
        memory_bytes=found.memory.total,
        memory=asdict(found.memory),
        flops=found.flops * steps,
        pixels=stage.pixels,
    )
    facts = replace(facts, warnings=[*_lacks(stage, found.memory.total, where, precision, there)])
    if there is None:
        return facts
    its = job(recipe, where, precision, micro_batch, there)
    alone = _alone(recipe, found, where, precision, its) if there.here else None
    step = step_of(its, found.flops, there, steps=steps, measured=alone if isinstance(alone, Pace) else None)
    untried = (
        [f"No step is tried: {alone}; its time is worked out from a matrix product."] if isinstance(alone, str) else []
    )
    return replace(
        facts,
        each_step=step,
        seconds=step.seconds * steps,
        images_per_second=plan.batch / step.seconds,
        bound=step.bound,
        warnings=[*facts.warnings, *untried, *_waits(its, step, there)],
    )


def _alone(recipe: Recipe, found: Forecast, where: torch.device, precision: Choice, its: Job) -> Pace | str:
    """How long steps take on this device alone, where the whole state must fit; or why that is not tried."""
    memory = found.memory
    state = memory.weights + memory.teacher + memory.gradients + memory.optimizer
    return step_pace(recipe, where, precision, memory=memory.total + (its.ranks - 1) * state, flops=found.flops,
                     at_once=its.images)  # fmt: skip


def _ranks(there: Cluster | None) -> int:
    return dist.world() if there is None else there.ranks


def _waits(its: Job, step: Step, there: Cluster) -> Iterator[str]:
    """What is doubtful about how ranks hear of one another."""
    if there.here and there.ranks > 1:
        yield (
            "Between devices like this one 10 Gbit/s are assumed; name hardware= where the devices of the table are meant."
        )
    if step.bound != "exchange":
        return
    remedies = [
        *(["set speed.sharding=state"] if its.speed.sharding == "all" else []),
        *(["set speed.reduce=bf16"] if (its.precision, its.speed.reduce) == ("bf16", "fp32") else []),
        *(["raise speed.micro_batch"] if its.parts > 1 else []),
        "start fewer ranks",
        "raise plan.batch (another run)",
    ]
    yield (
        f"Communication bounds the run: of {step.seconds:,.3g} s a step, ranks wait {step.waiting_seconds:,.3g} for "
        f"{step.sent_bytes / 1e9:,.3g} GB; {', '.join(remedies[:-1])}, or {remedies[-1]}."
    )


def fitted(stage: Stage, where: torch.device, precision: Choice, there: Cluster | None = None) -> tuple[Forecast, int]:
    """How many images a rank computes at once, as asked or as many as fit into the budget, and what a step then needs.

    Where not even one group fits, that is what is returned.

    Raises:
        ConfigError: The batch does not divide among the ranks, or their share not into such parts.
    """
    recipe = stage.recipe
    group, wish = recipe.objective.group, recipe.speed.micro_batch
    share = share_of(recipe.plan.batch, group=group, world=_ranks(there), setting=stage.batch_setting)
    fitting = [size for size in range(share, 0, -group) if share % size == 0]
    if wish != "auto":
        if wish not in fitting:
            raise ConfigError(
                f"speed.micro_batch={wish} does not divide a rank's {share} images into whole groups of "
                f"{group}; {', '.join(map(str, reversed(fitting)))} would."
            )
        return forecast(job(recipe, where, precision, wish, there)), wish
    budget, at_once = memory_budget(recipe, where, there), share
    while True:
        found = forecast(job(recipe, where, precision, at_once, there))
        smaller = [size for size in fitting if size < at_once]
        if found.memory.total <= budget or not smaller:
            return found, at_once
        # Activations grow with the images: from what these take, the size is told that may fit.
        an_image = found.memory.activations / at_once
        spare = budget - found.memory.total + found.memory.activations
        at_once = next((size for size in smaller if size * an_image <= spare), smaller[-1])


def memory_budget(recipe: Recipe, where: torch.device, there: Cluster | None = None) -> float:
    """Bytes that a rank may take: as asked, or most of what its device has. What happens to be free now does not count, so
    that the same command does the same tomorrow."""
    if recipe.speed.memory_gib is not None:
        return recipe.speed.memory_gib * 2**30
    return MOST_MEMORY * memory_of_a_rank(where, there)


def memory_of_a_rank(where: torch.device, there: Cluster | None = None) -> float:
    """Bytes of its GPU, or its share of the machine's memory."""
    if there is not None:
        return there.hardware.memory_gib * 2**30
    return memory_bytes(where) / (1 if where.type == "cuda" else dist.local_world())


def job(
    recipe: Recipe,
    where: torch.device,
    precision: Choice,
    micro_batch: int | None = None,
    there: Cluster | None = None,
) -> Job:
    """What the cost of a recipe's steps depends on."""
    probe = recipe.probe
    rows = max(probe.train_rows, probe.test_rows) if probe.source else probe.rank_rows
    if recipe.continuation is not None and recipe.continuation.retention is not None:
        rows = max(rows, recipe.continuation.retention.train_rows, recipe.continuation.retention.test_rows)
    return Job(
        backbone=recipe.backbone,
        objective=recipe.objective,
        plan=recipe.plan,
        augment=recipe.data.augment,
        masks=recipe.data.masks,
        device=where,
        precision=precision.precision,
        speed=recipe.speed,
        probe_rows=min(-(-rows // _ranks(there)), Extraction(where).rows_at_once),
        probe_bank=rows,
        micro_batch=micro_batch,
        ranks=_ranks(there),
        elsewhere=there is not None and not there.here,
        gram=_anchor(recipe),
        teacher=_teacher(recipe),
        distil=recipe.distil,
    )


@cache
def _teacher(recipe: Recipe) -> Design | None:
    """What a frozen teacher is made of; its run is asked once."""
    return design(recipe)


@cache
def _anchor(recipe: Recipe) -> BackboneConfig | None:
    """Architecture of the Gram teacher that is read from elsewhere; its file is read once."""
    found = anchor(recipe)
    return None if found is None else found.config


def _doubts(recipe: Recipe, facts: Planned) -> Iterator[str]:
    """What is odd about the plan itself, whatever the machine."""
    objective, images = recipe.objective, facts.data_images
    matched = recipe.distil is not None and recipe.distil.matching is not None
    if facts.passes > MANY_PASSES:
        yield (
            f"{facts.passes:,.0f} passes over {images:,} images: above {MANY_PASSES} passes a backbone learns its images by "
            "heart; lower plan.images, or add data."
        )
    batches = {"plan.batch": facts.batch}
    if recipe.high_resolution is not None and recipe.high_resolution.batch not in {None, facts.batch}:
        batches["high_resolution.batch"] = recipe.high_resolution.batch or 0
    for setting, batch in batches.items():
        yield from _doubts_of_batch(setting, batch, images=images, group=None if matched else objective.group)
    if images < FEW_IMAGES:
        yield f"{images:,} images are few: below {FEW_IMAGES:,}, go on from a trained backbone (init=) or add data."
    if matched:
        return  # no neighbours are sought, and there are no prototypes
    if objective.koleo_weight and objective.group < SMALL_GROUP:
        yield (
            f"objective.group={objective.group} is small for KoLeo: below {SMALL_GROUP} images, a nearest neighbour says "
            "little; raise objective.group, or set objective.koleo_weight=0."
        )
    if objective.head.prototypes > facts.images:
        yield (
            f"objective.head.prototypes={objective.head.prototypes:,} are more than the {facts.images:,} images seen in all: "
            "most will never be used; lower them."
        )


def _doubts_of_batch(setting: str, batch: int, *, images: int, group: int | None) -> Iterator[str]:
    """What is odd about how many images a step sees, in groups if within these they are compared."""
    if images < batch:
        yield f"{images:,} images are fewer than a batch of {batch:,}: every step shows some twice; lower {setting}."
    if batch == group and batch < SMALL_BATCH:
        yield (
            f"{setting}={batch} is one group of objective.group={group}: below {SMALL_BATCH} images, targets "
            f"are balanced and neighbours sought among very few; raise {setting}."
        )


def _lacks(stage: Stage, needed: int, where: torch.device, precision: Choice, there: Cluster | None) -> Iterator[str]:
    """What this machine lacks, or the one it is to run on."""
    if needed > memory_of_a_rank(where, there):
        yield too_large(stage, needed, where, there)
    if there is not None and not there.here:
        return
    if precision.precision == "bf16" and where.type == "cpu" and not cpu_has_bf16(cpu_flags()):
        yield "precision=bf16 on a CPU without bf16 instructions is many times slower than fp32; leave precision=auto."


def too_large(stage: Stage, needed: int, where: torch.device, there: Cluster | None = None) -> str:
    """That a stage of a run does not fit, here or there, and what to change."""
    recipe = stage.recipe
    kind = "this GPU" if where.type == "cuda" else "this machine"
    if there is not None and not there.here:
        kind = there.hardware.name
    a_rank = f" for each of {dist.local_world()} ranks" if where.type != "cuda" and dist.local_world() > 1 else ""
    settings = "high_resolution.global_pixels, " if stage.before else ""
    settings += f"objective.group={recipe.objective.group}, data.augment.local_views or objective.head.prototypes"
    several = _ranks(there) > 1 and recipe.speed.sharding == "state"
    sharding = "set speed.sharding=all, " if several else ""
    checkpointing = "" if recipe.speed.checkpointing == "full" else "set speed.checkpointing=full, "
    return (
        f"The run needs about {needed / 2**30:,.1f} GiB, {kind} has {memory_of_a_rank(where, there) / 2**30:,.1f}{a_rank}: "
        f"{checkpointing}{sharding}lower {settings}, start more ranks on other machines, or take a smaller backbone."
    )


def probed(facts: Planned, recipe: Recipe, source: Source, where: torch.device, precision: Choice) -> Planned:
    """The same facts with the speed that a few real steps and groups show, or with the reason why there is none.

    Raises:
        DataError: Hardly an image of the source can be used.
    """
    if not facts.stages:
        return _probed(facts, recipe, source, where, precision)
    alone = zip(facts.stages, stages(recipe, len(source)), strict=True)
    return _joined(recipe, [_probed(part, stage.recipe, source, where, precision) for part, stage in alone])


def _probed(facts: Planned, recipe: Recipe, source: Source, where: torch.device, precision: Choice) -> Planned:
    """One stage with its speed."""
    measured = step_pace(recipe, where, precision, memory=facts.memory_bytes, flops=facts.flops / facts.steps,
                         at_once=facts.micro_batch)  # fmt: skip
    if isinstance(measured, str):
        warning = f"No time is predicted: {measured}."
        return replace(facts, warnings=[*facts.warnings, warning])
    made, joined = _data_seconds(recipe, source, where)
    step = measured.seconds(facts.batch) + joined * facts.batch
    workers = recipe.speed.workers
    times = {"step": step + (0 if workers else made * facts.batch), "data": made * facts.batch / max(workers, 1)}
    if where.type == "cpu" and workers:
        threads = torch.get_num_threads()
        times["cores"] = (step * threads + made * facts.batch) / min(cores(), threads + workers)
    bound = max(times, key=lambda name: times[name])
    warnings = list(facts.warnings)
    if bound == "data":
        warnings.append(
            f"Reading bounds the run: {workers} workers make {facts.batch / times['data']:,.0f} images/s, the step takes "
            f"{facts.batch / times['step']:,.0f}; raise workers= (this machine has {cores()} cores) or store smaller images."
        )
    return replace(
        facts,
        seconds=times[bound] * facts.steps,
        images_per_second=facts.batch / times[bound],
        bound=bound,
        warnings=warnings,
    )


def step_pace(
    recipe: Recipe, where: torch.device, precision: Choice, *, memory: int, flops: float, at_once: int
) -> Pace | str:  # fmt: skip
    """How long steps of a recipe take here without their data, measured on a few; or why that is not tried.

    Args:
        memory: Bytes that the run is forecast to take.
        flops: Operations that a step is forecast to take.
        at_once: Images of a step that fit into that memory together.
    """
    group, batch = recipe.objective.group, recipe.plan.batch
    if memory > memory_bytes(where):
        return "the run does not fit into the memory of this machine"
    dtype = torch.bfloat16 if precision.precision == "bf16" else torch.float32
    a_group = flops / batch * group / matmul_rate(dtype, side=2048 if where.type == "cuda" else 512, device=where)
    if a_group > PROBE_SECONDS:
        return f"one group of {group} images alone would take about {clock(a_group)}"
    groups = min(at_once // group, max(1, int(PROBE_SECONDS / 4 / a_group)))
    return pace(job(recipe, where, precision), images=groups * group)


def _data_seconds(recipe: Recipe, source: Source, where: torch.device) -> tuple[float, float]:
    """Seconds an image costs one worker, and the main process to colour it, over one or a few groups."""
    groups = Groups(
        source, recipe.data.augment, recipe.data.masks, recipe.data.sampling,
        seed=recipe.seed, group=recipe.objective.group, patch=recipe.backbone.patch, reading=recipe.reading,
    )  # fmt: skip
    loader = Loader(groups, batch=recipe.plan.batch, workers=0, device=where, on_broken=lambda *_: None)
    members: list[Group] = []
    began = time.perf_counter()
    while not members or (time.perf_counter() - began < 1 and len(members) < 4):
        members.append(groups.made(len(members)))
    made = time.perf_counter()
    loader.join(members)
    images = len(members) * recipe.objective.group
    return (made - began) / images, (time.perf_counter() - made) / images
