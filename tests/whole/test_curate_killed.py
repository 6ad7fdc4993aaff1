"""A curation whose driver and worker are killed goes on, on another engine too, and does nothing twice; a shard that kills is set aside."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from curating import WORDS, gone, manifest, sets_aside_what_kills, shards, start, until
from small_shards import shrink

import dinoforge
import shard_works as works


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


def test_a_shard_whose_answer_was_lost_is_not_written_again(tmp_path, monkeypatch):
    """Its process died when it had written the file."""
    works.twice(monkeypatch)
    shrink(16, 60, monkeypatch.setattr)
    written, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, into: (written.append(Path(into)), replace(path, into))[1])
    dinoforge.curate(out=str(tmp_path / "c"), engine="inline", **WORDS)
    shards = [path for path in written if re.fullmatch(r"(pool-|keep_out-)?\d+.*\.(npz|tar)", path.name)]
    assert len(shards) == len(set(shards))
    assert {path.parent.name for path in shards} == {"pool", "keep_out", "seeds-0", "pairs.parts", "shards"}


@pytest.mark.long
@pytest.mark.dist
def test_a_shard_that_always_kills_is_set_aside_with_its_images(tmp_path, swept):
    sets_aside_what_kills(tmp_path, "workers=2")
