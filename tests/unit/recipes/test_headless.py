"""What a teacher whose features are matched costs: its own architecture, or a ViT in its place; maps in place of heads."""

import pytest
import torch
from torch import nn

from dinoforge.base.config import with_settings
from dinoforge.base.hardware import Choice
from dinoforge.model.foreign import Foreign, ForeignConfig, Output
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing
from dinoforge.recipes import cost, hardware
from dinoforge.recipes.headless import counted_as
from dinoforge.recipes.table import recipe
from dinoforge.train.assembly import student_of
from dinoforge.train.distil import Design
from dinoforge.train.forecast import forecast

WIDE = VitConfig(width=48, depth=3, heads=2, patch=7, pixels=28)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def job(monkeypatch, teacher=WIDE):
    """Of a small student of that teacher."""
    made = with_settings(
        recipe("vit_small.matched"),
        {"backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "backbone.pixels": 56,
         "data.augment.global_pixels": 56, "plan.batch": 16},
    )  # fmt: skip
    monkeypatch.setattr(cost, "_teacher", lambda made: Design(teacher, made.objective))
    return cost.job(made, torch.device("cpu"), Choice("fp32", "asked for"))


def test_ours_count_as_they_are():
    assert counted_as(Backbone(build(WIDE, seed=0), WIDE, Preprocessing())) is WIDE


def test_others_count_as_a_vit_of_their_width_and_size():
    model = nn.Sequential(*(nn.Linear(48, 48 * 12) for _ in range(5)))  # as many as five blocks of a ViT
    config = ForeignConfig(model="hf Some", width=48, patch=7, pixels=28)
    found = counted_as(
        Backbone(Foreign("hf:x", model, lambda _, images: Output(images, 0, None)), config, Preprocessing())
    )
    assert (found.width, found.patch, found.depth) == (48, 7, 5)
    # and around them its positions, patch embedding, registers and norms
    assert parameters(model) == pytest.approx(parameters(build(found, seed=0)), rel=0.1)


def test_memory_and_bytes_are_those_of_maps_and_a_bare_teacher(monkeypatch):
    its = job(monkeypatch)
    student = student_of(build(its.backbone, seed=0), its.objective, seed=0, how=its.distil, width=48)
    teacher = parameters(build(WIDE, seed=0))
    memory = forecast(its).memory
    assert memory.weights == pytest.approx(4 * parameters(student), rel=0.01)
    assert memory.teacher == pytest.approx(4 * (teacher + parameters(student)), rel=0.01)  # and the average
    maps = parameters(student) - parameters(student.backbone)
    assert hardware._heads(its) == maps == 2 * 17 * 48
    shared = cost.replace(its, ranks=2)
    wider = cost.replace(shared, teacher=Design(WIDE.model_copy(update={"depth": 4}), its.objective))
    block = (parameters(build(wider.teacher.backbone, seed=0)) - teacher) * 4
    assert hardware.sent_bytes(wider) - hardware.sent_bytes(shared) == block // 2
    assert hardware.sent_bytes(shared) == pytest.approx(4 * (2 * parameters(student) + teacher) // 2, abs=4)
