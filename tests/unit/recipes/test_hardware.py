"""A step on devices that are not here: bytes and seconds worked out by hand, and how they scale."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice, compute_context
from dinoforge.cli import execute
from dinoforge.data.augment import AugmentConfig
from dinoforge.data.sources.table import open_source
from dinoforge.model.heads import HeadConfig
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.recipes import cost, hardware
from dinoforge.recipes.hardware import HARDWARE, Cluster, Hardware, sent_bytes, step_of
from dinoforge.recipes.recipe import DataConfig, Recipe
from dinoforge.recipes.table import recipe
from dinoforge.train import forecast as forecasting
from dinoforge.train.forecast import Live, Pace, forecast
from dinoforge.train.gram import GramConfig
from dinoforge.train.loop import fit
from dinoforge.train.optim import optimizer
from dinoforge.train.parallel import quicken, shard
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig, Pretrain, teacher_of
from dinoforge.verbs.plan import plan
from ranks import on_ranks

CPU, BF16, FP32 = torch.device("cpu"), Choice("bf16", "asked for"), Choice("fp32", "asked for")
ROUND = Hardware(name="round", memory_gib=1, bf16=1e9, fp32=1e8, bandwidth=1e6, near=1e6, far=1e5, devices=4)
SMALL_HEAD = {"prototypes": 10, "hidden": 5, "bottleneck": 3, "layers": 2}
TINY = Recipe(
    backbone=VitConfig(width=4, depth=1, heads=1, patch=8, pixels=16, ffn_ratio=2.0, layerscale=1.0),
    data=DataConfig(augment=AugmentConfig(global_pixels=16, local_pixels=8)),
    objective=ObjectiveConfig(group=2, head=HeadConfig(**SMALL_HEAD)),
    plan=PlanConfig(images=800, batch=8),
)
# Block: two norms 2 * 8, qkv 4 * 12 + 12, projection 4 * 4 + 4, two scales 2 * 4, MLP 4 * 8 + 8 and 8 * 4 + 4.
BLOCK = 16 + 60 + 20 + 8 + 40 + 36
# Class and mask token 2 * 4, four patches and the class token have positions 5 * 4, patches 192 * 4 + 4, last norm 8.
AROUND = 8 + 20 + 772 + 8
# Layers 4 * 5 + 5 and 5 * 3 + 3, prototypes 10 * 3 and their lengths 10.
HEAD = 25 + 18 + 40


def tiny(precision=BF16, *, ranks=4, micro_batch=None, **settings):
    there = Cluster(ROUND, ranks)
    return cost.job(with_settings(TINY, settings), CPU, precision, micro_batch, there)


def test_bytes_by_hand():
    """Blocks: 2 bytes for the weights of student and teacher, 4 for gradients; the rest: 4 for all three; 3/4 of it sent."""
    assert sent_bytes(tiny()) == ((2 + 2 + 4) * BLOCK + 12 * (AROUND + HEAD)) * 3 // 4
    assert sent_bytes(tiny(FP32)) == 12 * (BLOCK + AROUND + HEAD) * 3 // 4
    assert sent_bytes(tiny(**{"speed.reduce": "bf16"})) == ((2 + 2 + 2) * BLOCK + 12 * (AROUND + HEAD)) * 3 // 4
    # In fp32 the setting means nothing, as in train.parallel.
    assert sent_bytes(tiny(FP32, **{"speed.reduce": "bf16"})) == sent_bytes(tiny(FP32))


def counted(job):
    """Bytes that this rank's collectives send while one step is made as the job says."""
    sent = []

    def count(*names):
        """Torch has renamed them."""
        name = next(name for name in names if hasattr(torch.distributed, name))
        original = getattr(torch.distributed, name)

        def counting(*tensors, **how):
            # A rank's own part is the smaller of the two: it goes out, or comes in from as many.
            both = [value for value in (*tensors, *how.values()) if isinstance(value, torch.Tensor)]
            assert len(both) == 2
            sent.append(min(tensor.nbytes for tensor in both) * (job.ranks - 1))
            return original(*tensors, **how)

        setattr(torch.distributed, name, counting)

    student = forecasting._student(job, build(job.backbone, seed=0))
    step = Pretrain(student, teacher_of(student), forecasting._anchored(job.objective), seed=0)
    quicken(step, job.speed, CPU)
    shard(step, job.speed, CPU, job.precision)
    count("all_gather_single", "all_gather_into_tensor")
    count("reduce_scatter_single", "reduce_scatter_tensor")
    parts = [forecasting._batch(job, job.images) for _ in range(job.parts)]
    adamw = optimizer(step.student, job.plan)
    compute = compute_context(job.precision, CPU)
    fit(step, adamw, parts, plan=job.plan, steps=1, parts=job.parts, compute=compute)
    return sum(sent)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("precision", "micro_batch", "settings"),
    [
        (FP32, 2, {"speed.sharding": "all"}),
        (BF16, 2, {"objective.gram": {"from_share": 0.0, "start": 0.0}}),
        (BF16, None, {"speed.reduce": "bf16", "speed.checkpointing": "full"}),
    ],
)
def test_bytes_are_those_of_a_step_on_two_ranks(precision, micro_batch, settings):
    """Wider, for of what has one row a rank without any sends as much as the other."""
    wide = {"backbone.width": 16, "backbone.depth": 2, "objective.head.hidden": 16, "objective.head.bottleneck": 8}
    job = tiny(precision, ranks=2, micro_batch=micro_batch, **wide, **settings)
    assert on_ranks(2, counted, job) == [pytest.approx(sent_bytes(job), rel=0.05)] * 2


def test_a_head_for_patches_and_a_gram_teacher_travel_too():
    more = {"objective.patch_head": SMALL_HEAD}
    assert sent_bytes(tiny(**more)) - sent_bytes(tiny()) == 12 * HEAD * 3 // 4
    anchored = tiny(**{"objective.gram": {"from_share": 0.5}})
    assert sent_bytes(anchored) - sent_bytes(tiny()) == (2 * BLOCK + 4 * AROUND) * 3 // 4
    wide = VitConfig(width=4, depth=3, heads=1, patch=8, pixels=16, ffn_ratio=2.0, layerscale=1.0)
    other = replace(
        anchored, objective=anchored.objective.model_copy(update={"gram": GramConfig(backbone="x")}), gram=wide
    )
    assert sent_bytes(other) - sent_bytes(anchored) == 2 * 2 * BLOCK * 3 // 4


def test_seconds_by_hand():
    """2.56e9 operations on 4 ranks of 1e9 at 0.4; 52 bytes for each parameter of a rank at 0.8e6 a second."""
    job, parameters = tiny(), BLOCK + AROUND + HEAD
    found = step_of(job, 2.56e9, Cluster(ROUND, 4), steps=100)
    assert found.compute_seconds == pytest.approx(1.6)
    assert found.update_seconds == pytest.approx(52 * parameters / 4 / 0.8e6)
    assert found.exchange_seconds == pytest.approx(sent_bytes(job) / 0.8e6)
    # Four fifths run beside the computing.
    assert found.waiting_seconds == pytest.approx(found.exchange_seconds / 5)
    assert found.seconds == pytest.approx(1.6 + found.update_seconds + found.exchange_seconds / 5)
    assert (found.hours, found.device_hours) == (pytest.approx(found.seconds / 36), pytest.approx(found.seconds / 9))
    assert found.bound == "compute"
    # Nothing hides behind computing that is over at once.
    quick = step_of(job, 1.6e3, Cluster(ROUND, 4), steps=100)
    assert quick.waiting_seconds == pytest.approx(found.exchange_seconds - 1e-6)
    assert step_of(tiny(FP32), 2.56e9, Cluster(ROUND, 4), steps=1).compute_seconds == pytest.approx(16)


def test_a_ring_between_machines_has_the_ports_of_all_devices():
    assert ROUND.link(4) == 1e6
    assert ROUND.link(5) == 4e5
    assert replace(ROUND, far=1e6).link(64) == 1e6


def test_one_rank_sends_nothing():
    found = step_of(tiny(ranks=1), 1e9, Cluster(ROUND, 1), steps=1)
    assert (found.sent_bytes, found.exchange_seconds, found.waiting_seconds) == (0, 0, 0)


def test_volume_grows_as_all_but_ones_own_and_with_the_parts():
    """Of 8 images, 2 ranks take two groups of 2 each, or 4 ranks one."""
    whole = sent_bytes(tiny(ranks=2)) * 2
    assert sent_bytes(tiny(ranks=4)) == whole * 3 // 4
    assert sent_bytes(tiny(ranks=2, micro_batch=2)) == whole


def test_sharding_all_sends_the_student_once_more():
    more = sent_bytes(tiny(**{"speed.sharding": "all"})) - sent_bytes(tiny())
    assert more == (2 * BLOCK + 4 * (AROUND + HEAD)) * 3 // 4


def test_twice_the_ranks_hold_half_the_state_each():
    one, two = (forecast(tiny(ranks=ranks)).memory for ranks in (2, 4))
    for part in ("weights", "teacher", "optimizer"):
        assert getattr(one, part) == 2 * getattr(two, part)


def test_memory_of_a_gpu_elsewhere_has_nothing_of_this_process():
    made = recipe("vit_micro.toy")
    away = forecast(cost.job(made, CPU, BF16, None, Cluster(HARDWARE["h100"], 1))).memory
    here = forecast(cost.job(made, CPU, BF16)).memory
    assert away.runtime == forecasting.CONTEXT
    assert away.allocator == int(0.05 * (away.total - away.runtime - away.allocator))
    for part in ("weights", "teacher", "optimizer", "data"):
        assert getattr(away, part) == getattr(here, part)


def test_attention_of_a_gpu_elsewhere_is_the_kernel_with_its_operations_counted():
    """A step of long sequences: written out, their weights are there; the kernel computes scores again on the way back."""
    settings = {"data.augment.global_pixels": 112, "data.resize": 112, "backbone.pixels": 112, "plan.batch": 16,
                "objective.group": 16}  # fmt: skip
    made = with_settings(recipe("vit_micro.toy"), settings)
    fused, written = (
        forecast(cost.job(with_settings(made, {"speed.attention": way}), CPU, BF16, None, Cluster(ROUND, 1)))
        for way in ("auto", "written_out")
    )
    assert fused.memory.activations < written.memory.activations
    assert 1 < fused.flops / written.flops < 1.2


@pytest.mark.parametrize("fused", [True, False])
def test_operations_of_attention_on_a_processor(fused):
    """Two samples, 3 heads, 8 tokens, 4 channels: scores and mixing, each 2 * 2 * 3 * 8 * 8 * 4, and five such on the way back."""
    query = torch.randn(2, 3, 8, 4, requires_grad=True)
    with Live() as live:
        if fused:
            torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
        else:
            ((query @ query.transpose(-1, -2)).softmax(-1) @ query).sum().backward()
    assert live.flops == (2 + (5 if fused else 4)) * 2 * 2 * 3 * 8 * 8 * 4


@pytest.fixture
def source():
    return open_source("toy://species?images=2000&size=16&split=train")


def planned(source, settings, cluster, precision=BF16):
    return cost.planned(with_settings(TINY, settings), source, CPU, precision, cluster)


def test_micro_batch_fits_into_the_hardware(source):
    made = recipe("vit_tiny.small_images")
    whole = cost.planned(made, source, CPU, BF16, Cluster(HARDWARE["h100"], 1))
    assert whole.micro_batch == made.plan.batch
    budget = forecasting.CONTEXT + 0.7 * (whole.memory_bytes - forecasting.CONTEXT)
    less = replace(HARDWARE["h100"], memory_gib=budget / 0.85 / 2**30)
    parts = cost.planned(made, source, CPU, BF16, Cluster(less, 1))
    assert parts.micro_batch < whole.micro_batch
    assert parts.memory_bytes <= 0.85 * less.memory_gib * 2**30
    assert not any("needs about" in warning for warning in parts.warnings)


def test_what_does_not_fit_says_what_to_change(source):
    small = replace(ROUND, memory_gib=0.1)
    (said,) = (w for w in planned(source, {}, Cluster(small, 2)).warnings if "needs about" in w)
    assert "round has 0.1: set speed.checkpointing=full, set speed.sharding=all, lower objective.group=2" in said
    (said,) = (w for w in planned(source, {}, Cluster(small, 1)).warnings if "needs about" in w)
    assert "speed.sharding" not in said


def test_communication_that_bounds_a_run_is_told_with_what_helps(source):
    slow = Cluster(replace(ROUND, near=1.0), 2)
    found = planned(source, {"speed.sharding": "all", "speed.micro_batch": 2}, slow)
    assert found.bound == "exchange"
    assert "set speed.sharding=state, set speed.reduce=bf16, raise speed.micro_batch, start fewer" in found.warnings[-1]
    found = planned(source, {}, slow, FP32)
    assert "GB; start fewer ranks, or raise plan.batch" in found.warnings[-1]
    assert not any("Communication" in w for w in planned(source, {}, Cluster(replace(ROUND, near=1e12), 2)).warnings)


def test_a_batch_that_does_not_divide_names_ranks_that_would_do(source):
    with pytest.raises(ConfigError, match=r"4 groups .* do not divide among 3 ranks; 2 or 4 would do"):
        planned(source, {}, Cluster(ROUND, 3))


def test_seconds_of_the_plan_are_those_of_its_steps(source):
    found = planned(source, {}, Cluster(ROUND, 4))
    assert found.steps == 100
    assert found.ranks == 4
    assert found.seconds == pytest.approx(100 * found.each_step.seconds)
    assert found.images_per_second == pytest.approx(8 / found.each_step.seconds)
    assert found.each_step.flops == pytest.approx(found.flops / 100)


HERE = {"data": "toy://species?images=300&size=48", "recipe": "vit_micro.toy", "precision": "fp32", "objective.group": 8,
        "device": "cpu"}  # fmt: skip


def test_ranks_alone_share_the_measured_step_of_this_machine(monkeypatch, capsys):
    """A matrix product is many times faster than the small ones of a step: it says nothing of them."""
    monkeypatch.setattr(hardware, "matmul_rate", lambda *_args, **_how: 1e15)
    monkeypatch.setattr(cost, "pace", lambda _job, *, images: Pace(networks=0.01, update=0.4))
    one, four = (plan(ranks=ranks, **HERE) for ranks in (1, "4"))
    assert (one.ranks, four.ranks) == (1, 4)
    assert four.memory["weights"] == one.memory["weights"] // 4
    assert four.memory["runtime"] > 50 * 2**20
    assert one.each_step.hardware == "1 x this cpu"
    assert one.each_step.seconds == pytest.approx(0.01 * one.batch + 0.4)
    assert four.each_step.compute_seconds == pytest.approx(0.01 * one.batch / 4)
    assert four.each_step.update_seconds == pytest.approx(0.1)
    assert four.each_step.waiting_seconds > 0 == one.each_step.waiting_seconds
    assert "device-hours. Computing and updating are measured, the rest is worked out." in capsys.readouterr().err
    assert any("10 Gbit/s are assumed" in warning for warning in four.warnings)
    assert not any("10 Gbit/s" in warning for warning in one.warnings)


def test_steps_that_cannot_be_tried_here_are_worked_out(monkeypatch, capsys):
    monkeypatch.setattr(hardware, "matmul_rate", lambda *_args, **_how: 1e9)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_args, **_how: 1e3)
    found = plan(ranks=1, **HERE)
    # What is measured is reached.
    assert found.each_step.compute_seconds == pytest.approx(found.each_step.flops / 1e9)
    assert any(w.startswith("No step is tried: one group of 8 images alone would take") for w in found.warnings)
    assert "Worked out, not measured." in capsys.readouterr().err


def test_whether_a_step_fits_here_is_asked_of_the_whole_state(monkeypatch):
    """A quarter each of what does not fit into one process."""
    asked = []
    monkeypatch.setattr(cost, "step_pace", lambda *_, memory, **__: asked.append(memory) or Pace(0.01, 0.4))
    one, four = (plan(ranks=ranks, **HERE) for ranks in (1, 4))
    state = ("weights", "teacher", "gradients", "optimizer")
    assert asked[0] == one.memory_bytes
    assert asked[1] == four.memory_bytes + 3 * sum(four.memory[part] for part in state)


class Launched(TorchDispatchMode):
    """Counts what would be a kernel on a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        looks = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.arguments)
        if not looks and not any(name in str(func) for name in ("empty", "detach", "_unsafe_view", "_local_scalar")):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "depth", "parts"), [(BF16, 2, 1), (BF16, 12, 1), (FP32, 12, 1), (BF16, 4, 2)])
def test_kernels_are_those_of_a_step(precision, depth, parts):
    job = tiny(precision, ranks=1, micro_batch=8 // parts, **{"backbone.depth": depth})
    student = forecasting._student(job, build(job.backbone, seed=0))
    step = Pretrain(student, teacher_of(student), job.objective, seed=0)
    quicken(step, job.speed.model_copy(update={"attention": "fused"}), CPU)
    batches = [forecasting._batch(job, job.images) for _ in range(parts)]
    adamw = optimizer(step.student, job.plan, fused=True)
    before, launched = [], Launched()
    adamw.register_step_pre_hook(lambda *_: before.append(launched.count))
    with launched:
        fit(step, adamw, batches, plan=job.plan, steps=1, parts=parts, compute=compute_context(job.precision, CPU))
    # Groups, and what is dropped, make some more of them.
    assert 0.75 * before[0] < hardware.launches(job) < 1.05 * before[0]
    compiled = replace(job, speed=job.speed.model_copy(update={"compile": True}))
    assert hardware.launches(compiled) < hardware.launches(job)


def test_a_step_takes_no_less_than_launching_its_kernels(capsys):
    """4,688 steps of a network of which a GPU has nothing to compute take seconds, not none."""
    found = plan(**{"data": HERE["data"], "recipe": "vit_micro.toy", "plan.images": 150_016}, hardware="h100")
    step = found.each_step
    assert step.launch_seconds == hardware.launches(cost.job(recipe("vit_micro.toy"), CPU, BF16)) * 5e-6
    assert step.compute_seconds + step.update_seconds < step.launch_seconds == step.seconds
    assert found.bound == "launch"
    assert found.seconds == pytest.approx(4_688 * step.launch_seconds)
    told = capsys.readouterr().err
    assert f"{step.launch_seconds:,.3g} at least, for launching kernels" in told
    assert " about 0 s" not in told
    assert " 0.0 device-hours" not in told


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hardware=h10"], "Unknown hardware 'h10'. Did you mean 'h100'? Known: a100-40, a100-80, h100, h200, l40s."),
        (["ranks=0"], "ranks=0 is no number of devices; 1 and above are."),
        (["ranks=many"], "ranks=many is no number of devices; 1 and above are."),
        (["hardware=h100", "device=cpu"], "hardware=h100 and device=cpu exclude each other; leave one out."),
        (["hardware=h100", "ranks=3"], "plan.batch=64 is 4 groups of objective.group=16 images, which do not divide"),
        (["hardware=h100", "speed.micro_batch=24"], "speed.micro_batch=24 does not divide a rank's 64 images"),
    ],
)
def test_errors_are_one_line(words, line, capsys):
    settings = ["data=toy://species?images=300&size=48", "recipe=vit_micro.toy", "plan.batch=64", "objective.group=16"]
    assert execute(["plan", *settings, *words]) == 2
    assert f"dinoforge: {line}" in capsys.readouterr().err.splitlines()[-1]


def test_help_and_settings_of_the_verb(capsys):
    assert execute(["plan", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in HARDWARE)
    assert execute(["plan", "recipe=vit_micro.toy", "ranks=64", "hardware=h100", "--print-config"]) == 0
    assert "recipe = vit_micro.toy" in capsys.readouterr().out
