"""What a rank holds when 1, 2 and 4 share a step of the same logical batch, by gloo on this machine; one JSON line.

``python bench/ranks.py [PRECISION]``. ViT-S/14, 2 x 224 and 8 x 98 pixels, 65,536 prototypes, 8 images a step, 2 computed at
once whatever the ranks, so that what differs is what they divide: weights, gradients, moments. ``state_bytes`` are those of
weights and moments between two steps, counted; ``peak_bytes`` is what a process held at most beyond what it held before it had
networks (resident memory). Seconds are of a step in which all ranks share this machine's cores: no measure of speed.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from step import CASES, made

from dinoforge.base import dist
from dinoforge.base.hardware import Precision, compute_context, processor, versions
from dinoforge.base.memory import peak_bytes, resident_bytes
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.train.loop import fit
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import StepSpeed, quicken, shard

RANKS, IMAGES, AT_ONCE, STEPS = (1, 2, 4), 8, 2, 3
CPU = torch.device("cpu")
Sharding = Literal["state", "all"]


def rank_of(world: int, rank: int, port: int, sharding: Sharding, precision: Precision, answer: Connection) -> None:
    """One rank."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    with dist.joined():
        before = resident_bytes()
        step, share, plan = made(replace(CASES["vit_small"], batch=AT_ONCE))
        speed = StepSpeed(sharding=sharding)
        quicken(step, speed, CPU)
        shard(step, speed, CPU, precision)
        adamw = optimizer(step.student, plan, fused=fused(speed.optimizer, CPU))
        parts = IMAGES // AT_ONCE // world
        marks: list[float] = []
        losses: list[float] = []
        fit(
            step, adamw, [part(share, rank * parts + number) for number in range(parts)] * STEPS, plan=plan,
            steps=STEPS, parts=parts, compute=compute_context(precision, CPU),
            observers=[lambda done: losses.append(done.losses["total"].item()), lambda _: marks.append(time.time())],
        )  # fmt: skip
        state = [*step.parameters()] + [value for kept in adamw.state.values() for value in kept.values()]
        answer.send(
            {
                "state": sum(dist.local(tensor).untyped_storage().nbytes() for tensor in state),
                "peak": peak_bytes(CPU) - before,
                "seconds": statistics.median(b - a for a, b in itertools.pairwise(marks)),
                "loss": losses[-1],
            }
        )


def part(whole: Batch, number: int) -> Batch:
    """The images of a group; only its number, which seeds what is drawn, is another."""
    index, weight = masked_positions(whole.masks)
    return Batch(whole.globals, whole.locals, whole.masks, index, weight, (number,))


def measured(world: int, sharding: Sharding, precision: Precision) -> dict[str, Any]:
    """All ranks of one size."""
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        port = here.getsockname()[1]
    context, ends, ranks = multiprocessing.get_context("spawn"), [], []
    for rank in range(world):
        mine, theirs = context.Pipe()
        ranks.append(context.Process(target=rank_of, args=(world, rank, port, sharding, precision, theirs)))
        ranks[-1].start()
        ends.append(mine)
    found = [end.recv() for end in ends]
    for process in ranks:
        process.join()
    return {
        "ranks": world, "sharding": sharding,
        "state_bytes": max(one["state"] for one in found), "peak_bytes": max(one["peak"] for one in found),
        "seconds": round(found[0]["seconds"], 2), "loss": round(found[0]["loss"], 5),
    }  # fmt: skip


def main(precision: Precision) -> None:
    """Measure and print."""
    kinds: tuple[Sharding, ...] = ("state", "all")
    results = [measured(world, kind, precision) for kind in kinds for world in RANKS if world > 1 or kind == "state"]
    machine = {"cores": os.cpu_count(), "device": processor(), **versions()}
    print(json.dumps({"bench": "ranks", "precision": precision, "results": results, **machine}))


if __name__ == "__main__":
    main("bf16" if sys.argv[1:2] == ["bf16"] else "fp32")
