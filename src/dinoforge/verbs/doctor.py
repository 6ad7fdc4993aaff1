"""``doctor``: what this machine is and can do."""

from __future__ import annotations

import time
from typing import Any

import torch

from dinoforge.base.hardware import Choice, choose_precision, device, matmul_rate, versions
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.table import recipe


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

    config = recipe("vit_micro.toy").backbone
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
