"""The Gram teacher: settings that make sense, the steps at which it is copied, what the step makes of it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import compute_context
from dinoforge.base.schedule import Cosine
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.loss.gram import gram_loss
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.train.gram import GramConfig, GramTeacher
from dinoforge.train.loop import fit
from dinoforge.train.optim import optimizer
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig
from tiny import AT, VIT, batch, made, pretrain

NOW = replace(AT, gram_weight=2.0)
ELSEWHERE = GramConfig(backbone="somewhere")
NARROW = VIT.model_copy(update={"width": 8, "depth": 1})


def moved(step, by=0.3):
    """The same step, its Gram teacher pushed away from the teacher."""
    with torch.no_grad():
        for number, parameter in enumerate(step.gram.parameters()):
            parameter += by * made(*parameter.shape, seed=number)
    return step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "objective.gram has no teacher: give objective.gram.backbone, or objective.gram.from_share"),
        ({"weight": 1.0}, "objective.gram has no teacher"),
        ({"backbone": "x", "from_share": 0.1}, "objective.gram.backbone and objective.gram.from_share=0.1 are two"),
        ({"from_share": 0.5, "start": 0.2}, "objective.gram.start=0.2 comes before its teacher, .*from_share=0.5"),
        ({"from_share": 0.5, "start": 1.0}, "objective.gram.start must be below 1; got 1"),
        ({"from_share": 1.0}, "objective.gram.from_share must be below 1; got 1"),
        ({"from_share": 0.5, "refreshes": 3}, "objective.gram.every_share=None and objective.gram.refreshes=3 go together"),
        ({"from_share": 0.5, "every_share": 0.1}, "objective.gram.every_share=0.1 and objective.gram.refreshes=0 go"),
        ({"backbone": "x", "every_share": 0.1, "refreshes": 1}, "objective.gram.backbone stays what it is"),
        ({"from_share": 0.5, "every_share": 0.6, "refreshes": 1}, "every_share=0.6 after the start at 0.5 is no more"),
        ({"from_share": 0.5, "weight": 0}, "objective.gram.weight must be above 0; got 0"),
        ({"from_share": 0.5, "pixels_factor": 3}, "objective.gram.pixels_factor must be one of 1 or 2; got 3"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ObjectiveConfig.build({"gram": settings}, prefix="objective.")
    assert "\n" not in str(caught.value)


def steps_of(config, steps):
    plan = PlanConfig(images=1)
    found = [plan.at(step, steps=steps, gram=config) for step in range(steps)]
    return [i for i, at in enumerate(found) if at.gram_copy], [i for i, at in enumerate(found) if at.gram_weight]


def test_when_it_is_copied_and_applied():
    paper = GramConfig(from_share=0.1, start=0.5, every_share=0.1, refreshes=3)
    assert steps_of(paper, 20) == ([2, 12, 14, 16], list(range(10, 20)))
    assert steps_of(GramConfig(from_share=0.5), 20) == ([10], list(range(10, 20)))
    assert steps_of(GramConfig(from_share=0.0), 3) == ([0], [0, 1, 2])
    assert steps_of(GramConfig(backbone="x", start=0.5), 4) == ([], [2, 3])
    # What rounds to the end or to nothing still happens.
    assert steps_of(GramConfig(from_share=0.99), 8) == ([7], [7])
    assert steps_of(GramConfig(from_share=0.0, every_share=0.01, refreshes=2), 8) == ([0, 1, 2], list(range(8)))
    assert steps_of(None, 4) == ([], [])


def test_the_total_is_the_sum_of_its_parts():
    plain = pretrain(0.4)(batch(), AT)
    step = moved(pretrain(0.4, gram=GramConfig(from_share=0)))
    losses = step(batch(), NOW)
    assert list(losses.terms) == ["dino_local", "dino_global", "ibot", "koleo", "gram", "total"]
    assert losses.terms["gram"] > 1e-3
    for name in ("dino_local", "dino_global", "ibot", "koleo"):
        assert torch.equal(losses.terms[name], plain.terms[name])
    torch.testing.assert_close(losses.total, plain.total + 2.0 * losses.terms["gram"])


def test_it_compares_masked_global_views_with_unmasked_ones():
    """All patches of a view, masked ones too, against the Gram teacher's view without a mask."""
    whole, step = batch(), moved(pretrain(gram=GramConfig(from_share=0)))
    student = step.student.backbone(whole.globals.flatten(0, 1), whole.masks.flatten(0, 1)).patches.flatten(1, 2)
    teacher = step.gram.backbone(whole.globals.flatten(0, 1)).patches.flatten(1, 2)
    torch.testing.assert_close(step(whole, NOW).terms["gram"], gram_loss(student, teacher).detach())


def test_before_its_start_it_is_nought_and_never_called(monkeypatch):
    step = pretrain(gram=GramConfig(from_share=0))
    monkeypatch.setattr(step.gram, "forward", None)
    losses, plain = step(batch(), AT), pretrain()(batch(), AT)
    assert losses.terms.pop("gram").item() == 0
    assert losses.terms == plain.terms
    assert "gram" not in plain.terms


def test_an_equal_teacher_pulls_only_at_masked_patches():
    whole, step = batch(), pretrain(gram=GramConfig(from_share=0))
    masks = torch.zeros_like(whole.masks)
    bare = Batch(whole.globals, whole.locals, masks, *masked_positions(masks), whole.groups)
    assert step(bare, NOW).terms["gram"].item() < 1e-10
    assert step(whole, NOW).terms["gram"].item() > 1e-4


def test_gradients_and_training_leave_it_alone():
    step = moved(pretrain(gram=GramConfig(from_share=0)))
    before = {name: value.clone() for name, value in step.gram.state_dict().items()}
    plan = PlanConfig(images=16, batch=8)
    adamw = optimizer(step.student, plan)
    step(batch(), NOW).total.backward()
    adamw.step()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in step.gram.parameters())
    assert all(torch.equal(value, before[name]) for name, value in step.gram.state_dict().items())


def test_the_loop_copies_the_teacher_before_its_steps():
    config = GramConfig(from_share=0.25, start=0.5, every_share=0.25, refreshes=1)
    step = pretrain(gram=config)
    still = Cosine(peak=0.5, end=0.5)
    plan = PlanConfig(images=64, batch=8, learning_rate=Cosine(peak=1e-3, end=1e-3), teacher_momentum=still)
    adamw, seen, teachers = optimizer(step.student, plan), [], [weights(step.teacher.backbone)]

    def look(done):
        seen.append((weights(step.gram.backbone), done.losses["gram"].item()))
        teachers.append(weights(step.teacher.backbone))

    fit(step, adamw, [batch(seed=number) for number in range(8)], plan=plan, steps=8, observers=[look])
    # After step i + 1 the Gram teacher is the teacher as it was after so many steps.
    for (mine, _), made_after in zip(seen, [0, 0, 2, 2, 2, 2, 6, 6], strict=True):
        assert torch.equal(mine, teachers[made_after])
    assert len({tuple(value.tolist()) for value in teachers}) == 9
    assert [loss > 0 for _, loss in seen] == [False] * 4 + [True] * 4


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_only_a_copy_of_its_own_is_in_the_state():
    plain, own = set(pretrain().state_dict()), set(pretrain(gram=GramConfig(from_share=0)).state_dict())
    backbone = set(pretrain().student.backbone.state_dict())
    assert own - plain == {f"gram.backbone.{name}" for name in backbone}
    assert plain == set(pretrain(gram=ELSEWHERE, anchor=NARROW).state_dict())


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("anchor", [NARROW, ToyConfig(width=6, patch=4)])
def test_another_architecture_serves(factor, anchor):
    step = pretrain(gram=GramConfig(backbone="somewhere", pixels_factor=factor), anchor=anchor)
    losses = step(batch(), NOW)
    losses.total.backward()
    assert losses.terms["gram"] > 0
    assert not any(parameter.requires_grad for parameter in step.gram.parameters())
    assert not step.gram.backbone.training
    assert step.student.backbone.norm.weight.grad.isfinite().all()


def test_twice_the_pixels_on_the_same_grid():
    """Against resampling written out: the crop enlarged, its patches brought down to the student's grid, bicubic both."""
    backbone, images = build(VIT, seed=0), made(2, 3, 16, 24)
    found = GramTeacher(backbone, ELSEWHERE.model_copy(update={"pixels_factor": 2}))(images)
    seen = backbone(F.interpolate(images, (32, 48), mode="bicubic", align_corners=False)).patches
    assert seen.shape == (2, 8, 12, 16)
    # Halving samples between two patches: the cubic kernel (a = -0.75) half a step away.
    near, far = 0.59375, -0.09375
    kernel = torch.tensor([far, near, near, far])
    rows = F.pad(seen.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").unfold(2, 4, 2).unfold(3, 4, 2)
    want = torch.einsum("bdhwyx,y,x->bhwd", rows, kernel, kernel)
    torch.testing.assert_close(found, want.flatten(1, 2), rtol=1e-4, atol=1e-5)
    plain = GramTeacher(backbone, ELSEWHERE)(images)
    assert plain.shape == found.shape == (2, 24, 16)
    assert (plain - found).abs().max() > 1e-2


def test_precision_is_that_of_the_networks_and_the_loss_stays_float32():
    step = moved(pretrain(gram=GramConfig(from_share=0)))
    dtypes = []
    step.gram.backbone.blocks[0].mlp.fc1.register_forward_hook(lambda _m, _i, out: dtypes.append(out.dtype))
    found = step(batch(), NOW, compute_context("bf16", torch.device("cpu"))).terms["gram"]
    assert dtypes == [torch.bfloat16]
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(step(batch(), NOW).terms["gram"].item(), rel=0.05)
