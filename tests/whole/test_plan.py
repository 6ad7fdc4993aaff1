"""What plan promises is what the run then takes, as the operating system measures it; doctor looks without harm."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from PIL import Image
from process import start

from dinoforge.base.hardware import cpu_flags, cpu_has_bf16
from dinoforge.cli import execute
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone
from ranks import free_port

WORLD = "data=toy://species?images=300&size=48"
MICRO = ["recipe=vit_micro.toy", "plan.images=512", "workers=1"]
TINY = ["recipe=vit_tiny.small_images", "plan.batch=128", "plan.images=768"]
SMALL = [
    "recipe=vit_small.small_data", "plan.batch=16", "objective.group=16", "objective.head.prototypes=1024", "plan.images=48",
    "probe.rank_rows=32",
]  # fmt: skip
PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not cpu_has_bf16(cpu_flags()), reason="no bf16 instructions here")),
]


def peak_of(process):
    """Bytes that a process has held at most until now, by the system's own count; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def measured(words, ranks=1):
    """Facts of a run, the peak of each rank's main process in bytes, and what the first one said."""
    port = str(free_port())
    several = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes, peaks = [], [0] * ranks
    for rank in range(ranks):
        mine = {**several, "RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
        processes.append(start(*words, "--json", environment={name: str(value) for name, value in mine.items()}))
    while any(process.poll() is None for process in processes):
        peaks = [max(peak, peak_of(process)) for peak, process in zip(peaks, processes, strict=True)]
        time.sleep(0.02)
    (out, err), *_ = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, err
    return json.loads(out.splitlines()[-1]), peaks, err


def as_promised(words, tmp_path, precision):
    began = time.monotonic()
    facts, (peak,), err = measured(["pretrain", WORLD, f"out={tmp_path / 'r'}", *words, f"precision={precision}"])
    took = time.monotonic() - began
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert plan["memory_bytes"] == pytest.approx(peak, rel=0.15)
    assert sum(plan["memory"].values()) == plan["memory_bytes"]
    assert plan["seconds"] is None
    assert facts["peak_memory_bytes"] == pytest.approx(peak, rel=0.05)
    assert 0 < facts["seconds"] < took
    assert facts["images_per_second"] == pytest.approx(facts["images"] / facts["seconds"])
    assert f"Plan: {plan['steps']:,} steps of {plan['batch']} images" in err
    return facts, plan


@pytest.mark.parametrize("parts", [[], ["speed.micro_batch=16"]], ids=["at once", "in parts"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_is_as_promised(tmp_path, precision, parts):
    facts, plan = as_promised([*MICRO, *parts], tmp_path, precision)
    assert (plan["steps"], plan["data_images"], plan["passes"]) == (16, 240, pytest.approx(512 / 240))
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["peak_memory_bytes"] == facts["peak_memory_bytes"]
    assert [warning[:14] for warning in plan["warnings"]] == ["240 images are"]


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "words",
    [TINY, SMALL, [*TINY, "objective.group=16", "speed.micro_batch=16"]],
    ids=["tiny", "small", "tiny in parts"],
)
def test_memory_of_larger_ones_is_as_promised(tmp_path, words, precision):
    as_promised(words, tmp_path, precision)


@pytest.mark.long
def test_memory_of_ranks_is_as_promised(tmp_path):
    """With a probe that is larger than all else, on real pictures."""
    pictures = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10"
    if not pictures.exists():
        pytest.skip("needs the pictures in ../shared")
    words = [
        f"data={pictures}",
        f"probe={pictures}",
        "recipe=vit_tiny.small_images",
        "plan.images=512",
        "precision=fp32",
    ]
    _, peaks, _ = measured(["pretrain", f"out={tmp_path / 'r'}", *words], ranks=4)
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert [plan["memory_bytes"] / peak for peak in peaks] == pytest.approx([1] * 4, abs=0.15)


def test_plan_takes_the_words_of_pretrain_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("plan", WORLD, "out=r", *MICRO, "objective.group=16", "plan.batch=16", "precision=fp32", "--json")
    assert done.code == 0, done.err
    assert done.facts["steps"] == 32
    assert done.facts["images_per_second"] == pytest.approx(512 / done.facts["seconds"])
    assert done.facts["bound"] in {"step", "data", "cores"}
    assert done.facts["memory_bytes"] > done.facts["memory"]["runtime"] > 0
    assert any("plan.batch=16 is one group" in warning for warning in done.facts["warnings"])
    assert not list(tmp_path.iterdir())


def test_plan_of_what_does_not_fit(run):
    done = run("plan", WORLD, "recipe=vit_giant.lvd142m", "precision=fp32", "--json")
    assert done.code == 0, done.err
    assert done.facts["seconds"] is None
    assert done.facts["memory_bytes"] > 2**36  # a group of 16 at once, and still too much
    assert any("lower objective.group=" in warning for warning in done.facts["warnings"])
    assert any("does not fit" in warning for warning in done.facts["warnings"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "at_once", "faster"),
    [("h100", 24, 989 / 312), ("a100-40", 12, 1)],
)
def test_plan_of_the_published_giant_takes_about_the_published_hours(run, name, at_once, faster):
    """22,016 hours of an A100-40GB (Oquab et al. 2023), whatever their number."""
    done = run("plan", WORLD, "recipe=vit_giant.lvd142m", "ranks=64", f"hardware={name}", "--json")
    assert done.code == 0, done.err
    facts, step = done.facts, done.facts["each_step"]
    assert (facts["ranks"], facts["bound"], facts["micro_batch"]) == (64, "compute", at_once)
    assert sum(facts["memory"].values()) == facts["memory_bytes"]
    assert not any("needs about" in warning for warning in facts["warnings"])
    assert step["hours"] == pytest.approx(facts["seconds"] / 3600)
    assert step["device_hours"] == pytest.approx(64 * step["hours"])
    assert 22_016 / 2 < step["device_hours"] * faster < 22_016 * 2
    assert f"64 x {name}: " in done.err


def test_plan_without_data_is_one_line(run):
    done = run("plan", "recipe=vit_micro.toy", "--json")
    assert (done.code, done.facts) == (
        2,
        {"error": "data= is required: a folder of images, a Parquet file or toy://species."},
    )


@pytest.mark.parametrize("where", [[], ["hardware=h100"]], ids=["here", "there"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["probe={}/nowhere"], "{}/nowhere does not exist"),
        (["probe={}/plain"], "{}/plain has no labels; a probe takes folders named by class"),
        (["retention={}/nowhere", "recipe=vit_micro.continue", "init={}/b"], "{}/nowhere does not exist"),
    ],
)
def test_plan_refuses_the_images_that_pretrain_refuses(where, words, said, tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / "plain" / f"{number}.png")
    config = VitConfig(width=16, depth=1, heads=2, patch=8, pixels=16)
    save_backbone(tmp_path / "b", Backbone(build(config, seed=0), config, Preprocessing(short_side=16, side=16)))
    given = [WORLD, *(MICRO if words[-1].startswith("probe") else []), *(word.format(tmp_path) for word in words)]
    told = []
    for verb in (["plan", *where], ["pretrain", f"out={tmp_path / 'r'}"]):
        capsys.readouterr()
        assert execute([*verb, *given]) == 2
        told.append(capsys.readouterr().err.splitlines()[-1])
    assert said.format(tmp_path) in told[0]
    assert told[0] == told[1]


@pytest.mark.long
def test_a_run_that_is_gone_on_with_adds_up_its_seconds_and_tracks_every_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["pretrain", WORLD, f"out={tmp_path / 'r'}", *MICRO, "objective.group=16", "plan.batch=16", "precision=fp32",
             "trackers=tensorboard"]  # fmt: skip
    process = start(*words)
    while not (tmp_path / "r" / "metrics.jsonl").exists() or len(lines(tmp_path / "r")) < 12:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    process.communicate()
    assert process.returncode == 75
    facts, _, _ = measured(words)
    (state,) = (tmp_path / "r" / "checkpoints").glob("step_000000032/state.json")
    assert json.loads(state.read_text())["seconds"] <= facts["seconds"]
    rows = lines(tmp_path / "r")
    work = sum(16 / row["images_per_second"] for row in rows if row["step"])
    assert facts["seconds"] >= work * 0.95
    events = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    want = [(row["step"], pytest.approx(row["losses"]["total"], rel=1e-6)) for row in rows if row["step"]]
    assert [(event.step, event.value) for event in events.Scalars("losses/total")] == want
    assert len(want) == 32


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_doctor(run):
    done = run("doctor", "data=nowhere", "--json")
    assert done.code == 0, done.err
    facts = done.facts
    assert facts["ok"] is False
    assert facts["advice"][-1].startswith("data=nowhere cannot be used: nowhere does not exist")
    assert all(sentence.endswith(".") for sentence in facts["advice"])
    assert 0 < facts["free_memory_bytes"] <= facts["memory_bytes"]
    assert facts["free_disk_bytes"] > 0
    assert {
        "torch",
        "numpy",
        "pillow",
        "pyarrow",
        "faiss",
        "python",
        "processor",
        "capabilities",
        "cores",
    } <= facts.keys()
    assert facts["gflops"].keys() == {"fp32", "bf16"}
    assert min(facts["decoded_per_second"], facts["step_images_per_second"], *facts["gflops"].values()) > 0
