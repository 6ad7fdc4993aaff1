"""The step on a CUDA device: the host never waits, and neither device, precision nor compiling changes what it computes."""

import pytest
import torch

from device import no_waiting
from dinoforge.base.hardware import compute_context
from dinoforge.base.schedule import Cosine
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.model.heads import HeadConfig
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.train.loop import fit
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import StepSpeed, quicken
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import CentringConfig, ObjectiveConfig, Pretrain, networks, teacher_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda")
# No warm-up, so that the first step moves the weights; a rate at which five steps tell.
PLAN = PlanConfig(images=8 * 100, batch=8, learning_rate=Cosine(peak=1e-3, end=1e-3), rate_scaling="none")


def pretrain(device, drop=0.0, speed=None, positions="table", **objective):
    config = ObjectiveConfig(group=4, head=HeadConfig(prototypes=512, hidden=64, bottleneck=32), **objective)
    # Without LayerScale and with large weights, images differ from the start: KoLeo of equal features is a matter of rounding.
    backbone = VitConfig(
        width=64, depth=2, heads=2, patch=4, pixels=32, drop_path=drop, layerscale=None, init_std=0.1, positions=positions,
        rope_rescale=2 if positions == "rope" else None,
    )  # fmt: skip
    student = networks(build(backbone, seed=0), config, seed=0)
    step = Pretrain(student, teacher_of(student), config, seed=0).to(device)
    quicken(step, speed or StepSpeed(), device)
    return step, optimizer(step.student, PLAN, fused=fused("auto", device))


def batches(device, count):
    """Batches of noise whose numbers of masked patches differ; local views need positions resampled."""
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        masks = torch.rand(2, 8, 64, generator=generator) < 0.3
        yield Batch(
            torch.randn(2, 8, 3, 32, 32, generator=generator), torch.randn(3, 8, 3, 16, 16, generator=generator),
            masks, *masked_positions(masks), (2 * seed, 2 * seed + 1),
        ).to(device)  # fmt: skip


def losses(device, precision, steps=5, **settings):
    """Every term of every step."""
    step, adamw = pretrain(device, **settings)
    found = []
    fit(
        step, adamw, batches(device, steps), plan=PLAN, steps=100, compute=compute_context(precision, device),
        observers=[lambda done: found.append(done.losses)],
    )  # fmt: skip
    return torch.stack([torch.stack(list(terms.values())) for terms in found]).cpu()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "kind", [{}, {"targets": CentringConfig()}, {"positions": "rope"}], ids=["sinkhorn", "centring", "rope"]
)
def test_the_host_never_waits(precision, kind):
    """From the teacher's targets to the moving average, with stochastic depth."""
    step, adamw = pretrain(DEVICE, drop=0.4, **kind)
    first, second = batches(DEVICE, 2)
    settings = {"plan": PLAN, "steps": 100, "compute": compute_context(precision, DEVICE)}
    fit(step, adamw, [first], **settings)  # makes AdamW's moments and loads kernels
    done = []
    with no_waiting():
        fit(step, adamw, [second], first=1, observers=[done.append], **settings)
    assert torch.isfinite(done[0].losses.total)


def test_waiting_is_noticed():
    """That the guard above guards."""
    number = torch.ones((), device=DEVICE)
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        number.item()


@pytest.mark.parametrize("positions", ["table", "rope"])
def test_losses_are_those_of_a_processor(positions):
    mine, want = (losses(device, "fp32", positions=positions) for device in (DEVICE, torch.device("cpu")))
    torch.testing.assert_close(mine, want, rtol=1e-2, atol=1e-2)


def test_bf16_stays_near_fp32():
    torch.testing.assert_close(losses(DEVICE, "bf16"), losses(DEVICE, "fp32"), rtol=3e-2, atol=3e-2)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.usefixtures("unchecked")  # what executes the shapes in signatures is nothing that torch could compile
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiling_changes_no_loss_beyond_rounding(precision):
    torch._dynamo.reset()  # after too many cases it would compile no more, and say nothing
    torch._dynamo.utils.counters.clear()
    compiled = losses(DEVICE, precision, speed=StepSpeed(compile=True), drop=0.4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    near = 1e-3 if precision == "fp32" else 3e-2
    torch.testing.assert_close(compiled, losses(DEVICE, precision, drop=0.4), rtol=near, atol=near)
