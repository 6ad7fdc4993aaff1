"""The main job as a user runs it: it learns, it resumes bit for bit, it never loses or overwrites anything."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from process import SOURCE, finish, start
from safetensors.torch import load_file

import dinoforge

TINY = [
    "recipe=vit_micro.toy", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "objective.head.prototypes=64",
    "objective.head.hidden=32", "objective.head.bottleneck=16", "objective.group=8", "plan.batch=16",
    "data.augment.local_views=2", "backbone.drop_path=0.2", "precision=fp32",
]  # fmt: skip
WORLD = "data=toy://species?images=60&size=48"
PROBE = "probe=toy://species?images=40&size=48"


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return {row["step"]: row["losses"] for row in rows(folder)}


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "never happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 40 steps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = finish(
        start("pretrain", WORLD, PROBE, f"out={folder}", *TINY, "plan.images=640", "plan.checkpoint_images=160",
              "plan.probe_images=320", "--json")
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder, done.facts


def test_what_a_run_leaves(undisturbed):
    folder, facts = undisturbed
    assert facts["steps"] == 40
    assert facts["images"] == 640
    assert facts["resumed_from"] == 0
    assert set(facts["losses"]) == {"dino_local", "dino_global", "ibot", "koleo", "total"}
    assert 0 <= facts["knn"]["first"] <= 1
    assert facts["knn"]["best"] >= facts["knn"]["last"]
    assert facts["rank"] > 1
    assert [row["step"] for row in rows(folder)] == list(range(41))
    assert [row["step"] for row in rows(folder) if "knn" in row] == [0, 20, 40]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        f"step_{step:09d}" for step in (20, 30, 40)
    ]
    assert json.loads((folder / "summary.json").read_text())["steps"] == 40
    assert not (folder / "quarantine.jsonl").exists()


def test_killed_and_started_again_is_the_same_run(undisturbed, started, run, tmp_path):
    """kill -9 after a checkpoint; the same command ends with the same losses and weights, to the last bit."""
    folder, out = undisturbed[0], tmp_path / "killed"
    command = ["pretrain", WORLD, PROBE, f"out={out}", *TINY, "plan.images=640", "plan.checkpoint_images=160",
               "plan.probe_images=320", "--json"]  # fmt: skip
    process = started(*command)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(rows(out)) > 13)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = run(*command)
    assert again.code == 0, again.err
    assert again.facts["resumed_from"] in {10, 20, 30}
    assert losses(out) == losses(folder)
    for name in ("knn", "rank", "uniformity", "smoothness", "stability"):
        assert [row.get(name) for row in rows(out)] == [row.get(name) for row in rows(folder)], name
    for name in ("backbone/backbone.safetensors", "checkpoints/step_000000040/shard-00001-of-00001.safetensors"):
        mine, want = load_file(out / name), load_file(folder / name)
        assert mine.keys() == want.keys()
        assert all(torch.equal(mine[key], want[key]) for key in want), name


def group_members(group):
    """Processes of a process group that are not yet gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its = path.read_text().rpartition(") ")[2].split()[:3]
            if int(its) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("whole_group", [False, True])
def test_asked_to_stop_it_writes_a_checkpoint(undisturbed, started, run, tmp_path, whole_group):
    """SIGTERM to the process, or to its group with the workers, as schedulers and ``timeout`` send it."""
    folder, out = undisturbed[0], tmp_path / "stopped"
    command = ["pretrain", WORLD, PROBE, f"out={out}", *TINY, "plan.images=640", "plan.checkpoint_images=160",
               "plan.probe_images=320", "--json"]  # fmt: skip
    process = started(*command, start_new_session=True)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(rows(out)) > 3)
    if whole_group:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    out_text, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Run the same command to go on" in json.loads(out_text.splitlines()[-1])["error"]
    wait_for(lambda: not group_members(process.pid), seconds=20)
    again = run(*command)
    assert again.facts["resumed_from"] > 0
    assert losses(out) == losses(folder)


def test_workers_do_not_outlive_a_killed_run(started, tmp_path):
    """They ignore SIGTERM, so they must notice by themselves that the main process is gone."""
    out = tmp_path / "killed"
    process = started("pretrain", WORLD, f"out={out}", *TINY, "plan.images=64000", "workers=2", start_new_session=True)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(rows(out)) > 2)
    assert len(group_members(process.pid)) >= 3
    process.kill()
    process.wait()
    wait_for(lambda: not group_members(process.pid), seconds=20)


def test_a_script_that_keeps_the_error_ends(tmp_path):
    """Nobody catches it, so its frames live until the interpreter ends, and with them the workers."""
    settings = {name: value for name, _, value in (word.partition("=") for word in TINY)} | {"plan.images": "64000"}
    words = {"data": WORLD.removeprefix("data="), "out": str(tmp_path / "o"), "workers": "1"} | settings
    script = f"import dinoforge\ndinoforge.pretrain(**{words!r})\n"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (tmp_path / "o" / "metrics.jsonl").exists() and len(rows(tmp_path / "o")) > 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Interrupted: Stopped after step" in err


def test_more_workers_change_nothing(undisturbed, run, tmp_path):
    done = run("pretrain", WORLD, PROBE, f"out={tmp_path / 'w'}", *TINY, "plan.images=640", "plan.probe_images=320",
               "workers=2", "--json")  # fmt: skip
    assert done.facts["losses"] == undisturbed[1]["losses"]


def test_the_same_command_on_a_finished_run_says_the_same(undisturbed, run):
    folder, facts = undisturbed
    again = run("pretrain", WORLD, PROBE, f"out={folder}", *TINY, "plan.images=640", "plan.checkpoint_images=160",
                "plan.probe_images=320", "--json")  # fmt: skip
    assert again.code == 0
    assert again.facts["resumed_from"] == 40
    assert again.facts["losses"] == facts["losses"]
    assert again.facts["knn"] == facts["knn"]


def test_another_run_in_the_folder_is_refused(undisturbed, run):
    folder = undisturbed[0]
    before = (folder / "config.yaml").read_bytes()
    done = run("pretrain", WORLD, PROBE, f"out={folder}", *TINY, "plan.images=640", "plan.clip=2", "seed=7", "--json")
    assert done.code == 2
    assert "holds another run" in done.facts["error"]
    assert "settings.plan.clip 3.0 -> 2.0" in done.facts["error"]
    assert "settings.seed 0 -> 7" in done.facts["error"]
    assert (folder / "config.yaml").read_bytes() == before


def test_a_folder_in_use_is_refused(started, run, tmp_path):
    command = ["pretrain", WORLD, f"out={tmp_path / 'r'}", *TINY, "plan.images=64000", "--json"]
    process = started(*command)
    wait_for(lambda: (tmp_path / "r" / "metrics.jsonl").exists() and len(rows(tmp_path / "r")) > 1)
    done = run(*command)
    assert done.code == 2
    assert "is in use by another dinoforge process" in done.facts["error"]
    process.kill()


def test_the_saved_config_runs_and_is_the_same_run(undisturbed, run, tmp_path):
    done = run("pretrain", f"config={undisturbed[0] / 'config.yaml'}", f"out={tmp_path / 'again'}", "--json")
    assert done.code == 0, done.err
    assert done.facts["losses"] == undisturbed[1]["losses"]


def test_the_backbone_serves(undisturbed, run, tmp_path):
    """Embedding, evaluating and Python give what the run itself measured."""
    folder, facts = undisturbed
    done = run("embed", f"backbone={folder}", "data=toy://species?images=20&size=48", f"out={tmp_path / 'f'}",
               "precision=fp32", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert (done.facts["rows"], done.facts["width"]) == (20, 32)
    values = np.load(tmp_path / "f" / "features.npy")
    module = dinoforge.load(folder)
    source = dinoforge.open_source("toy://species?images=20&size=48")
    images = dinoforge.prepared(folder, [source.pixels(row) for row in range(20)])
    with torch.no_grad():
        want = module(images).image.numpy()
    assert np.abs(values - want).max() <= 1e-5
    assert pq.read_table(tmp_path / "f" / "ids.parquet")["id"].to_pylist() == source.columns["id"].tolist()

    patches = run("embed", f"backbone={folder}", "data=toy://species?images=6&size=48", f"out={tmp_path / 'p'}",
                  "tokens=patches", "--json")  # fmt: skip
    assert np.load(tmp_path / "p" / "features.npy").shape == (6, 6, 6, 32)
    assert patches.facts["rows"] == 6

    done = run(
        "evaluate", f"backbone={folder}", "tasks=knn", PROBE.replace("probe", "data"), "knn.neighbours=10",
        "precision=fp32", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    score = done.facts["scores"][0]
    assert (score["task"], score["name"], score["unit"], score["n"]) == ("knn", "accuracy", "fraction", 8)
    assert score["value"] == pytest.approx(facts["knn"]["best"])


def test_it_starts_from_a_backbone(undisturbed, run, tmp_path):
    folder = undisturbed[0]
    command = [
        "pretrain",
        WORLD,
        PROBE,
        f"init={folder}",
        *TINY[4:10],
        "plan.images=32",
        "recipe=vit_micro.toy",
        "--json",
    ]
    done = run(*command, f"out={tmp_path / 'i'}")
    assert done.code == 0, done.err
    assert done.facts["knn"]["first"] == pytest.approx(json.loads((folder / "summary.json").read_text())["knn"]["best"])
    done = run(*command, f"out={tmp_path / 'j'}", "backbone.width=64")
    assert done.code == 2
    assert "backbone.width cannot be set together with init=" in done.facts["error"]


def test_python_says_the_same_words(undisturbed, tmp_path):
    settings = dict(word.split("=", 1) for word in TINY)
    done = dinoforge.pretrain(
        data=WORLD.removeprefix("data="), probe=PROBE.removeprefix("probe="), out=tmp_path / "py",
        **settings, **{"plan.images": 640, "plan.probe_images": 320},
    )  # fmt: skip
    assert done.losses == pytest.approx(undisturbed[1]["losses"], rel=1e-4)
    assert done.knn is not None
