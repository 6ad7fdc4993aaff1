"""What a recipe costs and what should make its owner think twice, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import torch

from dinoforge.base.hardware import Choice, cores, cpu_flags, cpu_has_bf16, matmul_rate, memory_bytes
from dinoforge.base.log import clock
from dinoforge.data.loader import Group, Groups, Loader
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction
from dinoforge.recipes.recipe import Recipe
from dinoforge.train.forecast import Forecast, Job, Pace, forecast, pace

MANY_PASSES = 500
"""Passes over the data from which on a plan is warned of; the published runs on ImageNet-1k make 200."""
FEW_IMAGES = 1_000
"""Images below which features learnt from nothing serve little."""
SMALL_BATCH = 64
"""Images below which a batch that is one group is warned of."""
SMALL_GROUP = 8
"""Images of a group below which KoLeo's nearest neighbours say little."""
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
    data_images: int
    memory_bytes: int
    """Peak of the main process (on a GPU: of the device), predicted."""
    memory: dict[str, int]
    """By part, in bytes, at the moment of the peak."""
    flops: float
    """Floating-point operations of the matrix products of the whole run."""
    images_per_second: float | None = None
    """Predicted by the probe; null where none was made."""
    seconds: float | None = None
    """Of all steps; probes of quality and checkpoints come on top."""
    bound: str | None = None
    """What the speed hangs on: step, data or cores (both together want more than there are)."""
    warnings: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The plan in one line."""
        time_ = f", about {clock(self.seconds)}" if self.seconds is not None else ""
        return (
            f"Plan: {self.steps:,} steps of {self.batch:,} images, {self.passes:,.1f} passes over {self.data_images:,} "
            f"images, about {self.memory_bytes / 2**30:.1f} GiB of memory{time_}."
        )


def planned(recipe: Recipe, source: Source, where: torch.device, precision: Choice) -> Planned:
    """Steps, passes, memory and warnings, without running a step of the recipe."""
    plan, images = recipe.plan, len(source)
    steps = plan.steps(images)
    found = forecast(job(recipe, where, precision))
    facts = Planned(
        steps=steps,
        images=steps * plan.batch,
        passes=steps * plan.batch / images,
        batch=plan.batch,
        data_images=images,
        memory_bytes=found.memory.total,
        memory=asdict(found.memory),
        flops=found.flops * steps,
    )
    return replace(facts, warnings=[*_doubts(recipe, facts), *_lacks(recipe, found, where, precision)])


def job(recipe: Recipe, where: torch.device, precision: Choice) -> Job:
    """What the cost of a recipe's steps depends on."""
    probe = recipe.probe
    rows = max(probe.train_rows, probe.test_rows) if probe.source else probe.rank_rows
    return Job(
        backbone=recipe.backbone,
        objective=recipe.objective,
        plan=recipe.plan,
        augment=recipe.data.augment,
        masks=recipe.data.masks,
        device=where,
        precision=precision.precision,
        speed=recipe.speed,
        probe_rows=min(rows, Extraction(where).rows_at_once),
    )


def _doubts(recipe: Recipe, facts: Planned) -> Iterator[str]:
    """What is odd about the plan itself, whatever the machine."""
    objective, images = recipe.objective, facts.data_images
    if facts.passes > MANY_PASSES:
        yield (
            f"{facts.passes:,.0f} passes over {images:,} images: above {MANY_PASSES} passes a backbone learns its images by "
            "heart; lower plan.images, or add data."
        )
    if images < facts.batch:
        yield f"{images:,} images are fewer than a batch of {facts.batch:,}: every step shows some twice; lower plan.batch."
    if images < FEW_IMAGES:
        yield f"{images:,} images are few: below {FEW_IMAGES:,}, go on from a trained backbone (init=) or add data."
    if facts.batch == objective.group < SMALL_BATCH:
        yield (
            f"plan.batch={facts.batch} is one group of objective.group={objective.group}: below {SMALL_BATCH} images, targets "
            "are balanced and neighbours sought among very few; raise plan.batch."
        )
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


def _lacks(recipe: Recipe, found: Forecast, where: torch.device, precision: Choice) -> Iterator[str]:
    """What this machine lacks."""
    there = memory_bytes(where)
    if found.memory.total > there:
        yield (
            f"The run needs about {found.memory.total / 2**30:,.1f} GiB, this {'GPU' if where.type == 'cuda' else 'machine'} "
            f"has {there / 2**30:,.1f}: lower plan.batch={recipe.plan.batch} (with objective.group), "
            "data.augment.local_views or objective.head.prototypes, or take a smaller backbone."
        )
    if precision.precision == "bf16" and where.type == "cpu" and not cpu_has_bf16(cpu_flags()):
        yield "precision=bf16 on a CPU without bf16 instructions is many times slower than fp32; leave precision=auto."


def probed(facts: Planned, recipe: Recipe, source: Source, where: torch.device, precision: Choice) -> Planned:
    """The same facts with the speed that a few real steps and groups show, or with the reason why there is none.

    Raises:
        DataError: Hardly an image of the source can be used.
    """
    measured = step_pace(recipe, where, precision, memory=facts.memory_bytes, flops=facts.flops / facts.steps)
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
    recipe: Recipe, where: torch.device, precision: Choice, *, memory: int, flops: float
) -> Pace | str:  # fmt: skip
    """How long steps of a recipe take here without their data, measured on a few; or why that is not tried.

    Args:
        memory: Bytes that the run is forecast to take.
        flops: Operations that a step is forecast to take.
    """
    group, batch = recipe.objective.group, recipe.plan.batch
    if memory > memory_bytes(where):
        return "the run does not fit into the memory of this machine"
    dtype = torch.bfloat16 if precision.precision == "bf16" else torch.float32
    a_group = flops / batch * group / matmul_rate(dtype, side=512, device=where)
    if a_group > PROBE_SECONDS:
        return f"one group of {group} images alone would take about {clock(a_group)}"
    groups = min(batch // group, max(1, int(PROBE_SECONDS / 4 / a_group)))
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
