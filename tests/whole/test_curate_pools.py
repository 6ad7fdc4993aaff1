"""Curations by jobs of SLURM, on this machine: the same bytes as by this process, whatever is killed, and no shard twice."""

import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from curating import WAIT, ended, manifest, sets_aside_what_kills, shards, start, twelve, until
from small_shards import shrink

import dinoforge

pytestmark = [
    pytest.mark.long, pytest.mark.dist, pytest.mark.usefixtures("swept"),
    pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra slurm"),
]  # fmt: skip


WORDS = ("engine=slurm", "address=local", "workers=2")


def tasks():
    """The processes of jobs that this test began."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (place / "environ").read_bytes()
            if os.environ["DINOFORGE_SWEPT"].encode() in environment and b"_submit" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


@pytest.fixture
def given(tmp_path):
    return twelve(tmp_path / "pool")


def undisturbed(tmp_path, given, monkeypatch, *, shard):
    shrink(shard, 60, monkeypatch.setattr)
    dinoforge.curate(out=str(tmp_path / "whole"), engine="inline", **given)
    return manifest(tmp_path / "whole")


def test_two_shards(given, tmp_path, monkeypatch):
    out = tmp_path / "c"
    ended(start(out, *WORDS, "--json", shard=6, given=given))
    assert manifest(out) == undisturbed(tmp_path, given, monkeypatch, shard=6)
    assert len(list(out.glob("stages/read/**/*.npz"))) == 2


def test_a_worker_and_the_driver_are_killed(given, tmp_path, monkeypatch):
    out = tmp_path / "c"
    process = start(out, *WORDS, "--json", shard=2, reads="slow", given=given)
    until(lambda: shards(out) and tasks(), process)
    os.kill(tasks()[0], signal.SIGKILL)
    until(lambda: len(shards(out)) >= 3, process)
    process.kill()
    process.communicate(timeout=WAIT)
    before = shards(out)
    assert not (out / "manifest.parquet").exists()
    ended(start(out, *WORDS, "--json", shard=2, given=given))
    assert before.items() <= shards(out).items()
    assert manifest(out) == undisturbed(tmp_path, given, monkeypatch, shard=2)


def test_a_shard_that_always_kills_is_set_aside(tmp_path):
    sets_aside_what_kills(tmp_path, *WORDS)
