"""Curations of a small pool in many shards, each in a process that may be killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from process import SOURCE

from dinoforge.data.toyworld.pollution import png

POOL = "toy://species?images=160&size=48&copies=0.1&leaks=0.05&junk=0.05&split={split}"
SEEDS = "toy://species?images=20&size=48&seed=9"
WORDS = {"pool": POOL.format(split="train"), "keep_out": POOL.format(split="test"), "seeds": SEEDS, "shards.images": 50}
SHARD, PART = 16, 60
"""Images and pairs of a shard."""
WAIT = 600
FIND = {"PYTHONPATH": f"{SOURCE}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
"""Where processes find the product, and the readers of ``reads.py``."""


def start(out, *words, shard=SHARD, reads="", given=WORDS):
    """A process that curates with small shards, read by one of ``reads.py``."""
    words = [*(f"{name}={value}" for name, value in given.items()), f"out={out}", *words]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "small_shards.py"), str(shard), str(PART), "curate", *words],
        env={**os.environ, **FIND, **({"READS": reads} if reads else {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def shards(out):
    """When each shard that is there was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("stages/**/*.npz") if not path.name.startswith(".")}


def until(reached, process):
    """Wait for something, as long as a process lives."""
    end = time.monotonic() + WAIT
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid):
    """Whether a process has ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def ended(process):
    """What a process said on its way to a good end."""
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    assert out.strip().splitlines()[-1].startswith("{"), out
    assert "Traceback" not in err
    return err


def refused(process):
    """The one line with which a process ended."""
    err = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 2, err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def manifest(out):
    return (out / "manifest.parquet").read_bytes()


def twelve(pool):
    """The words for a curation of twelve images, which are made."""
    rng = np.random.default_rng(0)
    pool.mkdir()
    for number in range(12):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (pool / f"{number:02}.png").write_bytes(png(np.kron(coarse, np.ones((6, 6, 1), np.uint8))))
    return {"pool": str(pool), "retrieve": "all"}


def sets_aside_what_kills(tmp_path, *words):
    """The reader of one shard ends its process: it is tried twice, all its images are dropped by name."""
    given, told = twelve(tmp_path / "pool"), []
    for _ in range(2):  # the second start finds that shard alone
        process = start(tmp_path / "c", *words, "--json", shard=4, reads="deadly", given=given)
        told.append([line for line in ended(process).splitlines() if "failed" in line])
        lost = [row for row in pq.read_table(tmp_path / "c" / "dropped.parquet").to_pylist() if row["stage"] == "read"]
        assert [row["id"] for row in lost] == ["04.png", "05.png", "06.png", "07.png"]
        (why,) = {row["detail"] for row in lost}
        assert why.startswith("reading its shard failed twice: ")
    first, second = ([f"read pool: shard 04.png to 07.png failed, {why.partition(': ')[2]}; {then}."] for then in
                     ("it is tried once more", "given up"))  # fmt: skip
    assert told == 2 * [first + second]
