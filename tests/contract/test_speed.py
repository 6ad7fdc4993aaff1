"""What every setting of ``StepSpeed`` promises: whatever it is, losses, gradients and weights are the same.

Fields and values come from the settings themselves, so a new one is tested, or fails until a test knows its values.
"""

import functools
import shutil
import typing

import jaxtyping
import pytest
import torch
from recorded import Case, needs_recordings
from test_train_step import OUTPUTS, TIGHT, VARIANTS, compare, computed

from dinoforge.base.hardware import compute_context
from dinoforge.base.schedule import Cosine
from dinoforge.train.loop import fit
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import StepSpeed, quicken
from dinoforge.train.plan import PlanConfig
from tiny import VIT, batch, pretrain

CPU = torch.device("cpu")
STEPS = 3
COMPILED = (
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which torch compiles with"),
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns of what torch itself does
)


def values(field: str) -> list[object]:
    """All that a setting may be."""
    annotation = StepSpeed.model_fields[field].annotation
    if annotation is bool:
        return [False, True]
    assert typing.get_origin(annotation) is typing.Literal, f"no test knows which values speed.{field} may take"
    return list(typing.get_args(annotation))


def item(**speed):
    """One pytest parameter."""
    name = ", ".join(f"{field}={value}" for field, value in speed.items())
    return pytest.param(StepSpeed(**speed), id=name, marks=COMPILED if speed.get("compile") else ())


SINGLY = [item(**{field: value}) for field in StepSpeed.model_fields for value in values(field)]
TOGETHER = [
    item(attention="written_out", checkpointing="selective", optimizer="foreach"),
    item(attention="fused", checkpointing="full", optimizer="fused"),
    item(attention="written_out", checkpointing="full", compile=True),
    item(checkpointing="selective", compile=True),
]


def test_every_value_is_here():
    assert {(field, getattr(case.values[0], field)) for case in SINGLY for field in StepSpeed.model_fields} == {
        (field, value) for field in StepSpeed.model_fields for value in values(field)
    }


@pytest.fixture(autouse=True)
def _shapes_are_not_compiled(request):
    """What executes the shapes in signatures is nothing that torch could compile; elsewhere they are executed."""
    speed = request.node.callspec.params.get("speed") if hasattr(request.node, "callspec") else None
    jaxtyping.config.update("jaxtyping_disable", speed is not None and speed.compile)
    if speed is not None and speed.compile:
        torch._dynamo.reset()  # after too many cases it would compile no more, and say nothing
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


ROPE = VIT.model_copy(update={"positions": "rope", "rope_rescale": 2.0, "untie_local_norm": True})


@functools.cache
def trained(speed, *, drop, precision, backbone=VIT):
    """Losses of every step and the weights after the last."""
    # A bias of keys has no gradient but rounding noise, which Adam would make steps of.
    step = pretrain(backbone=backbone.model_copy(update={"drop_path": drop, "qkv_bias": False, "init_std": 0.1}))
    quicken(step, speed, CPU)
    plan = PlanConfig(images=8 * STEPS, batch=8, learning_rate=Cosine(peak=1e-3, end=1e-3))
    adamw = optimizer(step.student, plan, fused=fused(speed.optimizer, CPU))
    losses = []
    fit(
        step, adamw, [batch(seed=10 * number) for number in range(STEPS)], plan=plan, steps=STEPS,
        compute=compute_context(precision, CPU), observers=[lambda done: losses.append(done.losses)],
    )  # fmt: skip
    weights = {name: parameter.detach() for name, parameter in step.named_parameters()}
    return torch.tensor([[float(term) for term in terms.values()] for terms in losses]), weights


@pytest.mark.parametrize("backbone", [VIT, ROPE], ids=["table", "rope"])
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("speed", [*SINGLY, *TOGETHER])
def test_training_is_the_same(speed, drop, backbone):
    """Within float32's rounding, after steps enough for Adam to have made the most of it."""
    want, expected = trained(StepSpeed(), drop=drop, precision="fp32", backbone=backbone)
    got, weights = trained(speed, drop=drop, precision="fp32", backbone=backbone)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert (want[0] != want[-1]).all()
    assert weights.keys() == expected.keys()
    for name, mine in weights.items():
        torch.testing.assert_close(mine, expected[name], rtol=1e-4, atol=2e-6, msg=name)


# Unscaled: with factors the second step's KoLeo is 0.03 away, as Adam's first step follows the signs of small gradients.
@pytest.mark.parametrize("backbone", [VIT, ROPE.model_copy(update={"rope_rescale": None})], ids=["table", "rope"])
@pytest.mark.parametrize("speed", [*SINGLY, *TOGETHER])
def test_training_in_bf16_is_much_the_same(speed, backbone):
    """Within bf16's rounding of the losses in float32."""
    want, _ = trained(StepSpeed(), drop=0.0, precision="fp32", backbone=backbone)
    got, _ = trained(speed, drop=0.0, precision="bf16", backbone=backbone)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


@needs_recordings
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("speed", [*SINGLY, *TOGETHER])
def test_recorded_steps_are_the_same(speed, name):
    """The losses and the gradients of the original, as close as by default."""
    for step, found in enumerate(computed(name, restart=True, speed=speed)):
        case = Case(OUTPUTS[name], f"step{step}/")
        assert found.losses.total.item() == pytest.approx(case["loss/total"].item(), rel=TIGHT)
        compare(found.grads, case.under("grad"), TIGHT)
        for module, norm in case.under("grad_norm_before_clip").items():
            assert found.norms[module].item() == pytest.approx(norm.item(), rel=TIGHT)
