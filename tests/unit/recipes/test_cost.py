"""What plan says of a recipe: numbers worked out by hand, and one sentence for everything odd."""

import numpy as np
import pytest
import torch

from dinoforge.base import dist, hardware, memory
from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice
from dinoforge.data.sources.table import open_source
from dinoforge.recipes import cost
from dinoforge.recipes.stages import stages
from dinoforge.recipes.table import recipe
from dinoforge.train.forecast import Forecast, Memory, Pace

CPU, FP32 = torch.device("cpu"), Choice("fp32", "asked for")
PARTS = dict.fromkeys(Memory.__slots__, 0)


@pytest.fixture
def source():
    return open_source("toy://species?images=100&size=16&split=train")


@pytest.fixture
def told(monkeypatch, source):
    """The warnings of a recipe; its memory is given, not counted."""

    def warnings(*, need=1, images=2_000, choice=FP32, **settings):
        memory = Memory(**PARTS | {"activations": need})
        monkeypatch.setattr(cost, "forecast", lambda _job: Forecast(memory=memory, flops=1.0))
        made = with_settings(recipe("vit_tiny.small_images"), settings)
        many = source.select(np.arange(images) % len(source))
        return cost.planned(made, many, CPU, choice).warnings

    return warnings


def test_a_sound_plan_has_no_warning(told):
    assert told() == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"plan.passes": 27_000}, "27,000 passes over 2,000 images: above 500 passes"),
        ({"images": 40}, "40 images are fewer than a batch of 64"),
        ({"images": 999}, "999 images are few: below 1,000"),
        ({"plan.batch": 16, "objective.group": 16}, "plan.batch=16 is one group of objective.group=16: below 64"),
        ({"objective.group": 4}, "objective.group=4 is small for KoLeo: below 8"),
        (
            {"objective.head.prototypes": 65_536},
            "objective.head.prototypes=65,536 are more than the 40,960 images seen",
        ),
        ({"need": 2**60}, "The run needs about 1,073,741,824.0 GiB, this machine has"),
    ],
)
def test_everything_odd_has_a_sentence(told, settings, sentence):
    settings = {"plan.images": 40_960} | settings
    if "plan.passes" in settings:
        del settings["plan.images"]
    found = [warning for warning in told(**settings) if warning.startswith(sentence)]
    assert len(found) == 1
    assert found[0].endswith(".")


def test_thresholds_themselves_are_fine(told):
    assert told(images=1_000, **{"plan.passes": 500}) == []
    assert told(**{"objective.group": 8, "plan.images": 2_048}) == []
    assert told(**{"objective.group": 4, "objective.koleo_weight": 0}) == []


def test_bf16_without_instructions(told, monkeypatch):
    wish = Choice("bf16", "asked for")
    monkeypatch.setattr(cost, "cpu_flags", lambda: frozenset({"avx2"}))
    assert "precision=bf16 on a CPU without bf16 instructions" in told(choice=wish)[0]
    monkeypatch.setattr(cost, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert told(choice=wish) == []


def facts(**changes):
    made = {
        "steps": 100, "images": 6_400, "passes": 2.0, "batch": 64, "micro_batch": 64, "ranks": 1, "data_images": 3_200, "memory_bytes": 2**30,
        "memory": {}, "flops": 1.0,
    }  # fmt: skip
    return cost.Planned(**made | changes)


def speed(monkeypatch, source, *, made, joined=0.0, networks=0.01, update=0.36, workers=1, threads=1, here=4):
    monkeypatch.setattr(cost, "pace", lambda _job, *, images: Pace(networks=networks, update=update))
    monkeypatch.setattr(cost, "_data_seconds", lambda *_: (made, joined))
    monkeypatch.setattr(cost, "cores", lambda: here)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    chosen = with_settings(recipe("vit_micro.toy"), {"speed.workers": workers})
    return cost.probed(facts(), chosen, source, CPU, FP32)


def test_the_slower_of_step_and_reading_bounds(monkeypatch, source):
    """64 images: 0.64 + 0.36 = 1 s a step; a worker takes 64 times ``made``."""
    found = speed(monkeypatch, source, made=0.001)
    assert (found.bound, found.seconds, found.images_per_second) == ("step", pytest.approx(100), pytest.approx(64))
    found = speed(monkeypatch, source, made=0.05)
    assert (found.bound, found.seconds) == ("data", pytest.approx(320))
    assert found.warnings[0].startswith("Reading bounds the run: 1 workers make 20 images/s, the step takes 64")
    found = speed(monkeypatch, source, made=0.05, workers=4, here=8)
    assert (found.bound, found.seconds) == ("step", pytest.approx(100))
    found = speed(monkeypatch, source, made=0.05, workers=0)
    assert (found.bound, found.seconds) == ("step", pytest.approx(420))
    found = speed(monkeypatch, source, made=0.01, threads=2, here=2)  # (2 s + 0.64 s) of work on two cores
    assert (found.bound, found.seconds) == ("cores", pytest.approx(132))


def test_what_does_not_fit_or_takes_too_long_is_not_probed(source):
    found = cost.probed(facts(memory_bytes=2**60), recipe("vit_micro.toy"), source, CPU, FP32)
    assert found.seconds is None
    assert found.warnings == ["No time is predicted: the run does not fit into the memory of this machine."]
    found = cost.probed(facts(flops=1e18), recipe("vit_tiny.small_images"), source, CPU, FP32)
    assert found.seconds is None
    assert "one group of 16 images alone would take about" in found.warnings[0]


def test_no_more_images_are_probed_at_once_than_the_run_computes(monkeypatch, source):
    """Of a batch of 64 sixteen fit into memory: more would not."""
    asked = []
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e18)
    monkeypatch.setattr(cost, "pace", lambda _job, *, images: asked.append(images) or Pace(networks=0.01, update=0.1))
    monkeypatch.setattr(cost, "_data_seconds", lambda *_: (0.01, 0.0))
    for at_once in (64, 16):
        cost.probed(facts(micro_batch=at_once), recipe("vit_tiny.small_images"), source, CPU, FP32)
    assert asked == [64, 16]


def test_the_line():
    assert facts(seconds=75.0).line() == (
        "Plan: 100 steps of 64 images, 2.0 passes over 3,200 images, about 1.0 GiB of memory, about 1 min 15 s."
    )
    assert facts(ranks=2, micro_batch=16).line() == (
        "Plan: 100 steps of 64 images on 2 ranks (16 at once), 2.0 passes over 3,200 images, about 1.0 GiB of memory a rank."
    )


def test_the_machine_is_known():
    assert memory.resident_bytes() > 50 * 2**20
    assert memory.peak_bytes(CPU) >= memory.resident_bytes() * 0.9
    assert 0 < memory.free_memory_bytes(CPU) <= memory.memory_bytes(CPU)
    assert hardware.cores() >= 1


def needing(monkeypatch, bytes_an_image, fixed=0):
    """Steps that need so many bytes, of which as many jobs were forecast as are listed."""
    jobs = []

    def forecast(job):
        jobs.append(job)
        memory = Memory(**PARTS | {"weights": fixed, "activations": bytes_an_image * job.images})
        return Forecast(memory=memory, flops=1.0)

    monkeypatch.setattr(cost, "forecast", forecast)
    return jobs


@pytest.mark.parametrize(
    ("gib", "at_once", "needed"),
    [(100, 64, 74), (74, 64, 74), (73, 32, 42), (41, 16, 26), (1, 16, 26)],
    ids=["plenty", "just", "a little less", "a quarter", "never enough"],
)
def test_as_many_images_at_once_as_fit(monkeypatch, source, gib, at_once, needed):
    """1 GiB an image and 10 besides, groups of 16 in a batch of 64: the smallest part is a group, whether it fits or not."""
    needing(monkeypatch, 2**30, fixed=10 * 2**30)
    made = with_settings(recipe("vit_tiny.small_images"), {"speed.memory_gib": gib, "objective.group": 16})
    found = cost.planned(made, source, CPU, FP32)
    assert (found.micro_batch, found.memory_bytes) == (at_once, needed * 2**30)
    assert ("at once" in found.line()) == (at_once < 64)


def test_what_is_asked_for_is_not_second_guessed(monkeypatch, source):
    jobs = needing(monkeypatch, 2**60)
    settings = {"objective.group": 16, "speed.micro_batch": 32}
    assert cost.planned(with_settings(recipe("vit_tiny.small_images"), settings), source, CPU, FP32).micro_batch == 32
    assert [(job.images, job.parts) for job in jobs] == [(32, 2)]
    with pytest.raises(ConfigError, match=r"speed.micro_batch=24 does not divide a rank's 64 .* 16, 32, 64 would"):
        cost.planned(
            with_settings(recipe("vit_tiny.small_images"), settings | {"speed.micro_batch": 24}), source, CPU, FP32
        )


def test_ranks_share_the_machine_and_the_batch(monkeypatch, source):
    jobs = needing(monkeypatch, 1)
    monkeypatch.setattr(dist, "world", lambda: 4)
    monkeypatch.setattr(dist, "local_world", lambda: 4)
    made = with_settings(recipe("vit_tiny.small_images"), {"objective.group": 16})
    found = cost.planned(made, source, CPU, FP32)
    assert (found.micro_batch, found.ranks) == (16, 4)
    assert [(job.images, job.parts, job.ranks) for job in jobs] == [(16, 1, 4)]
    assert cost.memory_of_a_rank(CPU) == memory.memory_bytes(CPU) / 4
    assert "for each of 4 ranks" in cost.too_large(stages(made, 100)[0], 2**40, CPU)
