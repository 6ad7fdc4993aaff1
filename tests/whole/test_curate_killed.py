"""A curation whose driver and worker are killed goes on, on another engine too, and does nothing twice; a shard that kills is set aside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from process import SOURCE
from small_shards import shrink

import dinoforge
from dinoforge.data.toyworld.pollution import png

POOL = "toy://species?images=160&size=48&copies=0.1&leaks=0.05&junk=0.05&split={split}"
SEEDS = "toy://species?images=20&size=48&seed=9"
WORDS = {"pool": POOL.format(split="train"), "keep_out": POOL.format(split="test"), "seeds": SEEDS, "shards.images": 50}
WAIT = 600


def start(out, *words):
    """A process that curates with small shards."""
    words = [*(f"{name}={value}" for name, value in WORDS.items()), f"out={out}", *words]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "small_shards.py"), "16", "60", "curate", *words],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def shards(out):
    """When each shard that is there was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("stages/**/*.npz") if not path.name.startswith(".")}


def until(reached, process):
    end = time.monotonic() + WAIT
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def offspring(pid):
    """The processes that one started to take shards."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except (OSError, ValueError):
            continue
    return found


def gone(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.dist
def test_driver_and_worker_are_killed(tmp_path, monkeypatch):
    """Processes begin, this process ends it: the same bytes as undisturbed, and no shard twice."""
    out = tmp_path / "killed"
    process = start(out, "workers=2")
    until(lambda: len(shards(out)) >= 1, process)
    crew = offspring(process.pid)
    os.kill(crew[0], signal.SIGKILL)
    until(lambda: len(shards(out)) >= 3, process)
    crew += offspring(process.pid)
    process.kill()
    said = process.communicate()[1]
    assert "Traceback" not in said
    until_gone = time.monotonic() + 30
    while not all(map(gone, crew)) and time.monotonic() < until_gone:
        time.sleep(0.05)
    assert all(map(gone, crew))  # they end with the driver
    before = shards(out)
    assert not (out / "manifest.parquet").exists()
    shrink(16, 60, monkeypatch.setattr)
    dinoforge.curate(out=str(out), engine="inline", **WORDS)
    assert before.items() <= shards(out).items()
    dinoforge.curate(out=str(tmp_path / "whole"), engine="inline", **WORDS)
    one, other = ((folder / "manifest.parquet").read_bytes() for folder in (out, tmp_path / "whole"))
    assert one == other
    assert [path.name for path in out.rglob(".*")] == [".lock"]


def ended(process):
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    assert out.strip().splitlines()[-1].startswith("{"), out
    assert "Traceback" not in err
    return err


@pytest.mark.long
@pytest.mark.dist
def test_a_shard_that_always_kills_is_set_aside_with_its_images(tmp_path):
    """The reader of one shard ends its process: it is tried twice, all its images are dropped by name."""
    pool, rng = tmp_path / "pool", np.random.default_rng(0)
    pool.mkdir()
    for number in range(12):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (pool / f"{number:02}.png").write_bytes(png(np.kron(coarse, np.ones((6, 6, 1), np.uint8))))
    (tmp_path / "poison.py").write_text(
        "import os, signal\nimport dinoforge.curate.images as images\nread = images._read\n"
        "def deadly(job, processes):\n"
        "    if job.start == 4:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    read(job, processes)\n"
        "images._read = deadly\n"
    )
    place = str(Path(__file__).parent)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {place!r}]\nimport poison\nimport small_shards\n" \
           "small_shards.shrink(4, 60)\nfrom dinoforge.cli import main\nmain(sys.argv[1:])\n"  # fmt: skip
    words = ["curate", f"pool={pool}", "retrieve=all", f"out={tmp_path / 'c'}", "workers=2", "--json"]
    told = []
    for _ in range(2):  # the second start finds that shard alone
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        told.append([line for line in ended(process).splitlines() if "failed" in line])
        lost = [row for row in pq.read_table(tmp_path / "c" / "dropped.parquet").to_pylist() if row["stage"] == "read"]
        assert [row["id"] for row in lost] == ["04.png", "05.png", "06.png", "07.png"]
        assert {row["detail"] for row in lost} == {"reading its shard failed twice: its process died"}
    assert told == 2 * [
        [
            "read pool: shard 04.png to 07.png failed, its process died; it is tried once more.",
            "read pool: shard 04.png to 07.png failed, its process died; given up.",
        ]
    ]
