"""Processor time, memory and recall of the self-join that deduplication makes, at growing numbers of vectors; one JSON line.

``python bench/curate.py [VECTORS …]``, 100,000 and 1,000,000 unless said otherwise; of 512 channels, kept in float16. They lie
in clusters of very unequal sizes with cosines of about 0.4 to each other, and one in ten is a planted near copy of another,
with a cosine between 0.62 and 0.98. Sought are the 64 nearest others of each and of these all above 0.6 (DINOv2, app. A).

``cpu_seconds`` is user and system time of the search with all that it starts, so what else the machine does hardly counts;
``recall`` is the share of the true pairs that the search itself measured on 2,000 of its queries, against brute force;
``planted_found`` the share of all planted pairs that are in the result; ``peak_bytes`` the most memory that the process held,
the vectors included. Each size has a process of its own.

``python bench/curate.py --rates`` measures on one thread what each kind of work costs, the constants of ``plan stage=curate``
(``recipes/curation_rates.py`` holds those of one machine): processor seconds of a multiplication in a product of matrices, of
a channel of a vector that is encoded, of a code that is scanned, of a vector that is compared, of a megapixel that is read, of
a pair whose component is sought.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from PIL import Image

from dinoforge.base.hardware import processor, versions
from dinoforge.base.memory import peak_bytes
from dinoforge.curate.components import merged
from dinoforge.curate.images import take
from dinoforge.data.look import looked
from dinoforge.data.sources.table import open_source
from dinoforge.features.compressed import Candidates, Compressed, Width
from dinoforge.features.exact import compared, unit_rows
from dinoforge.features.pairs import DUPLICATE, NEIGHBOURS, components, joined
from dinoforge.features.search import SearchConfig, self_search

SIZES, CHANNELS = (100_000, 1_000_000), 512
A_CLUSTER, INSIDE, COPIED, NEAREST, FARTHEST = 100, 0.4, 0.1, 0.98, 0.62
"""Vectors a cluster on average, their cosine, and how many are copies of which cosine."""
AT_ONCE = 16_384
BOUNDS = {"cpu_minutes": 12, "gibibytes": 4, "recall": 0.99, "growth": 14}
"""Of a million vectors; growth is that of the processor time from 100,000 on."""


def made(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors ``[count 512]`` in float16 of length 1, and the planted pairs ``[P 2]``."""
    rng = np.random.default_rng(seed)
    clusters = max(1, count // A_CLUSTER)
    middle = _unit(rng.standard_normal((clusters, CHANNELS), dtype=np.float32))
    share = rng.pareto(1.5, clusters) + 0.1
    member = rng.choice(clusters, count, p=share / share.sum())
    # What makes a vector itself varies along some directions more than along others, as in real embeddings.
    spread = np.arange(1, CHANNELS + 1, dtype=np.float32) ** -0.375
    spread /= np.linalg.norm(spread)
    vectors = np.empty((count, CHANNELS), np.float16)
    for start in range(0, count, AT_ONCE):
        some = slice(start, min(start + AT_ONCE, count))
        own = rng.standard_normal((some.stop - some.start, CHANNELS), dtype=np.float32) * spread
        vectors[some] = _unit(np.sqrt(INSIDE) * middle[member[some]] + np.sqrt(1 - INSIDE) * _unit(own))
    rows = rng.permutation(count)[: 2 * int(count * COPIED)].reshape(2, -1)
    for start in range(0, rows.shape[1], AT_ONCE):
        of, to = rows[:, start : start + AT_ONCE]
        cosine = rng.uniform(FARTHEST, NEAREST, (len(of), 1)).astype(np.float32)
        x = vectors[of].astype(np.float32)
        other = rng.standard_normal(x.shape, dtype=np.float32)
        other = _unit(other - (other * x).sum(axis=1, keepdims=True) * x)
        vectors[to] = _unit(cosine * x + np.sqrt(1 - cosine**2) * other)
    return vectors, np.sort(rows.T, axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def found_share(index: np.ndarray, similarity: np.ndarray, planted: np.ndarray) -> float:
    """Share of the pairs of which one is a neighbour of the other above the threshold."""
    hit = [
        ((index[one] == other[:, None]) & (similarity[one] > DUPLICATE)).any(axis=1)
        for one, other in (planted.T, planted.T[::-1])
    ]
    return float((hit[0] | hit[1]).mean())


def cpu_seconds() -> float:
    """User and system time of this process and of what it started."""
    return sum(os.times()[:4])


def measured(count: int) -> dict[str, Any]:
    """One size, in this process."""
    vectors, planted = made(count)
    before, held = cpu_seconds(), peak_bytes(torch.device("cpu"))
    config = SearchConfig(exact_below=min(count, SearchConfig().exact_below))
    near = self_search(vectors, count=NEIGHBOURS, threshold=DUPLICATE, config=config)
    return {
        "vectors": count, "cpu_seconds": round(cpu_seconds() - before, 1), "recall": round(near.recall, 4),
        "planted_found": round(found_share(near.index, near.similarity, planted), 4),
        "pairs_a_vector": round(float((near.similarity > DUPLICATE).sum(axis=1).mean()), 2), "how": near.how,
        "peak_bytes": peak_bytes(torch.device("cpu")), "peak_bytes_of_making": held,
    }  # fmt: skip


def rates() -> dict[str, float]:
    """Processor seconds of one of everything, on one thread."""
    faiss.omp_set_num_threads(1)
    rng, vectors, cells = np.random.default_rng(0), made(20_000)[0], 256
    rows = unit_rows(vectors)
    index = Compressed.train(vectors, training=64, seed=0, cells=cells)
    multiply = spent(lambda: faiss.knn(rows, rows[:1024], 1, metric=faiss.METRIC_INNER_PRODUCT)) / (
        len(rows) * 1024 * CHANNELS
    )
    turned = CHANNELS + cells  # the rotation, and the nearest of all cells
    adding = spent(lambda: index.add(rows, first=len(index))) - len(rows) * turned * CHANNELS * multiply
    asked = rows[rng.permutation(len(rows))[:500]]
    narrow, wide = (index.probes(asked, Width(count, 1)) for count in (8, cells))
    each = [spent(lambda probes=probes: index.candidates(probes, NEIGHBOURS)) for probes in (narrow, wide)]  # type: ignore[misc]
    sizes = np.bincount(faiss.knn(rows, index.centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0], minlength=cells)
    scanned = [3 * int(sizes[probes.cells].sum()) for probes in (narrow, wide)]  # all rows were added three times
    code = (each[1] - each[0]) / (scanned[1] - scanned[0])
    pairs = Candidates(rng.integers(0, 500, 50_000), rng.integers(0, len(rows), 50_000), np.zeros(50_000, np.float32))
    edges = rng.integers(0, 1_000_000, (2, 1_000_000))
    near = joined(edges[0], edges[1], np.ones(1_000_000, np.float32))
    return {
        "multiply": multiply, "encode": max(adding, 0) / (len(rows) * CHANNELS), "scan": code / CHANNELS,
        "ask": max(each[0] - scanned[0] * code, 0) / len(asked),
        "compare": spent(lambda: compared(asked, pairs, vectors)) / (50_000 * CHANNELS),
        "join": spent(lambda: components(merged([near]), images=1_000_000)) / len(near), "read": read_rate(),
    }  # fmt: skip


def read_rate(images: int = 64) -> float:
    """Of a megapixel of a JPEG: the file's key, decoding, measures, thumbnail."""
    from loader import write_jpegs  # its neighbour, found where this file is run

    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(write_jpegs(Path(folder), None)):
            if number >= images:
                path.unlink()
        source = open_source(folder)
        size = sum(Image.open(path).width * Image.open(path).height for path in Path(folder).glob("*.jpg")) / 1e6
        before = cpu_seconds()
        seen = [one for some in looked(source, np.arange(len(source)), workers=1, also=take) for one in some]
        assert len(seen) == images
        return (cpu_seconds() - before) / size


def spent(work: Callable[[], object]) -> float:
    """Least processor seconds of three times."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def main(sizes: list[int]) -> None:
    """Measure and print."""
    results = []
    for count in sizes:
        run = subprocess.run([sys.executable, __file__, "--alone", str(count)], stdout=subprocess.PIPE, check=False)
        if run.returncode:
            sys.exit(run.returncode)  # it has said why
        results.append(json.loads(run.stdout.splitlines()[-1]))
        print(results[-1], file=sys.stderr, flush=True)
    growth = results[-1]["cpu_seconds"] / results[0]["cpu_seconds"] if len(results) > 1 else None
    about = {"channels": CHANNELS, "neighbours": NEIGHBOURS, "threshold": DUPLICATE, "bounds": BOUNDS}
    machine = {"threads": faiss.omp_get_max_threads(), "device": processor(), **versions()}
    growth = None if growth is None else round(growth, 1)
    print(json.dumps({"bench": "curate", **about, "results": results, "growth": growth, **machine}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(measured(int(sys.argv[2]))))
    elif sys.argv[1:] == ["--rates"]:
        print(json.dumps({"bench": "curate rates", "seconds": rates(), "device": processor(), **versions()}))
    else:
        main([int(word) for word in sys.argv[1:]] or list(SIZES))
