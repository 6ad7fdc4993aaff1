"""``doctor``: what this machine is and can do."""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoforge.base.errors import UserError
from dinoforge.base.hardware import (
    Choice,
    choose_precision,
    cores,
    cpu_flags,
    cpu_has_bf16,
    device,
    matmul_rate,
    processor,
    versions,
)
from dinoforge.base.log import clock
from dinoforge.base.memory import free_memory_bytes, memory_bytes
from dinoforge.data.decode import decode
from dinoforge.data.pace import Stages, stages
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.source import first_rows
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.cost import fitted, job, step_pace
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.stages import stages as stages_of
from dinoforge.recipes.table import recipe as recipe_of
from dinoforge.train.forecast import Pace, pace

CAPABILITIES = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "AMX": {"amx_tile"},
}
"""What a processor can do, and the flags any of which says so."""
DEMO = "vit_micro.toy"
DEMO_BYTES = 2 * 2**30
"""Memory that the demo may take."""
FULL_BYTES = 16 * 2**30
"""Memory of a GPU from which on vit_small.small_data fits in parts of a batch."""
LOW_DISK = 10 * 2**30


def doctor(*, data: str | None = None, recipe: str = DEMO) -> dict[str, Any]:
    """Look at this machine: device, memory, versions, how fast it computes and decodes, and what to do about it.

    Args:
        data: Images to measure reading with: which stage costs what, and whether they or the model bound the run.
        recipe: The model, and the views it wants.
    """
    chosen = recipe_of(recipe)
    where = device("auto")
    choice = choose_precision("auto", where)
    flags = cpu_flags()
    rates = _rates(where)
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "processor": processor(),
        "capabilities": [name for name, any_of in CAPABILITIES.items() if flags & any_of],
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(where),
        "free_memory_bytes": free_memory_bytes(where),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "precision": choice.precision,
        "why": choice.why,
        "gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        **versions(),
        "decoded_per_second": round(_rate(_jpeg()), 1),
    }
    measured = _pace(chosen, where, choice)
    steps = None if isinstance(measured, str) else chosen.plan.batch / measured.seconds(chosen.plan.batch)
    facts |= {"recipe": recipe, "step_images_per_second": steps if steps is None else round(steps, 1)}
    advice = list(_advice(facts, where, rates))
    if isinstance(measured, str):
        advice.append(f"The pace of {recipe} was not measured: {measured}.")
    ok = True
    if data is not None:
        try:
            found = _stages(data, chosen, where)
            facts |= {
                "stages": {name: round(rate, 1) for name, rate in found.rates().items()},
                "worker_images_per_second": round(1 / found.worker, 1),
                "bound": None,
            }
            if steps is not None:
                facts["bound"], sentence = _verdict(found, steps, where)
                advice.append(sentence)
        except UserError as error:
            ok = False
            advice.append(f"data={shown(data)} cannot be used: {error}")
    return {**facts, "ok": ok, "advice": advice}


def _rates(where: torch.device) -> dict[str, float]:
    """Operations a second by precision; what the processor would only emulate is measured on a small product."""
    side = 4096 if where.type == "cuda" else 512
    slow = where.type == "cpu" and not cpu_has_bf16(cpu_flags())
    return {
        "fp32": matmul_rate(torch.float32, side=side, device=where),
        "bf16": matmul_rate(torch.bfloat16, side=64 if slow else side, device=where),
    }


def _jpeg() -> Callable[[], object]:
    """Decodes a photograph's worth of JPEG, 500 by 375 pixels, made here."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return lambda: decode(file.getvalue())


def _rate(read: Callable[[], object], *, seconds: float = 0.3) -> float:
    """How often a second something is done."""
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        read()
        times += 1
    return times / (time.perf_counter() - began)


def _pace(chosen: Recipe, where: torch.device, choice: Choice) -> Pace | str:
    """How long steps take, or why that is not tried; the smallest recipe goes without the forecast, which takes a second."""
    if chosen.recipe == DEMO:
        return pace(job(chosen, where, choice), images=chosen.objective.group)
    predicted, at_once = fitted(stages_of(chosen, chosen.plan.batch)[0], where, choice)
    return step_pace(chosen, where, choice, memory=predicted.memory.total, flops=predicted.flops, at_once=at_once)


def _stages(address: str, chosen: Recipe, where: torch.device) -> Stages:
    """What the stages of making views cost for this source, in one thread as in a worker.

    Raises:
        DataError: Nothing there, or nothing of it can be used.
    """
    source = first_rows(open_source(address), 1_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return stages(source, range(len(source)), chosen.data.augment, device=where, reading=chosen.reading)
    finally:
        torch.set_num_threads(threads)


def _verdict(found: Stages, steps: float, where: torch.device) -> tuple[str, str]:
    """``data`` or ``compute``, and a sentence on it. On a CPU one core at least is the model's."""
    a_worker = 1 / found.worker
    wanted = math.ceil(steps / a_worker)
    slowest = max(("read", "decode", "geometry"), key=lambda name: getattr(found, name))
    told = f"A worker makes {a_worker:,.0f} images/s of these, most of its time in {slowest}; the model takes {steps:,.0f}: "
    room = max(1, cores() - 1) if where.type == "cpu" else cores()
    if wanted <= room:
        return "compute", f"{told}compute-bound with speed.workers={wanted} or more."
    return "data", (
        f"{told}data-bound, for that would need {wanted} workers and this machine has {cores()} cores. Store smaller images, "
        "or take a recipe with fewer views."
    )


def _advice(facts: dict[str, Any], where: torch.device, rates: dict[str, float]) -> Iterator[str]:
    """Whole sentences on what this machine is good for and what it lacks."""
    faster, slower = sorted(rates, key=lambda name: -rates[name])
    yield (
        f"{faster} is {rates[faster] / rates[slower]:.1f} times as fast as {slower} in matrix products here; "
        f"precision=auto takes {facts['precision']}."
    )
    if facts["step_images_per_second"]:
        name, images = facts["recipe"], recipe_of(facts["recipe"]).plan.images or 0
        seconds = images / facts["step_images_per_second"]
        shown = "; `dinoforge demo` runs it" if name == DEMO else ""
        yield f"The {images:,} images of recipe {name} take about {clock(seconds)} of steps here{shown}."
    if where.type == "cuda" and facts["memory_bytes"] >= FULL_BYTES:
        yield "vit_small.small_data is the recipe to begin with on this GPU; `dinoforge plan` says whether its batch fits."
    else:
        yield (
            "Take a recipe for small pictures here (vit_tiny.small_images, vit_micro.toy), or a small batch of "
            "vit_small.small_data; `dinoforge plan` says what it takes."
        )
    if facts["threads"] < facts["cores"]:
        yield f"torch uses {facts['threads']} of {facts['cores']} cores; unset OMP_NUM_THREADS to use all of them."
    if facts["free_memory_bytes"] < DEMO_BYTES:
        yield f"Only {facts['free_memory_bytes'] / 2**30:.1f} GiB of memory are free; the demo wants 2: close something."
    if facts["free_disk_bytes"] < LOW_DISK:
        yield f"Only {facts['free_disk_bytes'] / 2**30:.1f} GiB of disk are free here; checkpoints of a large model want more."
