"""Official DINOv2 state dicts: read safely, freed of wrappers, recognised (docs/method.md lists the conventions)."""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.model.layers import swiglu_hidden
from dinoforge.model.layout import TRAINING_ONLY, Composed, Layout, Parsed
from dinoforge.model.vit import VitConfig

_HEAD_WIDTH = 64
"""Channels of an attention head in every released model; the weights themselves do not tell."""

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_state(path: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` or ``.pth`` file. No code inside a file is ever run.

    Raises:
        WeightsError: Absent, no regular file, damaged, or a pickle that holds more than tensors and plain values.
    """
    if not path.exists():
        raise WeightsError(f"weights file {path} does not exist.")
    if not path.is_file():  # a pipe may never end
        raise WeightsError(f"weights file {path} is no regular file.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols it then reads or refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, pickle.UnpicklingError) and _begins(path) in (b"PK", *_PICKLES):
            told = "is a pickle with code inside (or more than tensors), which is never run here"
            raise WeightsError(f"{path} {told}. Save its tensors as .safetensors.") from None
        told = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise WeightsError(f"{path} is no readable weights file ({told}).") from None
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not tensors by name.")
    nameless = next((key for key in found if not isinstance(key, str)), None)
    if nameless is not None:
        raise WeightsError(f"{path} holds something under {nameless!r}, which is no name; tensors have names as text.")
    return dict(found)


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def strip(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """A backbone's tensors under their plain names; ``unwrapped`` tells what was left out."""
    return unwrapped(found)[0]


def unwrapped(found: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A backbone's tensors under their plain names, and what is beside them: name and reason.

    Taken off: an outer dictionary (``teacher`` of training exports, ``model``, ``state_dict``), prefixes (``module.``,
    ``backbone.``, ``_orig_mod.``), heads beside the backbone, and chunk numbers (``blocks.1.3.`` is block 3).
    """
    dropped: dict[str, str] = {}
    for wrapper in ("teacher", "model", "state_dict"):
        if isinstance(found.get(wrapper), Mapping):
            dropped |= {name: f"beside {wrapper}" for name in found if name != wrapper}
            found = found[wrapper]
            break
    state = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    dropped |= {str(name): "no tensor by name" for name in found if name not in state}
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}
    if any(name.startswith("backbone.") for name in state):
        dropped |= {name: "no part of the backbone" for name in state if not name.startswith("backbone.")}
        state = {name[9:]: value for name, value in state.items() if name.startswith("backbone.")}
    return {unchunked(name): value for name, value in state.items()}, dropped


def unchunked(name: str) -> str:
    """``blocks.1.3.norm1.weight`` -> ``blocks.3.norm1.weight``; other names stay."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def config_of(state: Mapping[str, Tensor], name: Path | str, known: Mapping[str, Any] | None = None) -> VitConfig:
    """The architecture that a state dict belongs to, by its names and shapes.

    What shapes cannot tell is as in the releases: 64 channels a head; with registers, positions are resampled by size with
    antialiasing, without them by scale with an offset of 0.1.

    Args:
        known: Settings that the layout or a file beside the weights tells.

    Raises:
        WeightsError: It is no DINOv2 vision transformer.
    """
    told = dict(known or {})
    rope = told.get("positions") == "rope"
    needed = ["cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"]
    needed[1:1] = [] if rope else ["pos_embed"]
    missing = [key for key in needed if key not in state]
    if missing:
        begin = ", ".join(list(state)[:3]) or "nowhere"
        raise WeightsError(f"{name} is no DINOv2 backbone: it has no {', '.join(missing)}; its names begin {begin}.")
    for key, least in (("cls_token", 1), ("pos_embed", 2), ("register_tokens", 0)):
        if key in state and (state[key].ndim != 3 or state[key].shape[1] < least):
            raise WeightsError(
                f"{name} is no DINOv2 backbone: {key} is {list(state[key].shape)}, not [1, tokens, width]."
            )
    width = state["cls_token"].shape[-1]
    shape = state["patch_embed.proj.weight"].shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise WeightsError(
            f"{name} is no DINOv2 backbone: patch_embed.proj.weight is {list(shape)}, not [width, channels, patch, patch]."
        )
    blocks = [int(match.group(1)) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))]
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    settings = {
        "width": width,
        "depth": max(blocks) + 1,
        "heads": max(width // _HEAD_WIDTH, 1),
        "patch": shape[2],
        "channels": shape[1],
        "registers": registers,
        "layerscale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "untie_local_norm": "local_cls_norm.weight" in state,
        **_ffn_of(state, width, name),
    }
    if rope:
        settings["pixels"] = 224 if 224 % shape[2] == 0 else 16 * shape[2]
    else:
        settings["pixels"] = math.isqrt(state["pos_embed"].shape[1] - 1) * shape[2]
        settings |= {"position_offset": 0.0 if registers else 0.1, "position_antialias": bool(registers)}
    return VitConfig.build(settings | told)


def _ffn_of(state: Mapping[str, Tensor], width: int, name: Path | str) -> dict[str, Any]:
    """The settings of the feed-forward layers."""
    swiglu = "blocks.0.mlp.w12.weight" in state
    found = {
        "ffn": "swiglu" if swiglu else "mlp",
        "ffn_bias": f"blocks.0.mlp.{'w3' if swiglu else 'fc2'}.bias" in state,
    }
    if not swiglu:
        rows = state["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in state else 4 * width
        return found | {"ffn_ratio": rows / width}
    return found | {"ffn_ratio": swiglu_ratio(width, state["blocks.0.mlp.w12.weight"].shape[0] // 2, name)}


def swiglu_ratio(width: int, hidden: int, name: Path | str) -> float:
    """The ratio whose two thirds, rounded up to a multiple of 8, give this hidden width; a whole number where one does.

    Raises:
        WeightsError: No ratio gives it.
    """
    for ratio in (4.0, 3.0, 6.0, *range(1, 17), hidden * 1.5 / width):
        if swiglu_hidden(int(width * ratio)) == hidden:
            return float(ratio)
    raise WeightsError(
        f"{name} has a gated feed-forward layer of {hidden} channels; only multiples of 8 are supported."
    )


def _knows(state: Mapping[str, Tensor]) -> bool:
    return "pos_embed" in state and "blocks.0.attn.qkv.weight" in state and "mask_token" in state


def _parse(state: Mapping[str, Tensor], _settings: Mapping[str, Any] | None, name: str) -> Parsed:
    return Parsed(config_of(state, name), dict(state))


def _compose(_config: VitConfig, state: Mapping[str, Tensor]) -> Composed:
    local = {name: TRAINING_ONLY for name in state if name.startswith("local_cls_norm.")}
    return Composed({name: value for name, value in state.items() if name not in local}, local)


LAYOUT = Layout("official DINOv2", "official", "table", _knows, _parse, _compose)
