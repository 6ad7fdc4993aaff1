"""Every backbone by its kind. A new one is a file and a line here."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from pydantic import Field
from torch import nn

from dinoforge.base.config import Config
from dinoforge.base.random import torch_generator
from dinoforge.model.toy import Toy, ToyConfig
from dinoforge.model.vit import Vit, VitConfig

BACKBONES: dict[str, tuple[type[Config], type[nn.Module]]] = {
    "vit": (VitConfig, Vit),
    "toy": (ToyConfig, Toy),
}

if TYPE_CHECKING:
    BackboneConfig: TypeAlias = Any
else:
    _any = reduce(or_, (config for config, _ in BACKBONES.values()))
    BackboneConfig = Annotated[_any, Field(discriminator="kind")]


def empty(config: BackboneConfig) -> Any:
    """The backbone with memory for its weights but no values in it."""
    with torch.device("meta"):
        module = BACKBONES[config.kind][1](config)
    return module.to_empty(device="cpu")


def build(config: BackboneConfig, *, seed: int) -> Any:
    """The backbone with freshly drawn weights, a function of the seed alone."""
    module = empty(config)
    module.init_weights(torch_generator(seed, "backbone"))
    return module
