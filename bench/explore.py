"""Start, p95 of searches by picture and by place, and memory of the explorer on stored features; one JSON line.

``python bench/explore.py [IMAGES] [GRID] [QUESTIONS]``: 100,000 images of 384 channels with 16 by 16 patches, 200 questions of
each kind, unless said otherwise. Every image shows four of 2,000 parts, each in a quarter of its grid; a patch has a cosine of
about 0.7 with its part. Features lie on the disk in float16 as ``open_collection`` writes them: 19.7 GB at full size, and a
folder for them is made in ``$TMPDIR``; with the index 1 GB more.

``start_seconds`` is from opening the collection to the first answer of each kind, in a new process with all files stored;
``index_seconds`` is what the index of patches took once. ``resident_bytes`` leaves out what is mapped from files, which the
system takes back when it needs the memory, and ``before_bytes`` of it were there before; ``peak_bytes`` counts all.
``recall`` is the share of the ten best images by place that an exact comparison of all patches has too, of four questions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dinoforge.base.config import fingerprint
from dinoforge.base.files import write_json
from dinoforge.base.hardware import processor, versions
from dinoforge.base.memory import peak_bytes
from dinoforge.data.decode import Broken
from dinoforge.data.sources.source import Source
from dinoforge.explore.collection import Collection, facts_of, open_collection
from dinoforge.explore.places import Places
from dinoforge.explore.search import by_image, by_region, covered, mean_patch
from dinoforge.features.extract import Extraction
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.weights import Backbone, Preprocessing

WIDTH, PARTS, NOISE, BANK = 384, 2000, 1.0, 65_536
BOX = (0.1, 0.1, 0.4, 0.4)
BOUNDS = {"start_seconds": 5, "image_p95": 0.05, "region_p95": 0.3}


class Named(Source):
    """Images without pictures: only their features are asked for."""

    def __init__(self, count: int) -> None:
        self.address = "bench"
        self.columns = {"id": np.char.add("image-", np.arange(count).astype(np.str_))}

    def encoded(self, row: int) -> bytes:
        raise Broken("there is no picture")


def backbone(grid: int) -> Backbone:
    config = ToyConfig(width=WIDTH)
    return Backbone(build(config, seed=0), config, Preprocessing(short_side=8 * grid, side=8 * grid))


def write(folder: Path, images: int, grid: int) -> None:
    """Features as ``open_collection`` stores them."""
    rng = np.random.default_rng(0)
    parts, bank = (rng.standard_normal((n, WIDTH), dtype=np.float32) for n in (PARTS, BANK))
    folder.mkdir(parents=True)
    values = np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype="<f2", shape=(images, 1 + grid * grid, WIDTH)
    )
    quarter = (np.arange(grid)[:, None] * 2 // grid * 2 + np.arange(grid) * 2 // grid).ravel()
    for start in range(0, images, 256):
        count = min(256, images - start)
        shown = rng.integers(PARTS, size=(count, 4))
        patches = parts[shown[:, quarter]] + NOISE * bank[rng.integers(BANK, size=(count, grid * grid))]
        values[start : start + count, 0] = parts[shown].mean(axis=1) + 0.5 * bank[rng.integers(BANK, size=count)]
        values[start : start + count, 1:] = patches
    values.flush()
    source = Named(images)
    pq.write_table(pa.table({"id": source.columns["id"].tolist()}), folder / "ids.parquet")
    write_json(folder / "features.json", {"rows": images, **facts_of(backbone(grid), source)})


def opened(folder: Path, images: int, grid: int) -> Collection:
    how = Extraction(torch.device("cpu"))
    return open_collection(backbone(grid), Named(images), folder, how=how)


def p95(asked: list[int], ask: Any) -> tuple[float, float]:
    """Of the seconds an answer takes, and the median."""
    seconds = []
    for row in asked:
        began = time.perf_counter()
        ask(row)
        seconds.append(time.perf_counter() - began)
    return float(np.quantile(seconds, 0.95)), float(np.median(seconds))


def anonymous_bytes() -> int | None:
    """Memory that is no file's; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), None)


def recall(collection: Collection, rows: list[int]) -> float:
    exact, shares = Places(collection.patches, None), []
    for row in rows:
        query = mean_patch(collection.see(row).patches, covered(BOX, *collection.grid))
        want, got = (one.nearest(query, count=10, without=row).rows for one in (exact, collection.places))
        shares.append(len({*want.tolist()} & {*got.tolist()}) / len(want))
    return float(np.mean(shares))


def asked(folder: Path, images: int, grid: int, questions: int) -> dict[str, Any]:
    """All that is measured of stored features, in this process."""
    before, began = anonymous_bytes(), time.perf_counter()
    collection = opened(folder, images, grid)
    by_image(collection, 0)
    by_region(collection, 0, BOX)
    start = time.perf_counter() - began
    rows = np.random.default_rng(1).integers(images, size=questions).tolist()
    image, region = (
        p95(rows, lambda row: by_image(collection, row)),
        p95(rows, lambda row: by_region(collection, row, BOX)),
    )
    held, after = peak_bytes(torch.device("cpu")), anonymous_bytes()
    return {
        "start_seconds": start, "image_p95": image[0], "image_median": image[1], "region_p95": region[0],
        "region_median": region[1], "peak_bytes": held,
        "resident_bytes": None if before is None or after is None else after, "before_bytes": before,
        "recall": recall(collection, rows[:4]),
    }  # fmt: skip


def main(images: int = 100_000, grid: int = 16, questions: int = 200) -> None:
    folder = Path(tempfile.mkdtemp(prefix="explore-"))
    try:
        write(folder / "features", images, grid)
        began = time.perf_counter()
        collection = opened(folder, images, grid)
        index = time.perf_counter() - began
        assert collection.fingerprint == fingerprint(json.loads((folder / "features" / "features.json").read_text()))
        command = [sys.executable, __file__, "asked", str(folder), str(images), str(grid), str(questions)]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        found = {"images": images, "width": WIDTH, "grid": grid, "questions": questions, "index_seconds": index,
                 **json.loads(told.splitlines()[-1]), "disk_bytes": sizes}  # fmt: skip
        found |= {"bounds": BOUNDS, "threads": faiss.omp_get_max_threads(), "device": processor(), **versions()}
        print(json.dumps(found))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["asked"]:
        print(json.dumps(asked(Path(given[1]), *map(int, given[2:]))))
    else:
        main(*map(int, given))
