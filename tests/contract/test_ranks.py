"""What the number of ranks and of parts promises: whatever they are, losses, gradients and weights are the same.

Ranks are real: processes that speak by gloo. What they make is compared with one process that sees the whole batch at once.
"""

import functools
import shutil
import warnings
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from recorded import Case, needs_recordings
from test_train_step import LATER_GRADIENT, LATER_WEIGHT, OUTPUTS, TIGHT, VARIANTS, compare, computed

from dinoforge.base import dist
from dinoforge.base.hardware import compute_context
from dinoforge.base.schedule import Cosine
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.loss.koleo import koleo_loss
from dinoforge.loss.matching import MatchingConfig
from dinoforge.model.heads import HeadConfig
from dinoforge.model.toy import ToyConfig
from dinoforge.train.distil import DistilConfig
from dinoforge.train.gram import GramConfig
from dinoforge.train.loop import fit
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import StepSpeed, gathered, quicken, shard
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import CentringConfig
from dinoforge.train.vitals import Pulse
from ranks import on_ranks
from tiny import VIT, batch, pretrain

pytestmark = pytest.mark.dist

CPU = torch.device("cpu")
PLAIN = StepSpeed()
TERMS = 5
"""Columns that are losses, one more with Gram anchoring, three where features are matched; gradient norms follow."""
STEPS, IMAGES, GROUP = 10, 16, 4
COMPILED = (
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which torch compiles with"),
)
KINDS = {
    "sinkhorn": {},
    "centring": {"targets": CentringConfig()},
    "two heads": {"patch_head": HeadConfig(prototypes=40, hidden=12, bottleneck=6)},
    # Copied at the first step, applied from the third on, copied anew at the sixth.
    "gram": {"gram": GramConfig(from_share=0, start=0.2, every_share=0.3, refreshes=1, pixels_factor=2)},
    "distilled": {"distilled": DistilConfig()},
    "matched": {"distilled": DistilConfig(matching=MatchingConfig())},
    "gram elsewhere": {"gram": GramConfig(backbone="elsewhere"), "anchor": VIT.model_copy(update={"width": 24})},
}


def cut(whole, count):
    """A batch in so many parts of whole groups."""
    size = whole.globals.shape[1] // count
    parts = []
    for first in range(0, whole.globals.shape[1], size):
        images = slice(first, first + size)
        masks = whole.masks[:, images]
        index, weight = masked_positions(masks)
        parts.append(
            Batch(
                whole.globals[:, images], whole.locals[:, images], masks, index, weight,
                whole.groups[first // GROUP : (first + size) // GROUP],
            )
        )  # fmt: skip
    return parts


def unevenly_masked(seed):
    """The last group has no mask at all, so a rank may have nothing to predict."""
    whole = batch(images=IMAGES, seed=seed)
    whole.masks[:, -GROUP:] = False
    index, weight = masked_positions(whole.masks)
    return Batch(whole.globals, whole.locals, whole.masks, index, weight, whole.groups)


def trained(parts, *, speed=PLAIN, drop=0.4, precision="fp32", backbone=None, **objective):
    """On every rank: losses of all steps, gradient norms; weights and moments after the last, put together, signs of life."""
    # A bias of keys has no gradient but rounding noise, which Adam would make steps of.
    vit = VIT.model_copy(update={"drop_path": drop, "qkv_bias": False, "init_std": 0.1})
    step = pretrain(backbone=backbone or vit, **objective)
    quicken(step, speed, CPU)
    shard(step, speed, CPU, precision)
    plan = PlanConfig(images=IMAGES * STEPS, batch=IMAGES, learning_rate=Cosine(peak=1e-3, end=1e-3))
    adamw = optimizer(step.student, plan, fused=fused(speed.optimizer, CPU))
    world, rank, found = dist.world(), dist.rank(), []
    pulse, vitals = Pulse(step.student, step.average), {}
    shares = [cut(unevenly_masked(10 * number), world * parts) for number in range(STEPS)]
    fit(
        step, adamw, [part for share in shares for part in share[rank * parts : (rank + 1) * parts]], plan=plan,
        steps=STEPS, parts=parts, compute=compute_context(precision, CPU),
        observers=[
            lambda done: found.append([*done.losses.values(), *done.norms.values()]),
            lambda done: vitals.update(done.vitals | (pulse() if done.vitals else {})),
        ],
    )  # fmt: skip
    weights = {name: dist.whole(parameter).detach() for name, parameter in step.named_parameters()}
    del vitals["teacher_moved"]  # a sample of each rank's own part
    weights |= {f"sign of life {name}": value for name, value in vitals.items()}
    moments = {
        name: dist.whole(adamw.state[parameter]["exp_avg"])
        for name, parameter in step.student.named_parameters()
        if parameter in adamw.state  # a mask token that no view shows has none
    }
    return torch.tensor([[float(value) for value in row] for row in found]), weights, moments


@functools.cache
def alone(kind, drop):
    """One process, the whole batch at once."""
    return trained(1, drop=drop, **KINDS[kind])


@pytest.mark.parametrize(
    ("world", "parts", "kind"),
    [
        (1, 4, "sinkhorn"),
        (2, 2, "sinkhorn"),
        (4, 1, "sinkhorn"),
        (2, 2, "centring"),
        (2, 1, "two heads"),
        (1, 4, "gram"),
        (2, 2, "gram"),
        (2, 1, "gram elsewhere"),
        (2, 2, "distilled"),
        (2, 2, "matched"),
    ],
)
def test_training_is_the_same_for_any_split(world, parts, kind):
    """Losses to 1e-5, as promised; norms, weights and moments as close as ten steps of Adam leave them."""
    want, weights, moments = alone(kind, 0.4)
    assert want[0, 2] > 0  # some patches are masked
    terms = 3 if kind == "matched" else TERMS + ("gram" in kind)
    assert "gram" not in kind or want[-1, TERMS - 1] > 1e-5
    found = on_ranks(world, lambda: trained(parts, **KINDS[kind]))
    for got, mine, own_moments in found:
        torch.testing.assert_close(got[:, :terms], want[:, :terms], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[:, terms:], want[:, terms:], rtol=1e-4, atol=0)
        for name, tensor in weights.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=2e-6, msg=name)
        for name, tensor in moments.items():
            torch.testing.assert_close(own_moments[name], tensor, rtol=1e-3, atol=1e-6, msg=name)
    assert all(torch.equal(got, found[0][0]) for got, _, _ in found)


ROPE = VIT.model_copy(
    update={"positions": "rope", "rope_rescale": 2.0, "untie_local_norm": True, "drop_path": 0.4, "qkv_bias": False,
            "init_std": 0.2}
)  # fmt: skip


def test_rescaled_coordinates_are_the_same_for_any_split():
    """As above; other factors than those of a group would give other losses by far more than is allowed for."""
    want, weights, _ = trained(1, backbone=ROPE)
    without, _, _ = trained(1, backbone=ROPE.model_copy(update={"rope_rescale": None}))
    assert (want[:, :TERMS] - without[:, :TERMS]).abs().max() > 1e-3
    for world, parts in ((1, 4), (2, 2), (4, 1)):
        for got, mine, _ in on_ranks(world, lambda parts=parts: trained(parts, backbone=ROPE)):
            torch.testing.assert_close(got[:, :TERMS], want[:, :TERMS], rtol=1e-5, atol=1e-6)
            for name, tensor in weights.items():
                torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=2e-6, msg=name)


def test_the_split_would_show():
    """Draws of another group, or neighbours sought in another, give other losses by far more than is allowed for."""
    want = alone("sinkhorn", 0.4)[0]
    x = torch.randn(IMAGES, 8, generator=torch.Generator().manual_seed(0))
    assert abs(koleo_loss(x, group=GROUP) - koleo_loss(x, group=2 * GROUP)) > 1e-2
    assert (alone("sinkhorn", 0.0)[0] - want).abs().max() > 1e-3


@pytest.mark.parametrize(
    "speed",
    [
        StepSpeed(sharding="all"), StepSpeed(reduce="bf16"), StepSpeed(checkpointing="full", sharding="all"),
        StepSpeed(checkpointing="selective", optimizer="foreach"),
        pytest.param(StepSpeed(compile=True, checkpointing="selective", sharding="all"), marks=COMPILED),
    ],
    ids=str,
)  # fmt: skip
def test_speed_changes_nothing_on_ranks(speed):
    want, weights, _ = alone("sinkhorn", 0.4)

    def work():
        # What executes the shapes in signatures is nothing that torch could compile.
        jaxtyping.config.update("jaxtyping_disable", speed.compile)
        with warnings.catch_warnings():
            if speed.compile:
                warnings.simplefilter("ignore")  # torch's compiler warns of what torch itself does
            return trained(2, speed=speed)

    for got, mine, _ in on_ranks(2, work):
        torch.testing.assert_close(got[:, :TERMS], want[:, :TERMS], rtol=1e-5, atol=1e-6)
        for name, tensor in weights.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("speed", [StepSpeed(), StepSpeed(reduce="bf16", sharding="all")], ids=str)
def test_bf16_is_much_the_same_on_ranks(speed):
    want, _, _ = trained(1, precision="bf16")
    for got, _, _ in on_ranks(2, lambda: trained(1, precision="bf16", speed=speed)):
        torch.testing.assert_close(got[:, :TERMS], want[:, :TERMS], rtol=0.03, atol=0.03)


def test_a_backbone_without_blocks_is_sharded_too():
    want = trained(1, drop=0.0, backbone=ToyConfig(width=16, patch=4))[0]
    for got, _, _ in on_ranks(2, lambda: trained(2, drop=0.0, backbone=ToyConfig(width=16, patch=4))):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def state_bytes(**objective):
    """Of weights, gradients and moments that this rank holds between two steps."""
    step = pretrain(backbone=VIT.model_copy(update={"width": 64, "depth": 4}), **objective)
    shard(step, StepSpeed(), CPU, "fp32")
    plan = PlanConfig(images=IMAGES, batch=IMAGES)
    adamw = optimizer(step.student, plan)
    share = cut(batch(images=IMAGES), dist.world())[dist.rank()]
    fit(step, adamw, [share], plan=plan, steps=1)
    tensors = [*step.parameters()] + [value for state in adamw.state.values() for value in state.values()]
    return sum(dist.local(tensor).untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("objective", [{}, {"gram": GramConfig(from_share=0)}])
def test_what_a_rank_holds_falls_with_their_number(objective):
    """By the number of ranks, but for tokens that do not divide; the largest share is at most a tenth above the mean."""
    whole = state_bytes(**objective)
    for world in (2, 4):
        shares = on_ranks(world, lambda: state_bytes(**objective))
        assert sum(shares) >= whole
        assert max(shares) <= 1.1 * whole / world


def test_gathered_weights_serve_one_rank_without_the_others():
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def look():
        step = pretrain()
        shard(step, StepSpeed(), CPU, "fp32")
        backbone = step.teacher.backbone
        with gathered(backbone), torch.no_grad():
            tokens = [backbone(images).image for _ in range(dist.rank() + 1)][-1]  # as often as it likes
            attention = backbone.class_attention(images)
        after = [dist.local(parameter).numel() for parameter in backbone.parameters()]
        return tokens, attention, sum(after)

    with torch.no_grad():
        alone = pretrain().teacher.backbone
        want, maps = alone(images).image, alone.class_attention(images)
    total = sum(parameter.numel() for parameter in alone.parameters())
    for tokens, attention, held in on_ranks(2, look):
        torch.testing.assert_close(tokens, want)
        torch.testing.assert_close(attention, maps)
        assert held < 0.6 * total


@needs_recordings
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_recorded_steps_on_ranks(name, world):
    """Every rank sees the recorded batch as a group of its own: all that is a mean, or balanced, stays what it was."""

    def work():
        kept = ("grads", "norms", "student", "teacher")
        return [
            SimpleNamespace(loss=found.losses.total.detach(), **{key: getattr(found, key) for key in kept})
            for found in computed(name, restart=False, speed=StepSpeed())
        ]

    for steps in on_ranks(world, work):
        for step, found in enumerate(steps):
            case = Case(OUTPUTS[name], f"step{step}/")
            assert found.loss.item() == pytest.approx(case["loss/total"].item(), rel=TIGHT if step == 0 else 1e-4)
            compare(found.grads, case.under("grad"), TIGHT if step == 0 else LATER_GRADIENT)
            for module, norm in case.under("grad_norm_before_clip").items():
                assert found.norms[module].item() == pytest.approx(
                    norm.item(), rel=TIGHT if step == 0 else LATER_GRADIENT
                )
            compare(found.student, case.under("student_after"), LATER_WEIGHT)
            compare(found.teacher, case.under("teacher_after"), LATER_WEIGHT)


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["sinkhorn", "centring"])
def test_a_step_that_one_rank_ruins_is_left_out_by_all(kind):
    """Images of nothing but NaN on the second rank, at the third of four steps: no rank takes anything of it."""

    def work():
        step = pretrain(**KINDS[kind])
        shard(step, PLAIN, CPU, "fp32")
        plan = PlanConfig(images=64, batch=IMAGES, learning_rate=Cosine(peak=1e-2, end=1e-2), last_layer_frozen=0)
        adamw = optimizer(step.student, plan, fused=True)
        shares = [cut(batch(images=IMAGES, seed=number), 2)[dist.rank()] for number in range(4)]
        if dist.rank() == 1:
            shares[2].globals.fill_(float("nan"))
        seen = []

        def look(done):
            weights = torch.cat([dist.whole(p).detach().flatten() for p in step.student.parameters()])
            seen.append((done.skipped.item(), weights))

        fit(step, adamw, shares, plan=plan, steps=4, observers=[look])
        return seen, all(value.isfinite().all() for value in map(dist.whole, step.state_dict().values()))

    for seen, finite in on_ranks(2, work):
        assert [skipped for skipped, _ in seen] == [0, 0, 1, 0]
        assert finite
        _, second, third, fourth = (weights for _, weights in seen)
        assert torch.equal(second, third)
        assert not torch.equal(third, fourth)
