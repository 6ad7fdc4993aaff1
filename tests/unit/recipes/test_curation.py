"""What a curation would cost: the model beside sums by hand, and settings that are not ignored."""

import json
from dataclasses import replace

import pytest

from dinoforge.cli import execute
from dinoforge.recipes.curation import COMPARED, PAPER, SEARCHED, UNEVEN, CurationPlanConfig, planned_curation
from dinoforge.recipes.curation_rates import RATES
from dinoforge.recipes.hardware import FLOWING, HARDWARE, REACHED

ONE = replace(RATES, multiply=1e-9, encode=2e-9, scan=1e-11, ask=1e-5, compare=1e-9, join=1e-6, read=0.01)


def stages_of(**settings):
    return {one.stage: one for one in planned_curation(CurationPlanConfig(**settings), ONE).stages}


def test_the_self_join_by_hand():
    """A million of 512 channels: 1,024 cells; trained on 128 a cell in 10 rounds, added once, asked once."""
    found = stages_of(pool_size=10**6)["pairs"]
    n, d, c = 10**6, 512, 1024
    cells = (c + d) * d * 1e-9
    seconds = 128 * c * 10 * c * d * 1e-9 + n * (cells + d * 2e-9)
    seconds += n * (cells + 1e-5 + SEARCHED * UNEVEN / c * n * d * 1e-11 + COMPARED * d * 1e-9)
    assert found.core_hours == pytest.approx(seconds / 3600)
    assert found.gpu_hours == 0
    assert found.disk_bytes == n * (128 + 8) + n * 64 * 12  # codes of two channels in half a byte, a number, 64 answers
    assert found.network_bytes == 2 * d * 2 * n + 4 * n * 136 + n * COMPARED * 2 * d  # four tasks of 262,144 queries


def test_a_few_are_all_compared():
    found = stages_of(pool_size=50_000, keep_out_size=0, clusters=0, seeds=0)
    assert found["pairs"].core_hours == pytest.approx(50_000**2 * 512 * 1e-9 / 3600)
    assert found.keys() == {"read", "descriptors", "pairs", "components", "embeddings"}


def test_networks_run_on_gpus_or_on_cores():
    gpu, core = (stages_of(pool_size=1_300_000, hardware=name) for name in ("a100-40", None))
    flops = 2 * 744_000 * 167e9
    assert gpu["embeddings"].gpu_hours == pytest.approx(flops / (312e12 * REACHED) / 3600)
    assert gpu["embeddings"].core_hours == core["embeddings"].gpu_hours == 0
    assert core["embeddings"].core_hours == pytest.approx(flops / 2 * 1e-9 / 3600)
    assert gpu["read"] == core["read"]


def test_hours_are_those_of_what_is_slowest():
    few = stages_of(pool_size=10**7, machines=1, cores=1, network=1e9)["read"]
    assert (few.bound, few.hours) == ("cores", pytest.approx(10**7 * 0.25 * 0.01 / 3600))
    many = stages_of(pool_size=10**7, machines=1, cores=10_000, network=1e9)["read"]
    assert (many.bound, many.hours) == ("network", pytest.approx(10**12 / (1e9 * FLOWING) / 3600))


def test_twice_the_machines_take_half_the_time_and_the_same_work():
    """But where one process does all of it, which others wait for."""
    one, two = (planned_curation(CurationPlanConfig(pool_size=10**9, machines=machines), ONE) for machines in (20, 40))
    for alone, shared in zip(one.stages, two.stages, strict=True):
        waits = alone.stage in {"components", "clusters", "retrieval"}
        assert shared.hours == pytest.approx(alone.hours if waits else alone.hours / 2), alone.stage
    clusters = next(stage for stage in one.stages if stage.stage == "clusters")
    assert (clusters.bound, clusters.hours) == ("GPUs", clusters.gpu_hours)
    assert two.seconds > one.seconds / 2
    assert (two.core_hours, two.gpu_hours, two.disk_bytes) == (one.core_hours, one.gpu_hours, one.disk_bytes)
    assert one.images_per_second * one.seconds == pytest.approx(10**9)


def test_the_paper_stands_beside_it(capsys):
    assert execute(["plan", "stage=curate", "pool_size=1.2e9", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pool_size"] == 1_200_000_000
    assert facts["paper"] == PAPER
    assert (PAPER["gpus"], PAPER["gpu_hours"]) == (20 * 8, 20 * 8 * 48)
    assert RATES.command in facts["measured"]
    assert {"seconds", "images_per_second", "memory_bytes", "warnings"} <= facts.keys()
    for name in ("core_hours", "gpu_hours", "disk_bytes", "network_bytes"):
        assert facts[name] == pytest.approx(sum(stage[name] for stage in facts["stages"]))
    assert execute(["plan", "stage=curate", "pool_size=2M", "hardware=null"]) == 0
    told = capsys.readouterr().out
    assert "20 machines of 8 V100-32GB, less than 48 hours" in told
    assert "Without GPUs, networks and clusters take" in told


def test_every_rate_is_measured():
    """None is left at nothing: what it stands for would cost nothing."""
    assert min(getattr(RATES, name) for name in ("multiply", "encode", "scan", "ask", "compare", "join", "read")) > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["stage=curate"], "pool_size= is required: how many images are to be curated, 1.2e9 or 10M."),
        (["stage=evaluate"], "stage=evaluate cannot be planned; pretrain and curate can."),
        (["stage=curate", "pool_size=0"], "pool_size must be at least 1; got 0."),
        (["stage=curate", "pool_size=many"], "pool_size takes a whole number; got 'many'."),
        (["stage=curate", "pool_size=1.5"], "pool_size takes a whole number; got '1.5'."),
        (["stage=curate", "pool_size=1M", "data=photos"], "Unknown setting 'data'."),
        (["stage=curate", "pool_size=1M", "ranks=8"], "Unknown setting 'ranks'."),
        (["stage=curate", "pool_size=1M", "hardware=h10"], "Unknown hardware 'h10'. Did you mean 'h100'?"),
        (["stage=curate", "pool_size=1M", "width=511"], "width"),
        (["stage=curate", "pool_size=1M", "machines=0"], "machines must be at least 1; got 0."),
        (["pool_size=1M", "data=toy://species"], "Unknown setting 'pool_size'."),
    ],
)
def test_errors_are_one_line(words, line, capsys):
    assert execute(["plan", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dinoforge: {line}")


def test_help_and_settings(capsys):
    assert execute(["plan", "--help"]) == 0
    told = capsys.readouterr().out
    assert "With stage=curate" in told
    assert all(name in told for name in CurationPlanConfig.model_fields)
    assert execute(["plan", "stage=curate", "pool_size=1M", "cores=8", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cores = 8  # command line" in lines
    assert "machines = 20  # default" in lines
    assert all(name in HARDWARE for name in ("a100-40", "h100"))
