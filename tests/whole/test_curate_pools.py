"""Curations by Dask and by jobs of SLURM: the same bytes as by this process, whatever is killed, and no shard twice."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import reads
from curating import FIND, WAIT, ended, manifest, refused, sets_aside_what_kills, shards, start, twelve, until
from process import SOURCE
from small_shards import shrink

import dinoforge

pytestmark = [pytest.mark.long, pytest.mark.dist]


class Jobs:
    """Those of submitit on this machine."""

    words = ("engine=slurm", "address=local", "workers=2")

    def tasks(self):
        """The processes of jobs that this test began."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (place / "environ").read_bytes()
                if (
                    os.environ["DINOFORGE_SWEPT"].encode() in environment
                    and b"_submit" in (place / "cmdline").read_bytes()
                ):
                    found.append(int(place.name))
        return found

    def end(self):
        """They end with their shards."""


class Workers:
    """Two workers of Dask, see ``dask_nodes.py``."""

    def __init__(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "dask_nodes.py")], env={**os.environ, **FIND, **environment},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address, *pids = self.process.stdout.readline().split()
        self.pids = [int(pid) for pid in pids]
        self.words = ("engine=dask", f"address={self.address}")

    def tasks(self):
        """The workers that were begun."""
        return self.pids

    def end(self):
        """Also the scheduler; workers are swept."""
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(WAIT)


def needs(module, extra):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs the extra {extra}")


@pytest.fixture(
    params=[
        pytest.param(Workers, marks=needs("distributed", "dask")),
        pytest.param(Jobs, marks=needs("submitit", "slurm")),
    ]
)
def cluster(request, swept):
    """One that ends with the test."""
    made = request.param()
    yield made
    made.end()


@pytest.fixture
def workers(swept):
    """Starts workers of Dask, which end with the test."""
    begun = []

    def begin(**environment):
        begun.append(Workers(**environment))
        return begun[-1]

    yield begin
    for one in begun:
        if one.process.poll() is None:
            one.end()


@pytest.fixture
def given(tmp_path):
    return twelve(tmp_path / "pool")


def undisturbed(tmp_path, given, monkeypatch, *, shard):
    shrink(shard, 60, monkeypatch.setattr)
    dinoforge.curate(out=str(tmp_path / "whole"), engine="inline", **given)
    return manifest(tmp_path / "whole")


def test_two_shards(cluster, given, tmp_path, monkeypatch):
    out = tmp_path / "c"
    ended(start(out, *cluster.words, "--json", shard=6, given=given))
    assert manifest(out) == undisturbed(tmp_path, given, monkeypatch, shard=6)
    assert len(list(out.glob("stages/read/**/*.npz"))) == 2


def test_a_worker_and_the_driver_are_killed(cluster, given, tmp_path, monkeypatch):
    out = tmp_path / "c"
    process = start(out, *cluster.words, "--json", shard=2, reads="slow", given=given)
    until(lambda: shards(out) and cluster.tasks(), process)
    os.kill(cluster.tasks()[0], signal.SIGKILL)
    until(lambda: len(shards(out)) >= 3, process)
    process.kill()
    process.communicate(timeout=WAIT)
    before = shards(out)
    assert not (out / "manifest.parquet").exists()
    ended(start(out, *cluster.words, "--json", shard=2, given=given))
    assert before.items() <= shards(out).items()
    assert manifest(out) == undisturbed(tmp_path, given, monkeypatch, shard=2)


def test_a_shard_that_always_kills_is_set_aside(cluster, tmp_path):
    sets_aside_what_kills(tmp_path, *cluster.words)


@needs("distributed", "dask")
def test_a_shard_that_workers_of_dask_go_on_with_is_waited_for(workers, given, tmp_path, monkeypatch):
    """The driver is killed while they have the first two shards; the next one begins at once."""
    cluster, out = workers(), tmp_path / "c"
    process = start(out, *cluster.words, shard=2, reads="slowest", given=given)
    notes = f"stages/sent/calls-*/{16 * '[0-9a-f]'}"
    until(lambda: len(list(out.glob(notes))) >= 3, process)  # of the first task, and of two
    process.kill()
    process.communicate(timeout=WAIT)
    assert not shards(out)
    said = ended(start(out, *cluster.words, "--json", shard=2, given=given))
    assert "engine=dask: waiting for 2 shards of an earlier start, which workers go on with." in said
    assert manifest(out) == undisturbed(tmp_path, given, monkeypatch, shard=2)


@needs("distributed", "dask")
def test_an_answer_that_is_lost_with_its_worker_is_not_made_again(workers, tmp_path):
    from distributed import Client

    from dinoforge.curate.executors.dask import _called

    cluster, made = workers(), tmp_path / "made"
    with Client(cluster.address) as client:
        future = client.submit(_called, tmp_path / "call", reads.counted, (str(made),), {}, pure=False, retries=0)
        assert future.result(WAIT) == 1
        (holder,) = {one for held in client.who_has().values() for one in held}
        os.kill(client.run(os.getpid)[holder], signal.SIGKILL)
        until(lambda: any(one != holder for held in client.who_has().values() for one in held), cluster.process)
    assert made.read_text() == "made\n"


@needs("distributed", "dask")
def test_where_the_scheduler_of_dask_is_lost_another_engine_goes_on(workers, given, tmp_path, monkeypatch):
    cluster, out = workers(), tmp_path / "c"
    process = start(out, *cluster.words, shard=2, reads="slow", given=given)
    until(lambda: shards(out), process)
    cluster.end()
    assert refused(process).endswith("the scheduler is lost; once there is one, the same command goes on.")
    before = shards(out)
    ended(start(out, "engine=processes", "workers=2", "--json", shard=2, given=given))
    assert before.items() <= shards(out).items()
    assert manifest(out) == undisturbed(tmp_path, given, monkeypatch, shard=2)


@needs("distributed", "dask")
def test_another_version_on_a_worker_of_dask_is_one_line(workers, given, tmp_path):
    """One with another file, and one that knows no Dask yet."""
    for name, gone in (("other", ()), ("older", ("dask.py",))):
        copy = tmp_path / name / "dinoforge"
        shutil.copytree(SOURCE / "dinoforge", copy, ignore=shutil.ignore_patterns("__pycache__", *gone))
        (copy / "new.py").write_text("")
        cluster = workers(PYTHONPATH=str(copy.parent))
        said = refused(start(tmp_path / "c", *cluster.words, given=given))
        assert ("instead of" in said) == (not gone)
        assert ("has no dinoforge like this one" in said) == bool(gone)
        assert said.endswith("install the same on all machines.")
