"""Curations by Ray: the same bytes as by this machine, whatever is killed, and no shard twice."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from curating import FIND, WAIT, WORDS, ended, manifest, refused, sets_aside_what_kills, shards, start, until
from process import SOURCE
from small_shards import shrink

import dinoforge

pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("swept")]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5eed" * 16, "RAY_USAGE_STATS_ENABLED": "0"}


def needs(module, extra):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs the extra {extra}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The manifest, by this process."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(16, 60, patch.setattr)
        out = tmp_path_factory.mktemp("whole") / "c"
        dinoforge.curate(out=str(out), engine="inline", **WORDS)
    return manifest(out)


def ends(process):
    """End a process that its own ones may outlive."""
    process.kill()
    process.stdin.close()
    process.stdout.close()
    process.wait(WAIT)


class Nodes:
    """Two nodes of Ray of one core each, see ``ray_nodes.py``."""

    def __init__(self, **environment):
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "ray_nodes.py")], env={**os.environ, **FIND, **environment},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self.process.stdout.readline().strip()

    def kill(self, which):
        self.process.stdin.write(f"{which}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{which}\n"


@pytest.fixture
def nodes(swept, monkeypatch):
    """Starts nodes of Ray that ask for a token, and end with the test."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    begun = []

    def begin(**environment):
        begun.append(Nodes(**environment))
        return begun[-1]

    yield begin
    for one in begun:
        ends(one.process)


@needs("ray", "ray")
def test_ray_on_this_machine_goes_on_where_its_driver_was_killed(undisturbed, tmp_path):
    out, words = tmp_path / "c", ["engine=ray", "workers=2", "--json"]
    process = start(out, *words, reads="slow")
    until(lambda: shards(out), process)
    process.kill()
    process.communicate(timeout=WAIT)
    before = shards(out)
    assert not (out / "manifest.parquet").exists()
    ended(start(out, *words))
    assert before.items() <= shards(out).items()
    assert manifest(out) == undisturbed


@pytest.mark.long
@needs("ray", "ray")
def test_ray_survives_what_is_killed(nodes, undisturbed, tmp_path):
    """A worker, the driver, and then a node while the same command goes on."""
    cluster = nodes()
    out, words = tmp_path / "c", ["engine=ray", f"address={cluster.address}", "--json"]
    process = start(out, *words, reads="slow")
    until(lambda: shards(out), process)
    cluster.kill("worker")
    until(lambda: len(shards(out)) >= 3, process)
    process.kill()
    assert "its process died; it is tried once more." in process.communicate(timeout=WAIT)[1]
    before = shards(out)
    assert not (out / "manifest.parquet").exists()
    process = start(out, *words, reads="slow")
    cluster.kill("node")
    assert "its node is gone; it is tried once more" in ended(process)
    assert before.items() <= shards(out).items()
    assert manifest(out) == undisturbed


@pytest.mark.long
@needs("ray", "ray")
def test_where_the_head_of_ray_is_lost_another_engine_goes_on(nodes, undisturbed, tmp_path):
    cluster = nodes()
    out = tmp_path / "c"
    process = start(out, "engine=ray", f"address={cluster.address}", reads="slow")
    until(lambda: len(shards(out)) >= 2, process)
    cluster.kill("head")
    assert refused(process).endswith("the head of the cluster is lost; once there is one, the same command goes on.")
    before = shards(out)
    ended(start(out, "engine=processes", "workers=2", "--json"))
    assert before.items() <= shards(out).items()
    assert manifest(out) == undisturbed


@pytest.mark.long
@needs("ray", "ray")
def test_a_shard_that_always_kills_is_set_aside_by_ray_too(tmp_path):
    sets_aside_what_kills(tmp_path, "engine=ray", "workers=2")


@pytest.mark.long
@needs("ray", "ray")
def test_ray_refuses_another_token(nodes, tmp_path, monkeypatch):
    cluster = nodes()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0bad" * 16)
    said = refused(start(tmp_path / "c", "engine=ray", f"address={cluster.address}"))
    assert f"Ray at address={cluster.address} cannot be used" in said


@pytest.mark.long
@needs("ray", "ray")
def test_another_version_on_a_node_of_ray_is_one_line(nodes, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(SOURCE / "dinoforge", other / "dinoforge", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "dinoforge" / "new.py").write_text("")
    cluster = nodes(PYTHONPATH=str(other))
    said = refused(start(tmp_path / "c", "engine=ray", f"address={cluster.address}"))
    assert "A worker on" in said
    assert "instead of" in said
    assert said.endswith("install the same on all machines.")


@pytest.mark.long
@needs("ray", "ray")
def test_a_full_object_store_of_ray(nodes, undisturbed, tmp_path):
    """Shards do not need it; what does is one line."""
    cluster = nodes(FULL="1")
    ended(start(tmp_path / "c", "engine=ray", f"address={cluster.address}", "--json"))
    assert manifest(tmp_path / "c") == undisturbed
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from dinoforge.curate.executors.run import Shard, running\n"
        "from dinoforge.curate.executors.seam import Wanted\nfrom dinoforge.curate.executors.table import EXECUTORS\n"
        "from dinoforge.base.errors import RunError\nimport reads\n"
        "with running(EXECUTORS['ray'], Wanted(Path(sys.argv[1]), address=sys.argv[2])) as of:\n"
        "    try:\n        list(of.each(reads.slow, [Shard('much', 1, bytes(50_000_000))], title='try', total=2))\n"
        "    except RunError as error:\n        print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "sent"), cluster.address]
    found = subprocess.run(words, env={**os.environ, **FIND}, capture_output=True, text=True, timeout=WAIT, check=True)
    assert found.stdout.startswith("engine=ray: the object store of Ray is full."), found
    assert found.stdout.count("\n") == 1
