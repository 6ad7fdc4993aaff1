"""Processor time of the k-NN vote, and what a grid of linear heads costs beside one head; one JSON line.

``python bench/evaluate.py [BANK QUERIES]``, 50,000 and 10,000 rows unless said otherwise, of 384 channels; up to 200 neighbours
vote. The 52 heads of the grid see what is kept of a ViT-S (class tokens of four blocks and a mean patch); the one head beside
them sees all of that, as the dearest of them do. ``grid_over_one`` is the ratio of their updates with the reading of the batch;
``grid_over_all_one_by_one`` that to all 52 trained alone. The arithmetic of the grid is 31 times that of the dearest head
whatever the number of classes, so on a processor, which is busy with it, the ratio grows towards that with the classes.
``with_features_over_one`` counts what both need first, or in every pass if they learn from crops: ViT-S/14 on 224 pixels, for
ten passes over features that are computed once.

``seconds`` are of the clock, ``cpu_seconds`` user and system time of all threads, the lowest of three.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from dinoforge.base.hardware import processor, versions
from dinoforge.evaluate.heads import HeadGrid, Inputs
from dinoforge.evaluate.linear import LinearConfig
from dinoforge.evaluate.neighbours import VoteConfig, vote_ranks
from dinoforge.features.kinds import KINDS
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig

CHANNELS, TOKENS, BATCH, CLASSES = 384, 5, 1024, (10, 100)
UPDATES, PASSES = 8, 10
BOUNDS = {"knn_seconds": 30}
"""Of the default sizes, on two cores."""


def measured(work: Callable[[], object]) -> dict[str, float]:
    """The quickest of three."""
    found = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = min(found)
    return {"seconds": round(wall, 4), "cpu_seconds": round(cpu, 4)}


def vote(bank: int, queries: int) -> dict[str, Any]:
    made = torch.Generator().manual_seed(0)
    known, asked = (
        (torch.randn(rows, CHANNELS, generator=made), torch.randint(0, 100, (rows,), generator=made))
        for rows in (bank, queries)
    )
    config = VoteConfig()
    took = measured(lambda: vote_ranks(known, asked, classes=100, counts=config.neighbours, config=config))
    return {"bank": bank, "queries": queries, **took}


def look() -> float:
    """Processor seconds that ViT-S/14 takes for an image."""
    module, images = build(VitConfig(), seed=0).eval(), torch.randn(16, 3, 224, 224)
    with torch.no_grad():
        return measured(lambda: KINDS["blocks"](module, images))["cpu_seconds"] / len(images)


def grid(classes: int, seen: float) -> dict[str, Any]:
    made, rates = torch.Generator().manual_seed(0), LinearConfig().learning_rates
    blocks = torch.randn(4 * BATCH, TOKENS, CHANNELS, generator=made)
    labels = torch.randint(0, classes, (len(blocks),), generator=made)

    def took(inputs: list[Inputs], rates: tuple[float, ...]) -> float:
        heads = HeadGrid(inputs, channels=CHANNELS, classes=classes, rates=rates, seed=0, device=torch.device("cpu"))

        def updates() -> None:
            for rows in torch.randperm(len(blocks), generator=made).repeat(UPDATES // 4).split(BATCH):
                heads.step(blocks[rows], labels[rows], factor=0.1)

        return measured(updates)["cpu_seconds"] / UPDATES

    inputs = [Inputs(layers, pool) for layers in (1, 4) for pool in (False, True)]
    alone, every = [took([one], rates[-1:]) for one in inputs], took(inputs, rates)
    whole, one = (seen + PASSES * update / BATCH for update in (every, alone[-1]))
    return {
        "classes": classes, "heads": len(inputs) * len(rates), "cpu_seconds_an_update": round(every, 4),
        "grid_over_one": round(every / alone[-1], 1), "with_features_over_one": round(whole / one, 3),
        "grid_over_all_one_by_one": round(every / (len(rates) * sum(alone)), 2),
    }  # fmt: skip


def main(bank: int, queries: int) -> None:
    about = {"channels": CHANNELS, "batch": BATCH, "bounds": BOUNDS, "threads": torch.get_num_threads()}
    seen = look()
    results = {
        "knn": vote(bank, queries),
        "vit_small_cpu_seconds_an_image": round(seen, 4),
        "linear": [grid(classes, seen) for classes in CLASSES],
    }
    print(json.dumps({"bench": "evaluate", **about, **results, "device": processor(), **versions()}))


if __name__ == "__main__":
    main(*([int(word) for word in sys.argv[1:3]] or [50_000, 10_000]))
