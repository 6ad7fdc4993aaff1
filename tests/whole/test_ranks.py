"""The main job on several ranks as a user runs it: the same run on any number of them, whatever happens on the way."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from process import SOURCE
from safetensors.torch import load_file

import dinoforge
from dinoforge import cli
from dinoforge.base import dist
from dinoforge.base.errors import RunError
from dinoforge.data.order import Order
from dinoforge.recipes import cost
from dinoforge.train import shards
from dinoforge.train.checkpoint import Checkpoints
from ranks import Ranks, free_port

pytestmark = pytest.mark.dist

TINY = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2,
    "objective.head.prototypes": 64, "objective.head.hidden": 32, "objective.head.bottleneck": 16, "objective.group": 4,
    "plan.batch": 16, "data.augment.local_views": 2, "backbone.drop_path": 0.2, "precision": "fp32",
    "data": "toy://species?images=60&size=48", "probe": "toy://species?images=40&size=48",
}  # fmt: skip
SHORT = {"plan.images": 128, "plan.checkpoint_images": 64, "plan.probe_images": 64}
LONG = {"plan.images": 640, "plan.checkpoint_images": 80, "plan.probe_images": 320}
LENGTHS = {"short": SHORT, "long": LONG, "very long": LONG | {"plan.images": 2560}}


def words(out, *changes):
    settings = TINY | {key: value for change in changes for key, value in change.items()}
    return ["pretrain", f"out={out}", *(f"{key}={value}" for key, value in settings.items()), "--json"]


@pytest.fixture
def launch(tmp_path):
    """Start ranks that are killed after the test whatever happens."""
    begun = []

    def start(world, command, **options):
        folder = tmp_path / f"printed{len(begun)}"
        folder.mkdir()
        for rank in range(world):
            (folder / f"err{rank}").touch()  # to be read before the rank is there
        work = command if callable(command) else lambda: cli.execute(command)
        begun.append(Ranks(world, work, folder=folder, **options))
        return begun[-1]

    yield start
    for ranks in begun:
        ranks.kill()


def facts(ranks):
    """What the first rank printed for programs."""
    (line,) = ranks.text(0, "out").splitlines()
    return json.loads(line)


def complaints(ranks):
    """What each rank said went wrong."""
    told = [ranks.text(rank) for rank in range(ranks.world)]
    assert not any("Traceback" in text for text in told), told
    return [[line for line in text.splitlines() if line.startswith("dinoforge: ")] for text in told]


def only_complaint(ranks):
    """The one line that one rank said, and with it what the first rank printed for programs."""
    (line,) = (line for lines in complaints(ranks) for line in lines)
    assert facts(ranks)["error"] in line
    return line


def finished(ranks):
    assert ranks.answers() == [0] * ranks.world, [ranks.text(rank) for rank in range(ranks.world)]
    return facts(ranks)


def rows(out):
    path = Path(out) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_step(out):
    """Of the metrics; a line may be half-written."""
    path = Path(out) / "metrics.jsonl"
    steps = re.findall(r'^\{"step": (\d+),.*\}$', path.read_text(), re.M) if path.exists() else []
    return int(steps[-1]) if steps else 0


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "never happened"
        time.sleep(0.02)


def whole(out):
    return Checkpoints(out / "checkpoints", keep=9).all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs in one process that nobody disturbed, by their length; made when first asked for, here, so that ranks are forked
    from a process that has everything loaded."""
    done = {}

    def of(length):
        if length not in done:
            out = tmp_path_factory.mktemp("runs") / "whole"
            done[length] = out, dinoforge.pretrain(out=out, **TINY, **LENGTHS[length])
        return done[length]

    return of


def same_run(out, want):
    """Every step once, with the losses of another run; the same accuracies; the same backbone."""
    mine, theirs = rows(out), rows(want)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        assert row["losses"] == {
            name: pytest.approx(value, rel=0 if name == "koleo" else 1e-5, abs=1e-5 if name == "koleo" else 0)
            for name, value in other["losses"].items()
        }, f"step {row['step']}"
        assert row.get("knn") == other.get("knn")
        assert row.keys() == other.keys()
        for name in {"rank", "uniformity", "smoothness"} & row.keys():
            assert row[name] == pytest.approx(other[name], rel=1e-3), f"{name} at step {row['step']}"
    weights, wanted = (load_file(run / "backbone" / "backbone.safetensors") for run in (out, want))
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        # A key's bias changes no attention: its gradient is rounding, which AdamW makes large.
        parts = (0, 2) if name.endswith("qkv.bias") else (0, 1, 2)
        for part in parts:
            mine, theirs = (tensor.tensor_split(3)[part] for tensor in (value, wanted[name]))
            torch.testing.assert_close(
                mine, theirs, rtol=1e-5, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}"
            )


@pytest.mark.parametrize(
    ("world", "speed"),
    [
        (1, {"speed.micro_batch": 4}),
        (2, {}),
        (2, {"speed.micro_batch": 4}),
        (2, {"speed.sharding": "all", "speed.checkpoints": "background"}),
        (4, {"workers": 1}),
    ],
)
def test_the_same_run_on_any_number_of_ranks(undisturbed, launch, tmp_path, world, speed):
    folder, want = undisturbed("short")
    out = tmp_path / "run"
    ranks = launch(world, words(out, SHORT, speed))
    found = finished(ranks)
    same_run(out, folder)
    assert found["knn"] == want.knn
    assert [ranks.text(rank, stream) for rank in range(1, world) for stream in ("out", "err")] == [""] * (2 * world - 2)
    assert [saved.step for saved in whole(out)] == [4, 8]


def killed_at(moment, ranks, out):
    """Kill all ranks at a random moment, or not, if they end before; whether they were killed."""
    wait_for(lambda: re.search("Going on from|Before the first", ranks.text(0)) or not ranks.alive())
    until = last_step_saved(out) + moment.randint(1, 8)
    wait_for(lambda: last_step(out) >= until or not ranks.alive())
    time.sleep(moment.uniform(0, 0.3))
    was_alive = ranks.alive()
    ranks.kill()
    ranks.answers()
    return was_alive


def last_step_saved(out):
    return max((int(path.name[5:]) for path in out.glob("checkpoints/step_*")), default=0)


@pytest.mark.parametrize(("kills", "length"), [(3, "long"), pytest.param(20, "very long", marks=pytest.mark.long)])
def test_killed_again_and_again(undisturbed, launch, tmp_path, kills, length):
    """Each time it goes on with another number of ranks, at least from the newest checkpoint that was there."""
    folder, _ = undisturbed(length)
    seed = random.randrange(2**32)
    moment, out = random.Random(seed), tmp_path / "run"
    print(f"seed {seed}")  # pytest shows it when the test fails
    command = words(out, LENGTHS[length], {"speed.checkpoints": moment.choice(["background", "at_once"])})
    for _ in range(kills):
        there = last_step_saved(out)
        ranks = launch(moment.choice([1, 2, 4]), command)
        if not killed_at(moment, ranks, out):
            break
        assert resumed_from(ranks) >= there
        saved = {path.name for path in out.glob("checkpoints/step_*")}
        assert {found.folder.name for found in whole(out)} == saved  # what has its name is whole
        assert last_step_saved(out) >= there
    there = last_step_saved(out)
    assert finished(launch(moment.choice([1, 2]), command))["resumed_from"] >= there
    same_run(out, folder)


def resumed_from(ranks):
    found = re.search(r"Going on from \S+ \(step (\d+) of", ranks.text(0))
    return int(found[1]) if found else 0


def test_a_rank_that_is_lost_ends_the_others(launch, tmp_path):
    """Promptly, and not after the half hour that a collective waits."""
    out = tmp_path / "run"
    ranks = launch(2, words(out, LONG))
    wait_for(lambda: last_step(out) > 3)
    ranks.kill(ranks=[1])
    assert ranks.answers(patience=30) == [2, None]
    assert "another rank ended, or its machine cannot be reached any more" in only_complaint(ranks)


def test_one_rank_asked_to_stop_stops_all(undisturbed, launch, tmp_path):
    folder, _ = undisturbed("long")
    out = tmp_path / "run"
    command = words(out, LONG)
    ranks = launch(2, command)
    wait_for(lambda: last_step(out) > 5)
    ranks.kill(signal.SIGTERM, ranks=[1])
    assert ranks.answers() == [75, 75]
    (said,) = re.findall(r"Stopped after step (\d+)", only_complaint(ranks))
    assert int(said) == last_step(out) == whole(out)[-1].step < 40
    assert finished(launch(1, command))["resumed_from"] == int(said)
    same_run(out, folder)


@pytest.mark.parametrize(
    ("world", "change", "told"),
    [
        (3, {}, "do not divide among 3 ranks; 2 or 4 would do"),
        (2, {"speed.micro_batch": 5}, "speed.micro_batch=5 does not divide a rank's 8 images into whole groups of 4; 4, 8 would"),
        (2, {"data": "nowhere"}, "nowhere does not exist"),
        (2, {"data": "toy://species?images=20&size=48", "plan.batch": 6}, "plan.batch=6 is no multiple of objective.group=4"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said_once(launch, tmp_path, world, change, told):
    ranks = launch(world, words(tmp_path / "run", SHORT, change))
    assert ranks.answers() == [2] * world
    assert told in only_complaint(ranks)
    assert not (tmp_path / "run" / "checkpoints").exists()
    if "speed.micro_batch" not in change:  # which is found out with the folder open
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["embed", "evaluate"])
def test_other_verbs_run_in_one_process(launch, tmp_path, verb):
    ranks = launch(2, [verb, "backbone=b", f"out={tmp_path / 'o'}", "data=toy://species?images=20", "--json"])
    assert ranks.answers() == [2, 2]
    assert f"{verb} runs in one process; start it without torchrun" in facts(ranks)["error"]
    assert all(len(lines) == 1 for lines in complaints(ranks))  # they have not joined, so each speaks for itself
    assert not (tmp_path / "o").exists()


def test_half_of_what_a_launcher_says(launch, tmp_path):
    ranks = launch(2, words(tmp_path / "run", SHORT), environment={"MASTER_ADDR": None})
    assert ranks.answers() == [2, 2]
    assert all(len(lines) == 1 for lines in complaints(ranks))
    assert "WORLD_SIZE=2 says that several processes run together, but MASTER_ADDR is not set" in facts(ranks)["error"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", [{"data": "toy://species?images=64&size=48"}, {"seed": 7}])
def test_a_rank_with_another_run_is_refused(launch, tmp_path, change):
    out = tmp_path / "run"
    ranks = launch(2, lambda: cli.execute(words(out, SHORT, change if dist.rank() else {})))
    assert ranks.answers() == [2, 2]
    assert "Rank 1 has another run than rank 0" in only_complaint(ranks)
    assert not out.exists()


def test_a_rank_that_does_not_find_the_data_says_so(launch, tmp_path):
    """Its machine may lack a mount that the others have."""
    out = tmp_path / "run"
    ranks = launch(2, lambda: cli.execute(words(out, SHORT, {"data": "nowhere"} if dist.rank() else {})))
    assert ranks.answers() == [2, 2]
    assert re.match("dinoforge: rank 1: .*nowhere does not exist", only_complaint(ranks))
    assert not out.exists()


def test_another_run_in_the_folder_is_refused(undisturbed, launch):
    folder, _ = undisturbed("short")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ranks = launch(2, words(folder, SHORT, {"plan.clip": 2, "seed": 7}))
    assert ranks.answers() == [2, 2]
    told = only_complaint(ranks)
    assert "holds another run" in told
    assert "settings.plan.clip 3.0 -> 2.0" in told
    assert "settings.seed 0 -> 7" in told
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_in_use_is_refused(launch, tmp_path):
    out = tmp_path / "run"
    first = launch(2, words(out, LONG))
    wait_for(lambda: last_step(out) > 0)
    second = launch(2, words(out, LONG))
    assert second.answers() == [2, 2]
    assert "is in use by another dinoforge process" in only_complaint(second)
    assert first.alive()


def test_a_file_is_no_folder(launch, tmp_path):
    (tmp_path / "file").write_text("x")
    ranks = launch(2, words(tmp_path / "file", SHORT))
    assert ranks.answers() == [2, 2]
    assert "file is a file; give a folder" in only_complaint(ranks)
    assert (tmp_path / "file").read_text() == "x"


def test_little_memory_takes_the_smallest_micro_batch(launch, tmp_path):
    ranks = launch(2, words(tmp_path / "run", SHORT, {"plan.images": 16, "speed.memory_gib": 0.01}))
    finished(ranks)
    assert "Plan: 1 steps of 16 images on 2 ranks (4 at once)" in ranks.text(0)


def test_a_run_that_memory_cannot_hold_is_refused(launch, tmp_path):
    def small():
        cost.memory_bytes = lambda _where: 2**26
        return cli.execute(words(tmp_path / "run", SHORT))

    ranks = launch(2, small)
    assert ranks.answers() == [2, 2]
    told = only_complaint(ranks)
    assert "this machine has 0.0 for each of 2 ranks" in told
    assert "lower objective.group=4, data.augment.local_views or objective.head.prototypes" in told
    assert not (tmp_path / "run" / "checkpoints").exists()


def photos(folder, broken):
    """Sixteen pictures of two classes, of which those of the given rows are cut off."""
    rng = np.random.default_rng(0)
    for row in range(16):
        path = folder / ("a" if row < 8 else "b") / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(path)
        if row in broken:
            path.write_bytes(path.read_bytes()[:2000])
    return folder


def read_by_the_second_rank():
    """A row that the second of two ranks reads in the first step, and nobody else."""
    return int(Order(16, seed=0).at(np.arange(8, 16))[0][0])


@pytest.mark.parametrize(
    "where",
    [
        {"data": [read_by_the_second_rank()]},
        {"probe": [1]},  # the second of the rows that vote
        {"data": [3, 4], "probe": None},  # of which the effective rank is measured too
    ],
)
def test_a_broken_image_is_set_aside_once(launch, tmp_path, where):
    change = {key: "null" if broken is None else photos(tmp_path / key, broken) for key, broken in where.items()}
    out = tmp_path / "run"
    steps = {"plan.images": 16} if "probe" not in where else {"plan.images": 32}
    found = finished(launch(2, words(out, SHORT, steps, change)))
    aside = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    many = sum(len(broken or ()) for broken in where.values())
    assert len(aside) == len({row["id"] for row in aside}) == found["quarantined"] == many


@pytest.mark.parametrize("how", ["at_once", "background"])
def test_a_full_disk_on_one_rank(undisturbed, launch, tmp_path, how):
    folder, _ = undisturbed("short")
    out = tmp_path / "run"
    command = words(out, SHORT, {"speed.checkpoints": how})

    def full():
        written = shards.write_tensors

        def write(path, *rest, **options):
            if dist.rank() == 1 and "000000008" in str(path):
                raise RunError(f"Cannot write {path}: no space left. Free some and run again.")
            written(path, *rest, **options)

        shards.write_tensors = write
        return cli.execute(command)

    ranks = launch(2, full)
    assert ranks.answers() == [2, 2]
    assert re.match(r"dinoforge: rank 1: Cannot write .*shard-00002-of-00002\S+: no space left", only_complaint(ranks))
    assert [saved.step for saved in whole(out)] == [4]
    assert finished(launch(2, command))["resumed_from"] == 4
    same_run(out, folder)


class Launched:
    """``dinoforge pretrain`` under torch's own launcher."""

    def __init__(self, out, *changes):
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2",
             f"--master-port={free_port()}", "-m", "dinoforge", *words(out, *changes)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def workers(self):
        """Process numbers of the ranks, the first one first."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
                names = dict(
                    entry.split("=", 1) for entry in (path / "environ").read_text().split("\0") if "=" in entry
                )
            except OSError:
                continue
            if parent == self.process.pid and "RANK" in names:
                found.append((int(names["RANK"]), int(path.name)))
        return [number for _, number in sorted(found)]


@pytest.fixture
def torchrun():
    begun = []

    def start(out, *changes):
        begun.append(Launched(out, *changes))
        return begun[-1]

    yield start
    for launched in begun:
        for number in launched.workers():
            os.kill(number, signal.SIGKILL)
        launched.process.kill()
        launched.process.communicate()


def test_the_launcher_starts_lost_ranks_again(undisturbed, torchrun, tmp_path):
    folder, _ = undisturbed("long")
    out = tmp_path / "run"
    launched = torchrun(out, LONG)
    wait_for(lambda: last_step_saved(out) > 0)
    os.kill(launched.workers()[1], signal.SIGKILL)
    printed, told = launched.process.communicate(timeout=120)
    assert launched.process.returncode == 0, told
    (line,) = [line for line in printed.splitlines() if '"steps"' in line]
    assert json.loads(line)["resumed_from"] > 0
    same_run(out, folder)


def test_the_launcher_asked_to_stop_lets_ranks_write_a_checkpoint(torchrun, tmp_path):
    out = tmp_path / "run"
    launched = torchrun(out, LONG, {"plan.checkpoint_images": 10_000})
    wait_for(lambda: last_step(out) > 2)
    launched.process.send_signal(signal.SIGTERM)
    printed, told = launched.process.communicate(timeout=60)
    assert launched.process.returncode == 1  # the launcher's own, whatever its ranks end with
    assert "dinoforge: Stopped after step" in told
    assert "Run the same command to go on" in json.loads(printed)["error"]
    assert 2 < whole(out)[-1].step == last_step(out) < 40
