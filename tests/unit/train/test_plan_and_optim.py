"""Plan arithmetic, clipping per sub-module, the moving average: worked by hand or against torch."""

import pytest
import torch
from torch import nn

from dinoforge.base.errors import ConfigError
from dinoforge.base.schedule import Cosine
from dinoforge.train.follow import follow
from dinoforge.train.optim import clip, load_named_state, named_state, optimizer, set_rates
from dinoforge.train.plan import PlanConfig


def test_length_in_images_or_passes():
    assert PlanConfig(images=1_000, batch=64).steps(10) == 16
    assert PlanConfig(passes=3, batch=50).steps(100) == 6
    with pytest.raises(ConfigError, match=r"exactly one of plan\.images and plan\.passes"):
        PlanConfig.build({"images": 5, "passes": 2})
    with pytest.raises(ConfigError, match="leave room for the cosine"):
        PlanConfig.build({"images": 5, "learning_rate": {"peak": 1, "end": 0, "warmup": 1}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"learning_rate": {"peak": -1e-3, "end": 0}}, "plan.learning_rate.peak"),
        ({"weight_decay": {"peak": 0.04, "end": -0.4}}, "plan.weight_decay.end"),
        ({"teacher_momentum": {"peak": 0.9, "end": -1}}, "plan.teacher_momentum.end"),
        ({"teacher_momentum": {"start": 1.5, "peak": 0.9, "end": 1}}, "plan.teacher_momentum.start"),
    ],
)
def test_signs_of_schedules(values, named):
    """Else weights would grow by their decay, or the loss by its rate, in silence."""
    with pytest.raises(ConfigError, match=f"{named} must lie in"):
        PlanConfig.build({"images": 5, **values})


def test_rate_scales_with_the_root_of_the_batch():
    plan = PlanConfig(images=1, batch=256, learning_rate=Cosine(peak=4e-3, end=0))
    assert plan.peak_rate == pytest.approx(2e-3)
    assert plan.model_copy(update={"rate_scaling": "none"}).peak_rate == 4e-3


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.dino_head = nn.Linear(3, 3), nn.Linear(3, 3)


def test_each_sub_module_is_clipped_on_its_own():
    student = Two()
    for value, module in ((10.0, student.backbone), (0.1, student.dino_head)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
    norms = clip(student, 3.0)
    assert norms["backbone"].item() == pytest.approx(10 * 12**0.5)
    total = torch.cat([p.grad.flatten() for p in student.backbone.parameters()]).norm().item()
    assert total == pytest.approx(3.0, rel=1e-5)
    assert student.dino_head.weight.grad.unique().item() == pytest.approx(0.1)


def test_follow_is_the_moving_average():
    teacher, student = Two(), Two()
    before = teacher.backbone.weight.detach().clone()
    follow(teacher, student, 0.9)
    torch.testing.assert_close(teacher.backbone.weight, 0.9 * before + 0.1 * student.backbone.weight)
    follow(teacher, student, 1.0)
    torch.testing.assert_close(teacher.backbone.weight, 0.9 * before + 0.1 * student.backbone.weight)
    follow(teacher, student, 0.0)
    assert torch.equal(teacher.backbone.weight, student.backbone.weight)


def test_optimizer_state_goes_where_its_parameter_is():
    """As torch's own ``load_state_dict`` places it. The meta device stands for a GPU: another one than the file's."""
    net = Two()
    plan = PlanConfig(images=64, batch=1)
    adamw = optimizer(net, plan)
    net.dino_head(net.backbone(torch.ones(1, 3))).pow(2).sum().backward()
    adamw.step()
    state = {name: value.clone() for name, value in named_state(adamw, net.named_parameters())}
    away = Two().to("meta")
    for settings in ({}, {"capturable": True}):
        ours = optimizer(away, plan)
        theirs = optimizer(away, plan)
        for group in (*ours.param_groups, *theirs.param_groups):
            group.update(settings)
        load_named_state(ours, away.named_parameters(), dict(state))
        saved = adamw.state_dict()
        for group in saved["param_groups"]:
            group.update(settings)
        theirs.load_state_dict(saved)
        for parameter in away.parameters():
            mine, want = ours.state[parameter], theirs.state[parameter]
            assert {kind: value.device for kind, value in mine.items()} == {
                kind: value.device for kind, value in want.items()
            }


@pytest.mark.parametrize(
    "where",
    ["cpu", pytest.param("cuda", marks=[
        pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ])],
)  # fmt: skip
def test_optimizer_state_comes_back_by_name(where):
    torch.manual_seed(0)
    plan = PlanConfig(images=64, batch=1, learning_rate=Cosine(peak=1.0, end=1.0))
    nets = [Two().to(where), Two().to(where)]
    nets[1].load_state_dict(nets[0].state_dict())
    first, second = (optimizer(net, plan) for net in nets)

    def step(net, adamw, index):
        set_rates(adamw, plan.at(index, steps=64))
        net.dino_head(net.backbone(torch.ones(1, 3, device=where))).pow(2).sum().backward()
        adamw.step()
        adamw.zero_grad()

    step(nets[0], first, 5)
    nets[1].load_state_dict(nets[0].state_dict())
    # As a checkpoint holds it: read from a file onto the CPU.
    state = {name: value.clone().cpu() for name, value in named_state(first, nets[0].named_parameters())}
    load_named_state(second, nets[1].named_parameters(), state)
    assert not state
    step(nets[0], first, 6)
    step(nets[1], second, 6)
    for mine, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(mine, theirs)
