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
from dinoforge.model.vit import VitConfig

_HEAD_WIDTH = 64
"""Channels of an attention head in every released model; the weights themselves do not tell."""

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_state(path: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` or ``.pth`` file. No code inside a file is ever run.

    Raises:
        WeightsError: Absent, damaged, or a pickle that holds more than tensors and plain values.
    """
    if not path.exists():
        raise WeightsError(f"weights file {path} does not exist.")
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
    return dict(found)


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def strip(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """A backbone's tensors under their plain names.

    Taken off: an outer dictionary (``teacher`` of training exports, ``model``, ``state_dict``), prefixes (``module.``,
    ``backbone.``, ``_orig_mod.``), heads beside the backbone, and chunk numbers (``blocks.1.3.`` is block 3).
    """
    for wrapper in ("teacher", "model", "state_dict"):
        if isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}
    if any(name.startswith("backbone.") for name in state):
        state = {name[9:]: value for name, value in state.items() if name.startswith("backbone.")}
    return {unchunked(name): value for name, value in state.items()}


def unchunked(name: str) -> str:
    """``blocks.1.3.norm1.weight`` -> ``blocks.3.norm1.weight``; other names stay."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def config_of(state: Mapping[str, Tensor], name: Path | str) -> VitConfig:
    """The architecture that a state dict belongs to, by its names and shapes.

    What shapes cannot tell is as in the releases: 64 channels a head; with registers, positions are resampled by size with
    antialiasing, without them by scale with an offset of 0.1.

    Raises:
        WeightsError: It is no DINOv2 vision transformer.
    """
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        begin = ", ".join(list(state)[:3]) or "nowhere"
        raise WeightsError(f"{name} is no DINOv2 backbone: it has no {', '.join(missing)}; its names begin {begin}.")
    width = state["cls_token"].shape[-1]
    channels, patch = state["patch_embed.proj.weight"].shape[1:3]
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    blocks = [int(match.group(1)) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))]
    swiglu = "blocks.0.mlp.w12.weight" in state
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0] / width if "blocks.0.mlp.fc1.weight" in state else 4.0
    return VitConfig.build(
        {
            "width": width,
            "depth": max(blocks) + 1,
            "heads": max(width // _HEAD_WIDTH, 1),
            "patch": patch,
            "pixels": side * patch,
            "channels": channels,
            "registers": registers,
            "ffn": "swiglu" if swiglu else "mlp",
            "ffn_ratio": hidden,
            "layerscale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
            "proj_bias": "blocks.0.attn.proj.bias" in state,
            "ffn_bias": f"blocks.0.mlp.{'w3' if swiglu else 'fc2'}.bias" in state,
            "position_offset": 0.0 if registers else 0.1,
            "position_antialias": bool(registers),
        }
    )
