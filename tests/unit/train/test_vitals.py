"""Signs of life against their definitions, and a guard that keeps ruined gradients from the weights."""

import math
from dataclasses import replace

import pytest
import torch

from dinoforge.base.schedule import Cosine
from dinoforge.model.heads import HeadConfig
from dinoforge.train import loop, vitals
from dinoforge.train.follow import follow
from dinoforge.train.guard import Guard
from dinoforge.train.loop import fit
from dinoforge.train.optim import optimizer
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import CentringConfig
from dinoforge.train.vitals import Pulse, of_targets
from tiny import AT, batch, pretrain

PLAN = PlanConfig(images=32, batch=8, learning_rate=Cosine(peak=0.03, end=0.01), last_layer_frozen=0)


@pytest.mark.parametrize("images", [8, 48])
def test_what_targets_tell_by_the_letter(images):
    """Two groups of 4: all images of both; twelve: three of each."""
    step, whole = pretrain(), batch(images=images)
    targets = step.targets([whole], AT)
    p = targets[0].images.rows()[0].double().unflatten(0, (-1, 4))[:, : 4 if images == 8 else 3].flatten(0, 1)
    entropies = [-sum(float(v) * math.log(float(v)) for v in row if v > 0) for row in p]
    mean = p.mean(0)
    mixed = -sum(float(v) * math.log(float(v)) for v in mean if v > 0)
    own = sum(entropies) / len(entropies)
    found = of_targets([whole], targets, group=4)
    assert found["teacher_entropy"].item() == pytest.approx(own / math.log(24), rel=1e-5)
    assert found["prototype_use"].item() == pytest.approx(math.exp(mixed) / 24, rel=1e-5)
    assert found["target_information"].item() == pytest.approx((mixed - own) / math.log(len(p)), rel=1e-4)


def test_only_some_groups_of_a_large_batch_are_looked_at():
    """Of 40 groups every second, of each the first image."""
    step, whole = pretrain(), batch(images=160)
    targets = step.targets([whole], AT)
    p = targets[0].images.rows()[0][::8].double()
    own = torch.special.entr(p).sum(1).mean()
    found = of_targets([whole], targets, group=4)
    assert found["teacher_entropy"].item() == pytest.approx(float(own) / math.log(24), rel=1e-5)


def test_collapse_of_either_kind_tells_nothing():
    step, whole = pretrain(), batch()
    uniform = of_targets([whole], step.targets([whole], replace(AT, teacher_temperature=1e6)), group=4)
    assert uniform["teacher_entropy"].item() == pytest.approx(1)
    assert uniform["target_information"].item() == pytest.approx(0, abs=1e-5)
    step = pretrain(targets=CentringConfig())
    step.centres["images"].centre[7] = -100.0  # towers over all others
    one = of_targets([whole], step.targets([whole], AT), group=4)
    assert one["teacher_entropy"].item() == pytest.approx(0, abs=1e-5)
    assert one["prototype_use"].item() == pytest.approx(1 / 24, rel=1e-4)
    assert one["target_information"].item() == pytest.approx(0, abs=1e-5)


def test_a_pulse():
    step = pretrain()
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter += 1
    pulse = Pulse(step.student, step.teacher)
    assert pulse()["teacher_moved"] == 0  # nothing has happened yet
    follow(step.teacher, step.student, 0.9)
    found = pulse()
    flat = [
        torch.cat([p.detach().flatten() for p in net.parameters()]).double() for net in (step.teacher, step.student)
    ]
    assert found["teacher_distance"].item() == pytest.approx(
        ((flat[0] - flat[1]).norm() / flat[1].norm()).item(), rel=1e-5
    )
    assert found["teacher_moved"] > 1_000
    assert pulse()["teacher_moved"] == 0
    follow(step.teacher, step.student, 0.0)
    assert pulse()["teacher_distance"] == 0


@pytest.mark.parametrize("moving", ["backbone", "dino_head.mlp", "ibot_head.mlp"])
def test_parts_that_stand_still_are_no_end_of_it(monkeypatch, moving):
    """Prototypes without a rate at first, a head whose loss weighs nothing, a backbone whose heads learn before it."""
    monkeypatch.setattr(vitals, "_ENTRIES", 8)
    step = pretrain(patch_head=HeadConfig(prototypes=40, hidden=12, bottleneck=6))
    with torch.no_grad():
        for name, parameter in step.student.named_parameters():
            if name.startswith(moving):
                parameter += 1
    pulse = Pulse(step.student, step.teacher)
    follow(step.teacher, step.student, 0.9)
    assert pulse()["teacher_moved"] > 0


@pytest.mark.parametrize("entries", [100, 10_000])
def test_a_sample_is_bounded_and_of_every_tensor(monkeypatch, entries):
    monkeypatch.setattr(vitals, "_ENTRIES", entries)
    step = pretrain()
    tensors = list(step.teacher.parameters())
    sample = vitals._sample(step.teacher)
    assert len(sample) == len(tensors)
    assert min(map(len, sample)) > 0
    assert min(entries, sum(map(torch.numel, tensors))) / 2 < sum(map(len, sample)) <= entries + len(tensors)
    before = [part.clone() for part in sample]
    with torch.no_grad():
        for tensor in tensors:
            tensor += 1
    assert all(map(torch.equal, sample, before))  # it is a copy


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("where", ["loss", "gradient", "far"])
def test_a_ruined_step_changes_neither_weights_nor_moments(monkeypatch, fused, where):
    """Step 3 of 4: as if its update had never been; the centre that its scores would have ruined too."""
    step = pretrain(targets=CentringConfig())
    adamw = optimizer(step.student, PLAN, fused=fused)
    guard = Guard(largest={"backbone": 1e6} if where == "far" else {})
    states, done, whole = [], [], loop.clip

    def clip(student, largest):
        if len(done) == 2 and where != "loss":
            for parameter in student.backbone.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.inf if where == "gradient" else 1e6)
        return whole(student, largest)

    monkeypatch.setattr(loop, "clip", clip)
    batches = [batch(seed=number) for number in range(4)]
    if where == "loss":
        batches[2].globals[:, 5] = math.nan

    def look(one):
        done.append(one)
        moments = [state[name].clone() for state in adamw.state.values() for name in ("exp_avg", "exp_avg_sq", "step")]
        states.append(([p.detach().clone() for p in step.student.parameters()], moments))

    fit(step, adamw, batches, plan=PLAN, steps=4, guard=guard, observers=[look])
    assert [one.skipped.item() for one in done] == [0, 0, 1, 0]
    for first, second, same in ((1, 2, True), (0, 1, False), (2, 3, False)):
        for kind in (0, 1):
            pairs = list(zip(states[first][kind], states[second][kind], strict=True))
            assert all(torch.equal(a, b) for a, b in pairs) is same
    assert all(value.isfinite().all() for value in step.state_dict().values())


def test_a_guard_by_hand():
    guard, one = Guard(largest={"backbone": 3.0, "head": math.inf}), {"total": torch.tensor(1.0)}
    for norms, want in (((2.9, 9.0), 0), ((3.1, 1.0), 1), ((math.nan, 1.0), 1), ((1.0, math.inf), 1)):
        named = dict(zip(("backbone", "head"), map(torch.tensor, norms), strict=True))
        assert guard.unfit(one, named) == want
    assert guard.unfit({"total": torch.tensor(-math.inf)}, {"backbone": torch.tensor(1.0)}) == 1


def test_a_lowered_rate_is_that_of_every_group():
    steps = {}
    for rate in (1.0, 0.25):
        step = pretrain()
        adamw = optimizer(step.student, PLAN, fused=True)
        fit(step, adamw, [batch()], plan=PLAN, steps=4, guard=Guard(rate=rate))
        steps[rate] = [group["lr"] for group in adamw.param_groups]
    assert steps[0.25] == pytest.approx([0.25 * rate for rate in steps[1.0]])
    assert max(steps[1.0]) > 0
