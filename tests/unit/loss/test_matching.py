"""Feature matching by hand, against its definition, and whom it moves."""

import math

import pytest
import torch

from dinoforge.base.errors import ConfigError
from dinoforge.loss.matching import MatchingConfig, matching_loss, whitened
from tiny import made


def slow(student, teacher, beta):
    total, count = 0.0, 0
    for mine, theirs in zip(student, teacher, strict=True):
        middle = sum(theirs) / len(theirs)
        variance = sum((x - middle) ** 2 for x in theirs) / len(theirs)
        for x, y in zip(mine, theirs, strict=True):
            d = abs(x - (y - middle) / math.sqrt(variance + 1e-5))
            total = total + (d**2 / (2 * beta) if d < beta else d - beta / 2)
            count += 1
    return total / count


def test_by_hand():
    """A token (1, 3) is whitened to (-1, 1); differences of 1 and 4 cost 1/4 and 4 - 1 where squares end at 2."""
    student, teacher = torch.tensor([[0.0, 5.0]]), torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(whitened(teacher), torch.tensor([[-1.0, 1.0]]), rtol=1e-4, atol=0)
    assert matching_loss(student, teacher, config=MatchingConfig()).item() == pytest.approx((0.25 + 3) / 2, rel=1e-4)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_equals_its_definition(beta):
    student, teacher = 3 * made(6, 5), 7 * made(6, 5, seed=1) + 2
    found = matching_loss(student.unflatten(0, (2, 3)), teacher.unflatten(0, (2, 3)), config=MatchingConfig(beta=beta))
    assert found.item() == pytest.approx(slow(student.tolist(), teacher.tolist(), beta), rel=1e-5)


def test_only_the_student_gets_a_gradient():
    student, teacher = made(4, 3).requires_grad_(), made(4, 3, seed=1).requires_grad_()
    matching_loss(student, teacher, config=MatchingConfig()).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_a_teachers_scale_and_offset_do_not_count():
    student, teacher = made(4, 16), made(4, 16, seed=1)
    one, other = (matching_loss(student, seen, config=MatchingConfig()) for seen in (teacher, 50 * teacher - 20))
    assert one.item() == pytest.approx(other.item(), rel=1e-4)


def test_it_is_computed_in_float32():
    student, teacher = made(4, 16).bfloat16(), made(4, 16, seed=1).bfloat16()
    found = matching_loss(student, teacher, config=MatchingConfig())
    assert found.dtype == torch.float32
    want = matching_loss(student.float(), teacher.float(), config=MatchingConfig())
    assert torch.equal(found, want)


def test_nothing_to_learn_is_one_line():
    with pytest.raises(ConfigError, match="image_weight=0 and patch_weight=0, so nothing is learnt; raise one"):
        MatchingConfig.build({"image_weight": 0, "patch_weight": 0})
