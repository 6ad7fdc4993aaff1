"""Matching a teacher's features: on which grid, who learns and who follows, and that it comes to what it is to come to."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity, interpolate, smooth_l1_loss

from dinoforge.base.schedule import Cosine
from dinoforge.data.batch import masked_positions
from dinoforge.loss.matching import MatchingConfig, whitened
from dinoforge.model.table import build
from dinoforge.train import sentinel
from dinoforge.train.assembly import assembled, frozen_of, student_of
from dinoforge.train.distil import DistilConfig, Shared
from dinoforge.train.loop import fit
from dinoforge.train.matching import Goal, Match, resampled
from dinoforge.train.optim import optimizer
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig, teacher_of
from tiny import AT, VIT, batch, made

OBJECTIVE = ObjectiveConfig(group=4)
CONSTANT = Cosine(peak=1e-2, end=1e-2)


def matched(patch=4, shared=None, **matching):
    """A teacher that is wider and deeper, with patches of a side of its own."""
    how = DistilConfig(matching=MatchingConfig(**matching))
    wide = VIT.model_copy(update={"width": 24, "depth": 3, "patch": patch, "pixels": 4 * patch})
    student = student_of(build(VIT, seed=0), OBJECTIVE, seed=0, how=how, width=24)
    teacher = frozen_of(build(wide, seed=5), OBJECTIVE, how=how)
    return assembled(student, teacher_of(student), OBJECTIVE, seed=0, teacher=teacher, how=how, shared=shared)


@pytest.mark.parametrize("patch", [4, 6, 2])
def test_loss_by_hand(patch):
    """The teacher sees views of as many of its patches as the student has; every term is a mean over tokens and channels."""
    step, whole = matched(patch, image_weight=0.5, patch_weight=3.0), batch(local=0)
    views = whole.globals.flatten(0, 1)
    with torch.no_grad():
        larger = views if patch == 4 else interpolate(views, size=4 * patch, mode="bicubic", antialias=True)
        theirs, ours = step.teacher.backbone(larger), step.student.backbone(views)
        assert theirs.patches.shape[1:3] == ours.patches.shape[1:3] == (4, 4)
        image = smooth_l1_loss(step.student.image_map(ours.image), whitened(theirs.image), beta=2.0)
        patches = smooth_l1_loss(step.student.patch_map(ours.patches), whitened(theirs.patches), beta=2.0)
    found = step(whole, AT)
    assert set(found.terms) == {"match_image", "match_patches", "total"}
    torch.testing.assert_close(found.terms["match_image"], image)
    torch.testing.assert_close(found.terms["match_patches"], patches)
    torch.testing.assert_close(found.total, 0.5 * image + 3 * patches)


def test_places_stay_where_they_are():
    """A view that is bright in one patch of the student's is bright in the same patch of the teacher's, and nowhere else."""
    views = torch.zeros(1, 1, 16, 16)
    views[:, :, 4:8, 8:12] = 1
    seen = resampled(views, patch=4, theirs=6)[0, 0]
    means = seen.unflatten(1, (4, 6)).unflatten(0, (4, 6)).mean((1, 3))
    assert means.argmax() == 1 * 4 + 2
    assert means[1, 2] > 0.8
    assert means.sum() - means[1, 2] < 0.3


def test_no_mask_is_seen():
    step, whole = matched(), batch(local=0)
    index, weight = masked_positions(~whole.masks)
    other = replace(whole, masks=~whole.masks, masked_index=index, mask_weight=weight)
    assert torch.equal(step(whole, AT).total, step(other, AT).total)


def test_the_teacher_stays_and_the_average_follows():
    step, plan = matched(), PlanConfig(images=24, batch=8)
    frozen = {name: value.clone() for name, value in step.teacher.backbone.state_dict().items()}
    average, rows = {name: value.clone() for name, value in step.spare.state_dict().items()}, []

    def look(done):
        rows.append(done)
        moved, momentum = step.student.state_dict(), done.at.teacher_momentum
        for name, before in average.items():
            average[name] = momentum * before + (1 - momentum) * moved[name]

    batches = [batch(local=0, seed=number) for number in range(3)]
    fit(step, optimizer(step.student, plan), batches, plan=plan, steps=3, observers=[look])
    assert all(torch.equal(value, frozen[name]) for name, value in step.teacher.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in step.teacher.parameters())
    for name, value in step.average.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-6, atol=1e-7)
    assert {name.split(".")[0] for name in step.state_dict()} == {"student", "spare"}
    assert set(rows[0].norms) == {"backbone", "image_map", "patch_map"}
    assert 0 < rows[0].vitals["target_spread"] < 1


def test_the_spread_of_targets():
    """By its definition; nothing where all images are the same."""
    step, whole = matched(), batch(local=0)
    (goal,) = step.targets([whole], AT)
    z = whitened(goal.image)
    want = 1 - z.mean(0).square().sum() / z.square().sum(1).mean()
    torch.testing.assert_close(step.vitals([whole], [goal])["target_spread"], want)
    same = replace(whole, globals=whole.globals[:1, :1].expand_as(whole.globals))
    assert step.vitals([same], step.targets([same], AT))["target_spread"] < 1e-5


def test_the_spread_is_of_what_is_matched():
    """Of patches where class tokens have no weight."""
    step, whole = matched(image_weight=0.0), batch(local=0)
    (goal,) = step.targets([whole], AT)
    z = whitened(goal.patches).flatten(0, 1)
    want = 1 - z.mean(0).square().sum() / z.square().sum(1).mean()
    found = step.vitals([whole], [Goal(torch.ones_like(goal.image), goal.patches)])["target_spread"]
    torch.testing.assert_close(found, want)


def test_a_channel_of_outliers_leaves_little_spread():
    """768 channels that tell images apart beside one of 300 deviations that all share: 768 / (300^2 + 768)."""
    tokens = torch.cat([made(512, 768), torch.full((512, 1), 300.0)], 1)
    found = matched().vitals([], [Goal(tokens, tokens[:, None])])["target_spread"].item()
    assert found == pytest.approx(768 / (300**2 + 768), rel=0.01)
    assert 5 * sentinel._SPREAD < found < sentinel._TELLING


def test_features_come_to_the_teachers():
    """A few noisy images, seen often: what is mapped points where the whitened teacher's does, tokens and patches alike."""
    step, whole = matched(patch=6), batch(images=4, local=0)
    plan = PlanConfig(
        images=4 * 300, batch=4, learning_rate=CONSTANT, rate_scaling="none", layer_decay=1.0, patch_rate=1.0,
        weight_decay=Cosine(peak=0.0, end=0.0), teacher_momentum=Cosine(peak=0.9, end=0.9),
    )  # fmt: skip

    def near():
        with torch.no_grad():
            (goal,) = step.targets([whole], AT)
            mine = step.average.mapped(step.average.backbone(whole.globals.flatten(0, 1)))
            pairs = zip(mine, (goal.image, goal.patches), strict=True)
            return [cosine_similarity(own, whitened(theirs), dim=-1).mean().item() for own, theirs in pairs]

    assert max(near()) < 0.3
    fit(step, optimizer(step.student, plan), [whole] * 300, plan=plan, steps=300)
    assert min(near()) > 0.9


def test_students_share_what_the_teacher_makes():
    shared = Shared()
    one, other = (matched(shared=shared) for _ in range(2))
    first = batch(local=0)
    assert other.targets([first], AT) is one.targets([first], AT)
    second = replace(batch(local=0, seed=1), groups=(2, 3))
    assert not torch.equal(other.targets([second], AT)[0].image, one.targets([first], AT)[0].image)


def test_it_is_no_step_of_prototypes():
    assert isinstance(matched(), Match)
    assert {name for name, _ in matched().student.named_children()} == {"backbone", "image_map", "patch_map"}
    assert {name for name, _ in matched().teacher.named_children()} == {"backbone"}
