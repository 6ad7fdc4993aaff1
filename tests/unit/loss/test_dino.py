"""DINO's loss against its definition, worked cases, and laws."""

import math

import pytest
import torch

import plain
from dinoforge.loss.dino import DinoConfig, dino_loss

CONFIG = DinoConfig()


def made(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def total(student, target, config=CONFIG):
    terms = dino_loss(plain.scores(student), plain.given(target), config=config)
    torch.testing.assert_close(terms.total.detach(), terms.local + terms.wide)
    return terms.total


def slow(student, target, temperature):
    """One pair and one image at a time, in float64."""
    views, teachers, images = len(student), len(target), student.shape[1]
    pairs, found = teachers * (teachers - 1) + max((views - teachers) * teachers, 1), 0.0
    for s in range(views):
        for t in range(teachers):
            if s == t:
                continue
            for b in range(images):
                log_p = (student[s, b].double() / temperature).log_softmax(0)
                found -= (target[t, b].double() * log_p).sum().item() / images
    return found / pairs


@pytest.mark.parametrize("views", [(10, 2), (3, 2), (2, 2), (5, 3)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_its_definition(views, temperature):
    student, target = made(views[0], 4, 7), made(views[1], 4, 7, seed=1).softmax(-1)
    got = total(student, target, DinoConfig(student_temperature=temperature)).item()
    assert got == pytest.approx(slow(student, target, temperature), rel=1e-6)


def test_a_flat_student_costs_log_k():
    """By hand: whatever the target, a flat student pays ln K for each pair; without local views two pairs count as three."""
    target = made(2, 4, 8).softmax(-1)
    assert total(torch.zeros(6, 4, 8), target).item() == pytest.approx(math.log(8), rel=1e-6)
    assert total(torch.zeros(2, 4, 8), target).item() == pytest.approx(2 / 3 * math.log(8), rel=1e-6)


def test_reaches_every_view_and_no_teacher():
    student, target = made(5, 3, 6).requires_grad_(), made(2, 3, 6).softmax(-1).requires_grad_()
    total(student, target).backward()
    assert target.grad is None
    assert (student.grad.abs().sum((1, 2)) > 0).all()
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(5, 3), rtol=0, atol=1e-6)


def test_order_of_images_does_not_matter():
    student, target, order = made(4, 6, 5), made(2, 6, 5).softmax(-1), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(total(student, target), total(student[:, order], target[:, order]))


def test_survives_half_precision_and_large_scores():
    student, target = made(4, 3, 9, scale=3.0), made(2, 3, 9).softmax(-1)
    half = dino_loss(plain.scores(student.bfloat16()), plain.given(target), config=CONFIG)
    assert half.local.dtype == torch.float32
    assert half.total.item() == pytest.approx(total(student, target).item(), rel=2e-2)
    assert torch.isfinite(total(student * 1e4, target))
