"""Images a second by stage, processor time and memory of whole curations, on several engines and pools; one JSON line.

``python bench/curate_engines.py [engines=processes,inline] [images=10000,100000] [workers=N] [shard=2048]``. The pool is drawn
(``toy://species``, 64 pixels, with copies, junk and leaks), so that nothing is waited for but the work itself; every curation
is a process of its own, and begins from nothing.

``stages`` are the seconds between one stage's line and the next; ``cpu_seconds`` is user and system time of the command and of
all that it started, looked up five times a second, so that of each of them at most a fifth is missed.

``held_bytes`` is the most memory of the command itself that nobody can take from it: anonymous and shared pages (``RssAnon``
and ``RssShmem``), looked up as often; ``held_by_stage`` the same between the stages' lines, named by
the line before. ``peak_bytes`` is the kernel's own
high water mark (``VmHWM``), into which pages of mapped files count that were looked at: the columns of the pool, which lie on
the disk and which the system drops as any other file's once it needs the room. So ``growth``, from the first pool to the last,
is that of ``held_bytes``; that of the other is ``growth_with_files``. ``held_bytes_of_workers`` and ``peak_bytes_of_workers``
are the most of any other process; ``cpu_by_processes`` each engine's processor time in times that of ``processes``, at the last
pool.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Any

from dinoforge.base.hardware import cores, processor, versions

POOL = "toy://species?images={images}&size=64&copies=0.1&leaks=0.05&junk=0.05&split={split}"
SEEDS = "toy://species?images=2000&size=64&seed=9"
_MARK = "DINOFORGE_BENCH"
BOUNDS = {"growth": 1.3, "cpu_by_processes": 1.25}
_ALONE = """
import json, sys
import dinoforge.curate.embeddings, dinoforge.curate.images, dinoforge.curate.stages.safety as safety
for module in (dinoforge.curate.images, dinoforge.curate.embeddings, safety):
    module.SHARD = int(sys.argv[1])
import dinoforge
words = dict(word.split("=", 1) for word in sys.argv[2:])
found = dinoforge.curate(**words)
print(json.dumps({"kept": found.kept, "seconds": found.seconds}))
"""


def measured(engine: str, images: int, *, workers: int, shard: int, folder: Path) -> dict[str, Any]:
    """One curation."""
    out = folder / f"{engine}-{images}"
    words = {
        "pool": POOL.format(images=images, split="train"), "keep_out": POOL.format(images=images, split="test"),
        "seeds": SEEDS, "engine": engine, "out": str(out), **({} if engine == "inline" else {"workers": workers}),
    }  # fmt: skip
    mark = f"{_MARK}={engine}-{images}-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-c", _ALONE, str(shard), *(f"{name}={value}" for name, value in words.items())],
        env={**os.environ, _MARK: mark.partition("=")[2]}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watch = _Watch(mark.encode(), process.pid)
    watch.start()
    stages = _timed(process, watch)
    answer = process.communicate()[0]
    watch.over.set()
    watch.join()
    if process.returncode:
        sys.exit(f"{engine} with {images:,} images ended with status {process.returncode}.")
    facts = json.loads(answer.splitlines()[-1])
    others = [pid for pid in watch.peak if pid != process.pid]
    return {
        "engine": engine, "images": images, "workers": workers, "kept": facts["kept"], "seconds": round(facts["seconds"], 1),
        "cpu_seconds": round(sum(watch.cpu.values()), 1), "stages": {name: round(took, 1) for name, took in stages.items()},
        "images_per_second": {name: round(images / max(took, 1e-3)) for name, took in stages.items()},
        "held_bytes": watch.held[process.pid], "held_by_stage": watch.held_by_stage, "peak_bytes": watch.peak[process.pid],
        "held_bytes_of_workers": max((watch.held[pid] for pid in others), default=0),
        "peak_bytes_of_workers": max((watch.peak[pid] for pid in others), default=0),
        "manifest": sha256((out / "manifest.parquet").read_bytes()).hexdigest()[:16],
    }  # fmt: skip


class _Watch(Thread):
    """Looks up processor time and memory of all processes that were started with a mark in their environment."""

    def __init__(self, mark: bytes, first: int) -> None:
        super().__init__(daemon=True)
        self.mark, self.first, self.over = mark, first, Event()
        self.cpu, self.peak, self.held = dict[int, float](), dict[int, int](), dict[int, int]()
        self.stage, self.held_by_stage = "read and filters", dict[str, int]()
        """The stage that runs, as who reads the command's lines knows it, and what the command held in each."""

    def run(self) -> None:
        while not self.over.wait(0.2):
            for place in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, ValueError, IndexError):  # it ended meanwhile, or is another's
                    if self.mark in (place / "environ").read_bytes().split(b"\0"):
                        self._look(place)

    def _look(self, place: Path) -> None:
        user, system = (place / "stat").read_text().rpartition(")")[2].split()[11:13]
        status = (place / "status").read_text()
        bytes_of = {
            name: 1024 * int(kilo) for name, kilo in re.findall(r"(VmHWM|RssAnon|RssShmem):\s+(\d+) kB", status)
        }
        pid, held = int(place.name), bytes_of.get("RssAnon", 0) + bytes_of.get("RssShmem", 0)
        self.cpu[pid] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        self.peak[pid] = bytes_of.get("VmHWM", 0)
        self.held[pid] = max(self.held.get(pid, 0), held)
        if pid == self.first:
            self.held_by_stage[self.stage] = max(self.held_by_stage.get(self.stage, 0), held)


def _timed(process: subprocess.Popen[str], watch: _Watch) -> dict[str, float]:
    """Seconds of each stage, by when its line comes; what is read counts until the first of these. The watch is told."""
    stages: dict[str, float] = {}
    last: float | None = None
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)
        name, _, rest = line.partition(":")
        last = time.monotonic() if last is None else last
        if " -> " in rest and rest.rstrip().endswith("images"):
            now = time.monotonic()
            name = "read and filters" if name == "filters" else name
            stages[name], last = now - last, now
            watch.stage = f"after {name}"
    stages["write"] = time.monotonic() - (last or time.monotonic())
    return stages


def main(words: dict[str, str]) -> None:
    """Measure and print."""
    engines = words.get("engines", "processes,inline").split(",")
    sizes = [int(size) for size in words.get("images", "10000,100000").split(",")]
    workers, shard = int(words.get("workers", cores())), int(words.get("shard", 2048))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for engine in engines:
            for images in sizes:
                results.append(measured(engine, images, workers=workers, shard=shard, folder=Path(folder)))
                print(results[-1], file=sys.stderr, flush=True)
    at = {(one["engine"], one["images"]): one for one in results}
    growth, mapped = (
        {name: round(at[name, sizes[-1]][kind] / at[name, sizes[0]][kind], 2) for name in engines}
        for kind in ("held_bytes", "peak_bytes")
    )
    base = at.get(("processes", sizes[-1]))
    times = (
        {name: round(at[name, sizes[-1]]["cpu_seconds"] / base["cpu_seconds"], 2) for name in engines} if base else {}
    )
    same = all(len({at[name, size]["manifest"] for name in engines}) == 1 for size in sizes)
    about = {
        "shard": shard, "bounds": BOUNDS, "growth": growth, "growth_with_files": mapped, "cpu_by_processes": times,
        "same_manifest": same,
    }  # fmt: skip
    print(json.dumps({"bench": "curate_engines", **about, "results": results, "device": processor(), **versions()}))


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
