"""08_param_groups: every parameter's multipliers, and how they are merged into groups."""

import json
import re

import pytest
import torch
from recorded import files, needs_recordings
from torch import nn

from dinoforge.base.schedule import Cosine
from dinoforge.train.optim import multipliers, optimizer
from dinoforge.train.plan import PlanConfig

pytestmark = needs_recordings


def unchunked(name: str) -> str:
    """``blocks.1.3.norm1.weight`` -> ``blocks.3.norm1.weight``."""
    return re.sub(r"^((?:\w+\.)?blocks)\.\d+\.(\d+)\.", r"\1.\2.", name)


def cases():
    for path in files("08_param_groups/*.json"):
        for name in json.loads(path.read_text()):
            yield pytest.param(path, name, id=name)


class Named(nn.Module):
    """A module with the given parameters, whose names may hold dots."""

    def __init__(self, parameters):
        super().__init__()
        for name, shape in parameters:
            here = self
            *folders, leaf = name.split(".")
            for folder in folders:
                if not hasattr(here, folder):
                    here.add_module(folder, nn.Module())
                here = getattr(here, folder)
            here.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))


@pytest.mark.parametrize(("path", "name"), list(cases()))
def test_groups(path, name):
    case = json.loads(path.read_text())[name]
    stated = dict(part.split("=") for part in name.split("|")[1:])
    plan = PlanConfig(
        images=1,
        layer_decay=float(stated["layerwise_decay"]),
        patch_rate=float(stated["patch_embed_lr_mult"]),
        learning_rate=Cosine(peak=1.0, end=1.0),
    )
    blocks = case["config"]["depth"] if isinstance(case["config"], dict) else 0
    for parameter in case["params"]:
        got = multipliers(unchunked(parameter["name"]), blocks=blocks, plan=plan)
        assert got.rate == pytest.approx(parameter["lr_multiplier"], rel=1e-12), parameter
        assert got.decay == parameter["wd_multiplier"], parameter
        assert got.last_layer == parameter["is_last_layer"], parameter

    student = nn.Module()
    student.add_module("part", Named([(unchunked(p["name"]), p["shape"]) for p in case["params"]]))
    by_tensor = {id(tensor): name for name, tensor in student.part.named_parameters()}
    order = {unchunked(p["name"]): number for number, p in enumerate(case["params"])}
    got = [
        (group["multipliers"].rate, group["multipliers"].decay, group["multipliers"].last_layer,
         sorted((by_tensor[id(tensor)] for tensor in group["params"]), key=order.get))
        for group in optimizer(student, plan).param_groups
    ]  # fmt: skip
    want = [
        (g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"], [unchunked(n) for n in g["names"]])
        for g in case["fused"]
    ]
    # The order of groups follows that of the parameters, which a stand-in module cannot reproduce; the groups themselves can.
    assert sorted(map(repr, got)) == sorted(map(repr, want))
