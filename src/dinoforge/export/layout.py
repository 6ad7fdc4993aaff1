"""What targets that are layouts of weights share: the layout is composed and written by the same code as ``convert``'s."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dinoforge.base.errors import WeightsError
from dinoforge.export.target import Written, transformer
from dinoforge.model.layouts import composed, write_layout
from dinoforge.model.table import BACKBONES
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone


def expressible(name: str, backbone: Backbone) -> None:
    """Refuse what the layout, or the description of pictures beside it, has no form for.

    Raises:
        WeightsError: It has none.
    """
    transformer(name, backbone)
    try:
        composed(backbone.config, backbone.module.state_dict(), name)
    except WeightsError as error:  # without what it says of other words for convert's to=
        raise WeightsError(f"to={name}: {str(error).partition('; to=')[0].rstrip('.')}.") from None
    if backbone.preprocessing.range is not None:
        raise WeightsError(
            f"to={name} has no form for pictures read with range={backbone.preprocessing.range}; to=onnx and to=program leave "
            "reading to you."
        )


def written(folder: Path, backbone: Backbone, form: str, *, file: str = "", beside: Mapping[str, Any]) -> Written:
    """Write the layout into a folder.

    Args:
        file: Name of the file of a layout that has no settings.
        beside: More JSON files, by name.
    """
    layout, found, differs = composed(backbone.config, backbone.module.state_dict(), form)
    if found.settings is None:
        write_layout(folder / file, found)
    else:
        write_layout(folder, found, beside=beside)
    there: VitConfig = layout.parse(found.tensors, found.settings, layout.name).config
    dropped = [f"{name} ({why})" for name, why in found.dropped.items()]
    return Written(_by_its_rules(backbone, there) if differs else backbone, differs, dropped)


def with_factors(backbone: Backbone) -> Backbone:
    """The same backbone with LayerScale, where it has none: factors of one, which change no feature by a bit."""
    config: VitConfig = backbone.config
    if config.layerscale is not None:
        return backbone
    state = dict(backbone.module.state_dict())
    state |= {f"blocks.{n}.{ls}.gamma": torch.ones(config.width) for n in range(config.depth) for ls in ("ls1", "ls2")}
    return _made(backbone, config.model_copy(update={"layerscale": 1.0}), state)


def _by_its_rules(backbone: Backbone, there: VitConfig) -> Backbone:
    """The same weights with the position table resampled as the layout's own code does."""
    rules = {"position_offset": there.position_offset, "position_antialias": there.position_antialias}
    return _made(backbone, backbone.config.model_copy(update=rules), backbone.module.state_dict())


def _made(backbone: Backbone, config: VitConfig, state: Mapping[str, Any]) -> Backbone:
    """Another architecture of these very tensors."""
    with torch.device("meta"):
        module = BACKBONES[config.kind][1](config)
    module.load_state_dict(state, assign=True)
    return dataclasses.replace(backbone, module=module.eval(), config=config, known=None)
