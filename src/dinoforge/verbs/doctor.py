"""``doctor``: what this machine is and can do."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoforge.base.config import with_settings
from dinoforge.base.errors import UserError
from dinoforge.base.hardware import (
    Choice,
    choose_precision,
    cores,
    cpu_flags,
    cpu_has_bf16,
    device,
    free_memory_bytes,
    matmul_rate,
    memory_bytes,
    processor,
    versions,
)
from dinoforge.base.log import clock
from dinoforge.data.decode import Broken, decode
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.cost import job
from dinoforge.recipes.table import recipe
from dinoforge.train.forecast import pace

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


def doctor(*, data: str | None = None) -> dict[str, Any]:
    """Look at this machine: device, memory, versions, how fast it computes and decodes, and what to do about it.

    Args:
        data: Images to measure reading with.
    """
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
        "decoded_per_second": round(_rate(_jpeg(), limit=100), 1),
        "step_images_per_second": round(_step_rate(where, choice), 1),
    }
    advice = list(_advice(facts, where, rates))
    ok = True
    if data is not None:
        try:
            facts["images_decoded_per_second"] = round(_source_rate(data), 1)
        except UserError as error:
            ok = False
            advice.append(f"data={data} cannot be used: {error}")
    return {**facts, "ok": ok, "advice": advice}


def _rates(where: torch.device) -> dict[str, float]:
    """Operations a second by precision; what the processor would only emulate is measured on a small product."""
    side = 4096 if where.type == "cuda" else 512
    slow = where.type == "cpu" and not cpu_has_bf16(cpu_flags())
    return {
        "fp32": matmul_rate(torch.float32, side=side, device=where),
        "bf16": matmul_rate(torch.bfloat16, side=64 if slow else side, device=where),
    }


def _jpeg() -> Callable[[int], object]:
    """Decodes a photograph's worth of JPEG, 500 by 375 pixels, made here."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return lambda _row: decode(file.getvalue())


def _source_rate(address: str) -> float:
    """Images a second that one thread reads and decodes from a source.

    Raises:
        DataError: Nothing there.
    """
    source = open_source(address)
    return _rate(source.pixels, limit=min(200, len(source)))


def _rate(read: Callable[[int], object], *, limit: int, seconds: float = 0.5) -> float:
    """How often a second something is read, by rows 0, 1, …; a broken one counts as read."""
    began, row = time.perf_counter(), 0
    while row < limit and time.perf_counter() - began < seconds:
        with contextlib.suppress(Broken):
            read(row)
        row += 1
    return row / (time.perf_counter() - began)


def _step_rate(where: torch.device, choice: Choice) -> float:
    """Images a second of whole training steps of the smallest recipe, without loading."""
    smallest = recipe(DEMO)
    few = with_settings(smallest, {"objective.group": 16, "plan.batch": 16})
    found = pace(job(few, where, choice), images=16)
    return smallest.plan.batch / found.seconds(smallest.plan.batch)


def _advice(facts: dict[str, Any], where: torch.device, rates: dict[str, float]) -> Iterator[str]:
    """Whole sentences on what this machine is good for and what it lacks."""
    faster, slower = sorted(rates, key=lambda name: -rates[name])
    yield (
        f"{faster} is {rates[faster] / rates[slower]:.1f} times as fast as {slower} in matrix products here; "
        f"precision=auto takes {facts['precision']}."
    )
    images = recipe(DEMO).plan.images or 0
    seconds = images / facts["step_images_per_second"]
    yield f"The {images:,} images of recipe {DEMO} take about {clock(seconds)} of steps here; `dinoforge demo` runs it."
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
