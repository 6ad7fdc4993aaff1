"""The step's own promises: nothing depends on how a batch is cut into groups, and gradients go where they should."""

from dataclasses import replace

import pytest
import torch

import plain
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.model.heads import HeadConfig
from dinoforge.train.draws import draw_rescale, draw_subsets
from dinoforge.train.follow import follow
from dinoforge.train.step import CentringConfig
from tiny import AT, VIT, batch, pretrain


def part(whole, first, last):
    """Some groups of a batch."""
    masks = whole.masks[:, first:last]
    index, weight = masked_positions(masks)
    return Batch(whole.globals[:, first:last], whole.locals[:, first:last], masks, index, weight,
                 whole.groups[first // 4 : last // 4])  # fmt: skip


ROPE = VIT.model_copy(update={"positions": "rope", "rope_rescale": 2.0, "untie_local_norm": True, "init_std": 0.2})


@pytest.mark.parametrize("backbone", [VIT, ROPE], ids=["table", "rope"])
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_losses_of_parts_add_up_to_those_of_the_whole(drop, backbone):
    """The student's share is a mean over groups: halves, averaged, give the loss and the gradients of the whole."""
    whole, step = batch(), pretrain(backbone=backbone.model_copy(update={"drop_path": drop}))
    targets = step.targets([whole], AT)[0]
    want = step.losses(whole, targets)
    want.total.backward()
    grads = {name: p.grad.clone() for name, p in step.student.named_parameters()}
    step.zero_grad()
    patches = whole.masks.shape[-1]
    image_of = (whole.masked_index // patches) % 8
    total = 0.0
    for first, last in ((0, 4), (4, 8)):
        inside = (image_of >= first) & (image_of < last)
        mine = type(targets)(
            images=plain.given(targets.images.rows()[:, first:last]),
            patches=plain.given(targets.patches.rows()[inside]),
        )
        loss = step.losses(part(whole, first, last), mine).total / 2
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(want.total.item(), rel=1e-5)
    for name, parameter in step.student.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-6)


def test_the_teacher_has_no_gradient_and_follows():
    step = pretrain()
    step(batch(), AT).total.backward()
    assert all(parameter.grad is None for parameter in step.teacher.parameters())
    assert all(parameter.grad is not None for parameter in step.student.parameters())
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter += 1
    before = [parameter.clone() for parameter in step.teacher.parameters()]
    follow(step.teacher, step.student, 0.75)
    for old, new, student in zip(before, step.teacher.parameters(), step.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * student)


def test_the_teacher_sees_no_mask_and_no_local_view():
    whole = batch()
    masks = torch.zeros_like(whole.masks)
    index, weight = masked_positions(masks)
    bare = Batch(whole.globals, whole.locals * 0, masks, index, weight, whole.groups)
    seen, same = (pretrain().targets([one], AT)[0].images.rows() for one in (whole, bare))
    torch.testing.assert_close(seen, same)


def test_each_weight_switches_its_own_term():
    losses = pretrain()(batch(), AT).terms
    parts = {"dino_weight": ("dino_local", "dino_global"), "ibot_weight": ("ibot",), "koleo_weight": ("koleo",)}
    for weight, terms in parts.items():
        changed = pretrain(**{weight: 0.0})(batch(), AT).terms
        factor = 0.1 if weight == "koleo_weight" else 1.0
        gone = factor * sum(losses[name].item() for name in terms)
        assert changed["total"].item() == pytest.approx(losses["total"].item() - gone, rel=1e-5)


def test_images_that_are_alone_in_their_group_have_no_neighbour_to_be_driven_from():
    whole = replace(batch(images=4), groups=(0, 1, 2, 3))
    losses = pretrain(group=1, koleo_weight=0)(whole, AT)
    assert losses.terms["koleo"] == 0
    want = losses.terms["dino_local"] + losses.terms["dino_global"] + losses.terms["ibot"]
    torch.testing.assert_close(losses.total.detach(), want)


def test_a_batch_without_masks_or_local_views_still_trains():
    whole = batch(local=0)
    masks = torch.zeros_like(whole.masks)
    index, weight = masked_positions(masks)
    bare = Batch(whole.globals, whole.locals, masks, index, weight, whole.groups)
    for targets in ({}, {"targets": CentringConfig()}):
        losses = pretrain(**targets)(bare, AT)
        losses.total.backward()
        assert torch.isfinite(losses.total)
        assert losses.terms["ibot"].item() == 0
        assert losses.terms["dino_local"].item() == 0


def test_separate_heads_have_their_own_sizes():
    step = pretrain(patch_head=HeadConfig(prototypes=40, hidden=12, bottleneck=6))
    targets = step.targets([batch()], AT)[0]
    assert targets.images.rows().shape[-1] == 24
    assert targets.patches.rows().shape[-1] == 40
    step(batch(), AT).total.backward()
    assert set(dict(step.student.named_children())) == {"backbone", "dino_head", "ibot_head"}


def test_subsets_are_drawn_per_group():
    """A group's rows are the same whatever stands beside it, each branch its own, as many as the rate says."""
    rates = [0.0, 0.5]
    together = draw_subsets([torch.Generator().manual_seed(s) for s in (1, 2)], rates=rates, views=2, images=8)
    alone = draw_subsets([torch.Generator().manual_seed(2)], rates=rates, views=2, images=4)
    for block, (attn, mlp) in enumerate(together):
        kept = 8 if block == 0 else 4
        for mine, own in ((attn, alone[block][0]), (mlp, alone[block][1])):
            assert mine.scale == 8 / kept
            assert len(set(mine.index.tolist())) == 2 * kept
            second = [row for row in mine.index.tolist() if row % 8 >= 4]
            # Row v * 8 + 4 + i of the batch is row v * 4 + i of the group alone.
            assert [(row // 8) * 4 + row % 8 - 4 for row in second] == own.index.tolist()
    assert together[1][0].index.tolist() != together[1][1].index.tolist()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_factors_on_coordinates_are_drawn_per_group():
    """One for all views of a group, whatever stands beside it."""
    together = draw_rescale(generators(1, 2, 3), largest=2.0, views=2, images=12).view(2, 3, 4)
    alone = draw_rescale(generators(2), largest=2.0, views=3, images=4)
    assert (together == together[:1, :, :1]).all()
    assert (alone == together[0, 1, 0]).all()
    assert len(together.unique()) == 3


def test_factors_on_coordinates_are_log_uniform():
    """Their logarithms: between minus and plus the largest's, with the mean and spread of a uniform distribution."""
    logs = draw_rescale(generators(*range(4000)), largest=4.0, views=1, images=4000).log() / torch.tensor(4.0).log()
    assert logs.abs().max() <= 1
    assert logs.max() > 0.99
    assert logs.min() < -0.99
    assert abs(logs.mean()) < 4 * (3 * 4000) ** -0.5
    assert logs.std().item() == pytest.approx(3**-0.5, rel=0.03)


def seen(monkeypatch, step):
    """What student and teacher are given in a step."""
    found = {}
    for role in ("student", "teacher"):
        backbone = getattr(step, role).backbone
        forward = backbone.forward
        monkeypatch.setattr(
            backbone, "forward", lambda *args, role=role, forward=forward: found.update({role: args}) or forward(*args)
        )
    step(batch(), AT)
    return found


def test_coordinates_are_rescaled_for_the_student_alone(monkeypatch):
    """By other factors for its global than for its local views; the teacher gets images and nothing else."""
    found = seen(monkeypatch, pretrain(backbone=ROPE))
    wide, near = found["student"][0]
    assert [wide.local, near.local] == [False, True]
    assert len(wide.rescale) == 2 * 8
    assert len(near.rescale) == 3 * 8
    assert len(torch.cat([wide.rescale, near.rescale]).unique()) == 4  # two groups, two kinds
    assert [type(argument) for argument in found["teacher"]] == [torch.Tensor]


@pytest.mark.parametrize("largest", [None, 1.0])
def test_no_factor_is_drawn_where_none_is_asked_for(monkeypatch, largest):
    backbone = ROPE.model_copy(update={"rope_rescale": largest})
    wide, near = seen(monkeypatch, pretrain(backbone=backbone))["student"][0]
    assert wide.rescale is None
    assert near.rescale is None


def test_factors_change_the_losses():
    mine, plain_ = (pretrain(backbone=ROPE.model_copy(update={"rope_rescale": value})) for value in (2.0, None))
    assert abs(mine(batch(), AT).total - plain_(batch(), AT).total) > 1e-3
