"""Gram anchoring by hand, against its definition, and at its edges."""

import pytest
import torch
from torch.nn.functional import normalize

from dinoforge.loss import gram
from dinoforge.loss.gram import gram_loss
from tiny import made


def slow(student, teacher):
    total, count = 0.0, 0
    for mine, theirs in zip(normalize(student, dim=-1), normalize(teacher, dim=-1), strict=True):
        for p in range(len(mine)):
            for q in range(len(mine)):
                total = total + (mine[p] @ mine[q] - theirs[p] @ theirs[q]) ** 2
                count += 1
    return total / count


def test_by_hand():
    """Two patches at right angles, and at 60 degrees for the teacher: the matrices differ by 1/2 in two of four entries."""
    student = torch.tensor([[[2.0, 0], [0, 5]]])
    teacher = torch.tensor([[[1.0, 0, 0], [1, 3**0.5, 0]]])
    assert gram_loss(student, teacher).item() == pytest.approx(2 * 0.25 / 4)
    # The paper's Frobenius form is P ** 2 times as large.
    a, b = (normalize(x[0], dim=-1) for x in (student, teacher))
    assert (a @ a.T - b @ b.T).square().sum().item() == pytest.approx(4 * gram_loss(student, teacher).item())


@pytest.mark.parametrize("block", [2**22, 2 * 36, 1])  # all at once, two images and a rest, one after another
@pytest.mark.parametrize("width", [5, 7])
def test_equals_its_definition_with_its_gradient(monkeypatch, block, width):
    monkeypatch.setattr(gram, "BLOCK", block)
    student, teacher = made(3, 6, 5).requires_grad_(), made(3, 6, width, seed=1).requires_grad_()
    mine, want = gram_loss(student, teacher), slow(student, teacher)
    assert mine.item() == pytest.approx(want.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(3 * mine, student)
    (expected,) = torch.autograd.grad(3 * want, student)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


def test_only_the_student_gets_a_gradient():
    student, teacher = made(2, 4, 3).requires_grad_(), made(2, 4, 3, seed=1).requires_grad_()
    gram_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert not gram_loss(student.detach(), teacher).requires_grad


def test_only_similarities_count():
    """Equal features cost nothing; nor do rotated, stretched or otherwise embedded ones."""
    x = made(2, 9, 6)
    rotation = torch.linalg.qr(made(6, 6, seed=1)).Q
    lengths = made(2, 9, 1, seed=2).abs() + 0.1
    for same in (x, x @ rotation, x * lengths, torch.cat([x, torch.zeros(2, 9, 4)], dim=-1)):
        assert gram_loss(x, same).item() < 1e-12
    assert gram_loss(x, x.flip(1)).item() > 1e-3


def test_images_do_not_see_one_another():
    student, teacher = made(4, 6, 5), made(4, 6, 8, seed=1)
    alone = [gram_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(gram_loss(student, teacher), torch.stack(alone).mean())


def test_half_precision_is_computed_in_float32():
    x, y = made(2, 50, 64), made(2, 50, 64, seed=1)
    loss = gram_loss(x.bfloat16(), y.bfloat16())
    assert loss.dtype is torch.float32
    assert loss.item() == gram_loss(x.bfloat16().float(), y.bfloat16().float()).item()


def test_a_patch_without_direction_is_no_infinity():
    x = made(1, 3, 4)
    x[0, 0] = 0
    x.requires_grad_()
    loss = gram_loss(x, made(1, 3, 4, seed=1))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
