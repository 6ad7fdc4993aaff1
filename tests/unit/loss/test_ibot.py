"""iBOT's loss against its definition, worked cases, and laws."""

import math

import pytest
import torch

import plain
from dinoforge.data.batch import masked_positions
from dinoforge.loss.ibot import IbotConfig, ibot_loss

CONFIG = IbotConfig()


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ibot(student, target, weight, views):
    return ibot_loss(plain.scores(student), plain.given(target), weight, views=views, config=CONFIG)


def test_equals_its_definition():
    """For every view: the mean over its masked patches; then the mean over all views, masked or not."""
    masks = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    index, weight = masked_positions(masks.unsqueeze(0))
    student, target = made(4, 6), made(4, 6, seed=1).softmax(-1)
    want, row = 0.0, 0
    for view in masks:
        costs = []
        for _ in range(int(view.sum())):
            costs.append(-(target[row].double() * (student[row].double() / 0.1).log_softmax(0)).sum().item())
            row += 1
        want += sum(costs) / len(costs) / 3 if costs else 0
    assert index.tolist() == [0, 1, 3, 9]
    assert ibot(student, target, weight, views=3).item() == pytest.approx(want, rel=1e-6)


def test_a_flat_student_with_half_the_views_masked_costs_half_of_log_k():
    weight = torch.full((6,), 1 / 3)  # two masked views of three patches each, out of four views
    loss = ibot(torch.zeros(6, 5), made(6, 5).softmax(-1), weight, views=4)
    assert loss.item() == pytest.approx(math.log(5) / 2, rel=1e-6)


def test_nothing_masked_costs_nothing_and_still_has_a_gradient():
    student = made(0, 5).requires_grad_()
    loss = ibot(student, made(0, 5), made(0), views=4)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 5)


def test_survives_half_precision():
    student, target, weight = made(8, 9), made(8, 9, seed=1).softmax(-1), torch.full((8,), 0.5)
    half = ibot(student.bfloat16(), target, weight, views=4)
    assert half.dtype == torch.float32
    whole = ibot(student, target, weight, views=4)
    assert half.item() == pytest.approx(whole.item(), rel=2e-2)
