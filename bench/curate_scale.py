"""What grows with the pool in a curation over shards, without images: memory of the index, the search's merge, union-find.

``python bench/curate_scale.py [ROWS …]``, 1,000,000 and 10,000,000 unless said otherwise; one JSON line. Descriptors are drawn
shard by shard, 32 channels around common centres, and never lie in memory together: a shard is encoded into codes of 8 bytes,
these are written, and it is gone. Then sampled queries are asked of all shards, one after the other, as a task of the search
does, and the pairs of all shards (of one row in five with another anywhere, so that components cross shards) are joined in
memory.

``laws`` go through the last two sizes: a straight line for what lies on the disk and for union-find, whose cost is that of its
pairs; a power of the rows for what grows with the cells too. ``at_a_billion`` is what they give for 10 ** 9 rows: worked out,
not run. Codes take 8 bytes a row, its number 8 more, and every shard's file has the centres of all cells.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from dinoforge.base.hardware import processor, versions
from dinoforge.base.memory import peak_bytes
from dinoforge.curate.components import merged
from dinoforge.features.compressed import Candidates, Compressed, Width, best, cells_for
from dinoforge.features.exact import parts, unit_rows
from dinoforge.features.pairs import components, joined

SIZES, CHANNELS, SHARDS = (1_000_000, 10_000_000), 32, 10
CENTRES, QUERIES, MOST, SEARCHED, COPIED = 4_096, 1_000, 64, 16, 0.2
BILLION = 10**9
STRAIGHT = ("index_bytes", "join_seconds", "join_bytes")
POWERS = ("train_seconds", "encode_seconds", "asked_seconds_a_million", "merge_seconds_a_million")


def shard(number: int, rows: int) -> np.ndarray:
    """Descriptors ``[rows 32]`` of a shard, a function of its number."""
    middle = np.random.default_rng(0).standard_normal((CENTRES, CHANNELS), dtype=np.float32)
    rng = np.random.default_rng([1, number])
    return middle[rng.integers(0, CENTRES, rows)] + 0.5 * rng.standard_normal((rows, CHANNELS), dtype=np.float32)


def edges(number: int, rows: int, total: int) -> Any:
    """Pairs of a shard's rows with rows anywhere."""
    rng = np.random.default_rng([2, number])
    count = int(rows * COPIED)
    one = number * rows + rng.integers(0, rows, count)
    return joined(one, rng.integers(0, total, count), np.ones(count, np.float32))


def measured(total: int) -> dict[str, Any]:
    """One size, in this process."""
    rows, found = total // SHARDS, {"rows": total, "shards": SHARDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found |= encoded(folder, rows, total) | asked(folder, rows)
        found["index_peak_bytes"] = peak_bytes(torch.device("cpu"))
        found |= united(rows, total)
    return found | {"peak_bytes": peak_bytes(torch.device("cpu"))}


def encoded(folder: Path, rows: int, total: int) -> dict[str, Any]:
    """The codes of all shards on the disk, and what they took."""
    cells = cells_for(total)
    sample = np.concatenate([shard(number, rows)[: 64 * cells // SHARDS + 1] for number in range(SHARDS)])
    began = time.process_time()
    Compressed.train(sample, training=64, seed=0, cells=cells).save(folder / "trained")
    trained, spent = time.process_time(), 0.0
    for number in range(SHARDS):
        vectors = shard(number, rows)
        before = time.process_time()
        index = Compressed.load(folder / "trained", first=number * rows)
        for start, some in parts(vectors):
            index.add(some, first=number * rows + start)
        index.save(folder / f"codes-{number}")
        spent += time.process_time() - before
    held = sum((folder / f"codes-{number}").stat().st_size for number in range(SHARDS))
    return {"cells": cells, "index_bytes": held, "train_seconds": trained - began, "encode_seconds": spent}


def asked(folder: Path, rows: int) -> dict[str, Any]:
    """Sampled queries among all shards, and the merge of what these propose; scaled to a million queries."""
    queries = unit_rows(shard(0, rows)[:: max(1, rows // QUERIES)][:QUERIES])
    proposed: list[Candidates] = []
    spent, probes = 0.0, None
    for number in range(SHARDS):
        index = Compressed.load(folder / f"codes-{number}", first=number * rows)
        before = time.process_time()
        probes = probes or index.probes(queries, Width(SEARCHED, 1))
        proposed.append(index.candidates(probes, MOST))
        spent += time.process_time() - before
    before = time.process_time()
    kept = best(proposed, MOST)
    merging, scale = time.process_time() - before, 1e6 / len(queries)
    assert len(kept) <= MOST * len(queries)
    return {"asked_seconds_a_million": spent * scale, "merge_seconds_a_million": merging * scale}


def united(rows: int, total: int) -> dict[str, Any]:
    """Components of the pairs of all shards."""
    near = [edges(number, rows, total) for number in range(SHARDS)]
    began = time.process_time()
    every = merged(near)
    components(every, images=total)
    return {"pairs": len(every), "join_seconds": time.process_time() - began, "join_bytes": 20 * len(every)}


def law(sizes: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Through the last two sizes: a + b * rows, or a * rows ** b; and what it gives for a billion."""
    (small, large), rows = sizes[-2:], [one["rows"] for one in sizes[-2:]]
    if name in STRAIGHT:
        slope = (large[name] - small[name]) / (rows[1] - rows[0])
        start = large[name] - slope * rows[1]
        return {"a": start, "b": slope, "at_a_billion": start + slope * BILLION}
    power = math.log(large[name] / small[name]) / math.log(rows[1] / rows[0])
    return {"a": large[name] / rows[1] ** power, "b": power, "at_a_billion": large[name] * (BILLION / rows[1]) ** power}


def main(sizes: list[int]) -> None:
    """Measure each size in a process of its own, and print."""
    results = []
    for total in sizes:
        run = subprocess.run([sys.executable, __file__, "--alone", str(total)], stdout=subprocess.PIPE, check=False)
        if run.returncode:
            sys.exit(run.returncode)  # it has said why
        results.append(json.loads(run.stdout.splitlines()[-1]))
        print(results[-1], file=sys.stderr, flush=True)
    laws = {name: law(results, name) for name in (*STRAIGHT, *POWERS)} if len(results) > 1 else {}
    machine = {"threads": faiss.omp_get_max_threads(), "device": processor(), "load": os.getloadavg()[0], **versions()}
    about = {"channels": CHANNELS, "code_bytes": CHANNELS // 4, "results": results, "laws": laws}
    print(json.dumps({"bench": "curate scale", **about, **machine}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(measured(int(sys.argv[2]))))
    else:
        main([int(word) for word in sys.argv[1:]] or list(SIZES))
