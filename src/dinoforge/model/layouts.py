"""Every layout of weights, by one table; files and folders in any of them, opened. A new layout is a file and a line here.

Whatever is written is read back at once: what a layout cannot hold is an error, or is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dinoforge.base.errors import UserError, WeightsError, unknown
from dinoforge.base.files import new_folder, write_atomic, write_json, write_tensors
from dinoforge.model import huggingface, huggingface3, official, official3, timm
from dinoforge.model.layout import Composed, Layout, Parsed
from dinoforge.model.official import config_of, read_state, unwrapped
from dinoforge.model.vit import VitConfig

LAYOUTS: tuple[Layout, ...] = (
    official3.LAYOUT, official.LAYOUT, huggingface.LAYOUT, huggingface3.LAYOUT, timm.LAYOUT, timm.EVA,
)  # fmt: skip
FORMATS = tuple(sorted({layout.format for layout in LAYOUTS}))
"""Words for ``to=`` besides our own ``backbone``."""

_TRAINING = frozenset(
    {"drop_path", "drop_path_uniform", "init_std", "position_std", "rope_rescale", "untie_local_norm"}
)
_RESAMPLING = ("position_offset", "position_antialias")
_INDEX = "model.safetensors.index.json"
_FILES = ("model.safetensors", _INDEX, "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class Opened:
    """What lay in a file or folder of other code."""

    layout: Layout
    parsed: Parsed
    tensors: int
    """How many the file holds, of the backbone."""


def open_layout(place: Path) -> Opened:
    """A backbone out of a file, or out of a folder with ``config.json``; the layout is told by the tensors.

    Raises:
        WeightsError: Unsafe, damaged, or of no layout that is known.
    """
    folder = place if place.is_dir() else place.parent
    beside = place.is_dir() or (place.name in _FILES and (folder / "config.json").exists())
    settings = _settings(folder / "config.json") if beside else None
    if settings is not None and "architecture" in settings and "model_type" not in settings:
        settings = None  # timm's, which says of the architecture nothing that the tensors do not
    state, dropped = unwrapped(_read_folder(folder) if place.is_dir() else read_state(place))
    try:
        layout, parsed = _parsed(state, settings, place, folder)
    except UserError:
        raise
    except KeyError as error:
        told = place if settings is None else folder / "config.json"
        raise WeightsError(f"{told} does not describe a backbone: {error} is missing.") from None
    except Exception as error:  # settings may be of any type, tensors of any shape
        line = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise WeightsError(
            f"{place} is no backbone: a setting or tensor is not as its layout has it ({line})."
        ) from None
    return Opened(layout, Parsed(parsed.config, parsed.state, dropped | parsed.dropped), len(state))


def _parsed(
    state: Mapping[str, Tensor], settings: Mapping[str, Any] | None, place: Path, folder: Path
) -> tuple[Layout, Parsed]:
    """Tensors and settings as their layout has them; raises what odd ones lead to.

    Raises:
        WeightsError: They are of no layout that is known.
    """
    layout = next((layout for layout in LAYOUTS if layout.knows(state)), None)
    if layout is None or (settings is not None and layout.format != "huggingface"):
        kinds = (*huggingface.KINDS, huggingface3.MODEL_TYPE)
        if settings is not None and settings.get("model_type") not in kinds:
            raise WeightsError(
                f"{folder}: model_type {settings.get('model_type')!r} is not supported; {', '.join(kinds)} are. As a frozen "
                f"backbone it is hf:{folder}."
            )
        config_of(state, place)  # says what is missing
        raise WeightsError(f"{place} is of no known layout; {', '.join(known.name for known in LAYOUTS)} are known.")
    return layout, layout.parse(state, settings, str(place))


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} does not describe a model; it holds a {type(found).__name__}.")
    return found


def _read_folder(folder: Path) -> dict[str, Any]:
    """All tensors of a folder that ``save_pretrained`` wrote, in one file or several."""
    file = next((folder / name for name in _FILES if (folder / name).exists()), None)
    if file is None:
        raise WeightsError(f"{folder} has neither {' nor '.join(_FILES)}.")
    if file.name != _INDEX:
        return read_state(file)
    places = _settings(file).get("weight_map")
    if not isinstance(places, dict):
        raise WeightsError(f"{file} names no files.")
    found: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        found |= read_state(folder / Path(str(name)).name)  # never a file elsewhere
    return found


def composed(config: VitConfig, state: Mapping[str, Tensor], form: str) -> tuple[Layout, Composed, list[str]]:
    """A backbone in the layout that a word of ``to=`` stands for, and what differs there, in words.

    Raises:
        ConfigError: No such format.
        WeightsError: The layout would lose something.
    """
    if form not in FORMATS:
        raise unknown("format", form, ["backbone", *FORMATS])
    layout = next(one for one in LAYOUTS if one.format == form and one.positions == config.positions)
    found = layout.compose(config, state)
    if not layout.knows(found.tensors):
        raise WeightsError(f"{layout.name} cannot hold this backbone: it would be taken for another layout.")
    back = layout.parse(found.tensors, found.settings, layout.name)
    differs = _compared(config, back.config, layout)
    for name, tensor in state.items():
        said = any(lost.partition("[")[0] == name for lost in found.dropped)
        folded = "pos_embed[:, 0]" in found.dropped and name in {"cls_token", "pos_embed"}
        if not said and not folded and (name not in back.state or not torch.equal(back.state[name], tensor)):
            raise WeightsError(f"{layout.name} cannot hold {name} of this backbone: it comes back changed.")
    return layout, found, differs


def write_layout(place: Path, found: Composed, *, beside: Mapping[str, Any] | None = None) -> None:
    """Write a layout, whole or not at all: a folder where it has settings, else one file, ``.pth`` or ``.safetensors``.

    Args:
        beside: More JSON files of the folder, by name.

    Raises:
        RunError: It cannot be written.
    """
    if found.settings is not None:
        with new_folder(place) as folder:
            write_json(folder / "config.json", found.settings)
            for name, facts in (beside or {}).items():
                write_json(folder / name, facts)
            write_tensors(folder / "model.safetensors", found.tensors, metadata={"format": "pt"})
        return
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.tensors.items()}
    if place.suffix == ".safetensors":
        write_atomic(place, lambda file: file.write(save(tensors)))
    else:
        write_atomic(place, lambda file: torch.save(tensors, file))


def _compared(mine: VitConfig, theirs: VitConfig, layout: Layout) -> list[str]:
    """What is resampled otherwise there.

    Raises:
        WeightsError: Another architecture would be read out of it.
    """
    lost = []
    for name in type(mine).model_fields:
        value, back = getattr(mine, name), getattr(theirs, name)
        same = value == back or name in _TRAINING or name in _RESAMPLING
        same = same or (name == "layerscale" and None not in (value, back))
        same = same or (name == "pixels" and mine.positions == "rope")
        if not same:
            lost.append(f"backbone.{name}={value} (there it is {back})")
    if lost:
        raise WeightsError(
            f"{layout.name} has no form for {', '.join(lost)}; to=backbone holds everything"
            f"{', to=huggingface the norm' if 'norm_eps' in lost[0] and layout.format != 'huggingface' else ''}."
        )
    return [
        f"{name} {getattr(mine, name)} -> {getattr(theirs, name)}: away from {mine.pixels} pixels features differ a little"
        for name in _RESAMPLING
        if getattr(mine, name) != getattr(theirs, name)
    ]
