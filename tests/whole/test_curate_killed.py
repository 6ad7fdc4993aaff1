"""A curation whose driver and worker are killed goes on, on another engine too, and does nothing twice; a shard that kills is set aside."""

import os
import signal
import time
from pathlib import Path

import pytest
from curating import WORDS, gone, manifest, sets_aside_what_kills, shards, start, until
from small_shards import shrink

import dinoforge


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


@pytest.mark.dist
def test_driver_and_worker_are_killed(tmp_path, monkeypatch, swept):
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
    assert manifest(out) == manifest(tmp_path / "whole")
    assert [path.name for path in out.rglob(".*")] == [".lock"]


@pytest.mark.long
@pytest.mark.dist
def test_a_shard_that_always_kills_is_set_aside_with_its_images(tmp_path, swept):
    sets_aside_what_kills(tmp_path, "workers=2")
