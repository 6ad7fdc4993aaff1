"""A frozen teacher: its targets, what the student sees of masks, what moves and what does not."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dinoforge.data.batch import masked_positions
from dinoforge.loss.targets import sinkhorn
from dinoforge.model.heads import HeadConfig
from dinoforge.model.table import build
from dinoforge.train.distil import Distil, DistilConfig, Shared
from dinoforge.train.loop import fit, steps_of
from dinoforge.train.optim import optimizer
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig, networks, teacher_of
from tiny import AT, SMALL, VIT, batch

OURS = ObjectiveConfig(group=4, head=SMALL)
THEIRS = ObjectiveConfig(head=HeadConfig(prototypes=24, hidden=20, bottleneck=6))


def distilled(patches="all"):
    """A teacher wider and deeper than its student, with heads of its own."""
    student = networks(build(VIT, seed=0), OURS, seed=0)
    wide = VIT.model_copy(update={"width": 24, "depth": 3})
    teacher = networks(build(wide, seed=5), THEIRS, seed=5)
    how = DistilConfig(patches=patches)
    return Distil(student, teacher, OURS, seed=0, how=how, spare=teacher_of(student))


def masked(seed):
    """The same views under other masks."""
    whole = batch()
    masks = torch.rand(whole.masks.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    index, weight = masked_positions(masks)
    return replace(whole, masks=masks, masked_index=index, mask_weight=weight)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("patches", ["all", "drawn"])
def test_targets_and_patch_loss_by_hand(patches):
    step, whole = distilled(patches), masked(1)
    index = torch.arange(2 * 8 * 16) if patches == "all" else whole.masked_index
    with torch.no_grad():
        seen = step.teacher.backbone(whole.globals.flatten(0, 1))
        both = step.teacher.scores(seen.image, seen.patches.flatten(0, 2)[index])
        targets = [sinkhorn(scores, temperature=AT.teacher_temperature, rounds=3).rows() for scores in both]
        mine = step.student.backbone(whole.globals.flatten(0, 1)).patches.flatten(0, 2)
        vectors, prototypes = step.student.dino_head(mine[index])
    found = step.targets([whole], AT)[0]
    torch.testing.assert_close(found.images.rows().flatten(0, 1), targets[0])
    terms = -(targets[1] * torch.log_softmax(vectors @ prototypes.T / 0.1, -1)).sum(-1)
    view = index // 16  # the mean over a view's patches, then over all sixteen views
    want = sum(terms[view == number].mean() for number in view.unique()) / 16
    torch.testing.assert_close(step(whole, AT).terms["ibot"], want, rtol=1e-4, atol=1e-5)


def test_no_mask_is_seen():
    step = distilled()
    one, other = (step(masked(seed), AT) for seed in (1, 2))
    assert all(torch.equal(one.terms[name], other.terms[name]) for name in one.terms)
    step = distilled("drawn")
    one, other = (step(masked(seed), AT) for seed in (1, 2))
    assert torch.equal(one.terms["dino_global"], other.terms["dino_global"])
    assert not torch.equal(one.terms["ibot"], other.terms["ibot"])
    one.total.backward()
    assert step.student.backbone.mask_token.grad is None


def test_the_teacher_stays_and_the_average_follows():
    step, plan = distilled(), PlanConfig(images=24, batch=8)
    frozen, average = state(step.teacher.backbone) | state(step.teacher.dino_head), state(step.spare)

    def look(done):
        moved, momentum = state(step.student), done.at.teacher_momentum
        for name, before in average.items():
            average[name] = momentum * before + (1 - momentum) * moved[name]

    fit(step, optimizer(step.student, plan), [batch(seed=n) for n in range(3)], plan=plan, steps=3, observers=[look])
    now = state(step.teacher.backbone) | state(step.teacher.dino_head)
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())
    assert all(parameter.grad is None for parameter in step.teacher.parameters())
    assert step.average is step.spare
    for name, value in step.spare.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-6, atol=1e-7)
    assert {name.split(".")[0] for name in step.state_dict()} == {"student", "spare"}


def student(width, teacher, shared=None):
    """A distillation with a student of that width, and its optimiser."""
    mine = networks(build(VIT.model_copy(update={"width": width}), seed=0), OURS, seed=0)
    step = Distil(mine, teacher, OURS, seed=0, how=DistilConfig(), spare=teacher_of(mine), shared=shared)
    return step, optimizer(mine, PLAN)


PLAN = PlanConfig(images=24, batch=8)


def losses_of(students, batches, parts=1):
    """Losses of each, step by step, all of them in turns; and the operations of it all."""
    rows = [[] for _ in students]
    with FlopCounterMode(display=False) as counter:
        turns = [
            steps_of(
                step,
                adamw,
                batches,
                plan=PLAN,
                steps=3,
                parts=parts,
                observers=[lambda done, seen=seen: seen.append(done.losses)],
            )
            for (step, adamw), seen in zip(students, rows, strict=True)
        ]
        for _ in zip(*turns, strict=True):
            pass
    return rows, counter.get_total_flops()


def test_students_of_one_teacher_are_each_as_alone_and_cost_one_look_less():
    """To the last bit, losses and weights; of every batch the teacher's pass is computed once."""
    batches = [replace(batch(seed=number), groups=(2 * number, 2 * number + 1)) for number in range(3)]
    teacher = distilled().teacher
    alone = [student(width, teacher) for width in (16, 32)]
    together = [student(width, teacher, shared) for shared in [Shared()] for width in (16, 32)]
    apart, flops = zip(*(losses_of([one], batches) for one in alone), strict=True)
    found, both = losses_of(together, batches)
    assert found == [rows[0] for rows in apart]
    for (one, _), (other, _) in zip(alone, together, strict=True):
        mine, theirs = one.state_dict(), other.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    with FlopCounterMode(display=False) as counter:
        for whole in batches:
            alone[0][0].targets([whole], AT)
    assert both == sum(flops) - counter.get_total_flops()


def test_what_a_teacher_made_of_another_batch_is_never_handed_on():
    shared, teacher = Shared(), distilled().teacher
    one, other = (student(width, teacher, shared)[0] for width in (16, 32))
    first, second = batch(seed=0), replace(batch(seed=1), groups=(2, 3))
    a = one.targets([first], AT)
    assert other.targets([first], AT) is a
    b = other.targets([second], AT)
    assert not torch.equal(a[0].images.rows(), b[0].images.rows())
    warmer = one.targets([second], replace(AT, teacher_temperature=0.1))
    assert not torch.equal(warmer[0].images.rows(), b[0].images.rows())
    torch.testing.assert_close(one.targets([first], AT)[0].images.rows(), a[0].images.rows(), rtol=0, atol=0)


def test_what_a_teacher_made_in_another_precision_is_never_handed_on():
    shared, teacher = Shared(), distilled().teacher
    one, other = (student(width, teacher, shared)[0] for width in (16, 32))
    whole = batch(seed=0)
    a, b = one.targets([whole], AT, torch.autocast("cpu", torch.bfloat16)), other.targets([whole], AT)
    assert torch.equal(b[0].images.rows(), Distil.made(other, [whole], AT)[0].images.rows())
    assert not torch.equal(a[0].images.rows(), b[0].images.rows())
