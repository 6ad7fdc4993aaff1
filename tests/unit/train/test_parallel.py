"""What makes a step fast: it is applied, what is not to be had is refused, and no result moves."""

import shutil

import pytest
import torch
from torch import nn

from dinoforge.base.errors import ConfigError
from dinoforge.model.layers import Attention
from dinoforge.model.toy import ToyConfig
from dinoforge.train import parallel
from dinoforge.train.follow import follow
from dinoforge.train.forecast import Live
from dinoforge.train.optim import fused, optimizer, set_rates
from dinoforge.train.parallel import StepSpeed, quicken
from dinoforge.train.plan import PlanConfig
from tiny import AT, VIT, batch, made, pretrain

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CHECKPOINTING = ("none", "selective", "full")


def quick(drop=0.0, backbone=None, **speed):
    """A step that is computed so."""
    step = pretrain(drop, backbone)
    quicken(step, StepSpeed(**speed), CPU)
    return step


def found(step, data=None):
    """Loss, and gradient of every parameter."""
    loss = step(data or batch(), AT).total
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in step.student.named_parameters()}}


def test_memory_is_kept_on_a_processor_only(monkeypatch):
    calls = []
    monkeypatch.setattr(parallel, "keep_freed_memory", lambda: calls.append(1))
    quicken(pretrain(), StepSpeed(), GPU)
    assert calls == []
    quicken(pretrain(), StepSpeed(), CPU)
    assert calls == [1]


@pytest.mark.parametrize("way", ["auto", "fused", "written_out"])
def test_the_way_of_attention_reaches_every_layer(way):
    layers = [module for module in quick(attention=way).modules() if isinstance(module, Attention)]
    assert [layer.way for layer in layers] == [way] * 2 * VIT.depth


@pytest.fixture
def compiled(monkeypatch):
    """The modules that were to be compiled; nothing is (tests/contract/test_speed.py does)."""
    found = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, *_: found.append(module))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/g++" if name == "g++" else None)
    return found


def test_every_block_of_both_networks_is_compiled(compiled):
    quick()
    assert compiled == []
    step = quick(compile=True)
    assert compiled == [*step.student.backbone.blocks, *step.teacher.backbone.blocks]


@pytest.mark.parametrize("asked", [{"checkpointing": "full"}, {"checkpointing": "selective"}, {"compile": True}])
def test_a_backbone_without_blocks_is_refused(asked):
    with pytest.raises(
        ConfigError, match=rf"^speed\.{next(iter(asked))} works on blocks, which this backbone"
    ) as error:
        quick(backbone=ToyConfig(patch=4, pixels=16), **asked)
    assert "\n" not in str(error.value)
    quick(backbone=ToyConfig(patch=4, pixels=16))


def test_compiling_for_a_processor_takes_a_compiler(compiled, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ConfigError, match=r"^speed\.compile=true needs a C\+\+ compiler") as error:
        quick(compile=True)
    assert "\n" not in str(error.value)
    assert compiled == []
    quick()
    quicken(pretrain(), StepSpeed(compile=True), GPU)
    assert len(compiled) == 2 * VIT.depth


@pytest.mark.parametrize("way", ["fused", "written_out"])
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING[1:])
def test_activations_computed_again_are_the_same(checkpointing, drop, way):
    """To the last bit: the same operations on the same numbers, and the same samples dropped."""
    want, got = found(quick(drop, attention=way)), found(quick(drop, attention=way, checkpointing=checkpointing))
    assert got.keys() == want.keys()
    for name, mine in got.items():
        assert torch.equal(mine, want[name]), name


def test_what_is_computed_again_is_not_kept():
    """Full checkpointing repeats the products of every block, selective none of them, and each keeps less."""
    peaks, flops = {}, {}
    backbone = VIT.model_copy(update={"depth": 8})
    for checkpointing in CHECKPOINTING:
        step, data = quick(backbone=backbone, attention="fused", checkpointing=checkpointing), batch()
        with Live() as live:
            found(step, data)
        peaks[checkpointing], flops[checkpointing] = live.peak, live.flops
    assert peaks["full"] < 0.6 * peaks["none"]
    assert peaks["full"] < peaks["selective"] < 0.95 * peaks["none"]
    assert flops["selective"] == flops["none"] < flops["full"]


def test_the_teacher_keeps_nothing_to_be_computed_again():
    step = quick(checkpointing="full")
    assert all("forward" in vars(block) for block in step.student.backbone.blocks)
    assert not any("forward" in vars(block) for block in step.teacher.backbone.blocks)


@pytest.mark.parametrize("way", ["fused", "written_out"])
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_every_way_of_attention_gives_the_same(way, drop):
    want, got = found(quick(drop)), found(quick(drop, attention=way))
    for name, mine in got.items():
        near = 1e-6 * max(float(want[name].abs().max()), 1.0)  # an entry near 0 is rounded as the largest are
        torch.testing.assert_close(mine, want[name], rtol=1e-4, atol=near, msg=name)


def test_one_kernel_updates_like_many():
    """Three steps with the same gradients, small and large, at rates and decays of every group."""
    weights = {}
    for wish in ("foreach", "fused"):
        student = pretrain().student
        adamw = optimizer(student, PlanConfig(images=1, layer_decay=0.8), fused=fused(wish, CPU))
        assert all(group["fused"] == (wish == "fused") for group in adamw.param_groups)
        for number in range(3):
            set_rates(adamw, AT)
            for seed, parameter in enumerate(student.parameters()):
                parameter.grad = made(*parameter.shape, seed=100 * number + seed) * 10.0 ** (seed % 7 - 5)
            adamw.step()
        weights[wish] = dict(student.named_parameters())
    before = dict(pretrain().student.named_parameters())
    for name, mine in weights["fused"].items():
        torch.testing.assert_close(mine, weights["foreach"][name], rtol=1e-6, atol=1e-7, msg=name)
        assert not torch.equal(mine, before[name]), name


@pytest.mark.parametrize(
    ("wish", "device", "one_kernel"),
    [("auto", "cpu", True), ("auto", "cuda", True), ("auto", "mps", False), ("foreach", "cuda", False), ("fused", "mps", True)],
)  # fmt: skip
def test_which_update_is_chosen(wish, device, one_kernel):
    assert fused(wish, torch.device(device)) == one_kernel


@pytest.mark.usefixtures("compiled")
def test_names_stay_and_the_teacher_follows():
    """Checkpoints of a run are the same however it is computed."""
    step = quick(checkpointing="selective", compile=True)
    assert list(step.state_dict()) == list(pretrain().state_dict())
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter += 1
    before = {name: parameter.clone() for name, parameter in step.teacher.named_parameters()}
    follow(step.teacher, step.student, 0.75)
    for name, parameter in step.teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.25)
