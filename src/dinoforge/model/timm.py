"""timm's vision transformers with the weights of DINOv2 and DINOv3: names and tensors, both ways.

DINOv2 there is the plain transformer under official names, without a mask token. With registers (``reg_token``) it has no
position for the class token, so that one is added to the token itself. Positions are resampled by size, antialiased.
DINOv3 there is the EVA class: LayerScale is ``gamma_1`` and ``gamma_2``, keys have no bias, and a gated feed-forward layer is
``fc1_g``, ``fc1_x`` and ``fc2``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.model.layout import TRAINING_ONLY, Composed, Layout, Parsed, backwards, joined, renamed
from dinoforge.model.official import config_of
from dinoforge.model.official3 import NORM_EPS
from dinoforge.model.vit import VitConfig

_NO_MASK = "timm has no mask token; features without masks do not use it"
_HEADS = ("head.", "fc_norm.", "head_dist.")
_WIDTH_7B, _HEADS_7B = 4096, 32
"""DINOv3's largest has heads of 128 channels, all others of 64, and no tensor tells them apart."""
_BLOCK = re.compile(r"(blocks\.\d+)\.(.+)")
_EVA = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
_EVA_GATED = _EVA | {"mlp.fc2": "mlp.w3"}
_EVA_PARTS = {
    "attn.q_bias": ("attn.qkv.bias", 0, 3),
    "attn.v_bias": ("attn.qkv.bias", 2, 3),
    "mlp.fc1_g.weight": ("mlp.w12.weight", 0, 2),
    "mlp.fc1_x.weight": ("mlp.w12.weight", 1, 2),
    "mlp.fc1_g.bias": ("mlp.w12.bias", 0, 2),
    "mlp.fc1_x.bias": ("mlp.w12.bias", 1, 2),
}


def _trunk(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without a classifier, and that."""
    dropped = {name: "a classifier on top" for name in state if name.startswith(_HEADS)}
    return {name: value for name, value in state.items() if name not in dropped}, dropped


def _knows(state: Mapping[str, Tensor]) -> bool:
    return "pos_embed" in state and "blocks.0.attn.qkv.weight" in state and "mask_token" not in state


def _parse(state: Mapping[str, Tensor], _settings: Mapping[str, Any] | None, name: str) -> Parsed:
    found, dropped = _trunk(state)
    gated = _packed(found)
    found = {_ours(key, gated=gated): value for key, value in found.items()}
    if "reg_token" in state and "pos_embed" in found:
        table = found["pos_embed"]
        found["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    if "cls_token" in found:
        found["mask_token"] = torch.zeros_like(found["cls_token"][0])
    return Parsed(config_of(found, name, {"position_offset": 0.0, "position_antialias": True}), found, dropped)


def _packed(state: Mapping[str, Tensor]) -> bool:
    """Whether the feed-forward layer is gated: its first matrix has both halves of what the second takes."""
    first, second = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def _ours(key: str, *, gated: bool) -> str:
    key = "register_tokens" if key == "reg_token" else key
    return key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.") if gated else key


def _compose(config: VitConfig, state: Mapping[str, Tensor]) -> Composed:
    tensors, dropped = _kept(state)
    if config.registers:
        tensors["reg_token"] = tensors.pop("register_tokens")
        table = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + table[:, :1]
        tensors["pos_embed"] = table[:, 1:].clone()
        dropped["pos_embed[:, 0]"] = "added to cls_token, as the model does"
    return Composed(
        {k.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): v for k, v in tensors.items()}, dropped
    )


def _kept(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    dropped = {"mask_token": _NO_MASK} | {name: TRAINING_ONLY for name in state if name.startswith("local_cls_norm.")}
    return {name: value for name, value in state.items() if name not in dropped}, dropped


LAYOUT = Layout("timm DINOv2", "timm", "table", _knows, _parse, _compose)


def _knows_eva(state: Mapping[str, Tensor]) -> bool:
    return "pos_embed" not in state and "blocks.0.attn.qkv.weight" in state and "mask_token" not in state


def _parse_eva(state: Mapping[str, Tensor], _settings: Mapping[str, Any] | None, name: str) -> Parsed:
    kept, dropped = _trunk(state)
    gated = "blocks.0.mlp.fc1_g.weight" in kept
    found: dict[str, Tensor] = {}
    joins: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    for key, value in kept.items():
        block = _BLOCK.fullmatch(key)
        if block is None:
            found["register_tokens" if key == "reg_token" else key] = value
        elif block[2] in _EVA_PARTS:
            ours, place, count = _EVA_PARTS[block[2]]
            joins.setdefault(f"{block[1]}.{ours}", {})[place] = value
            counts[f"{block[1]}.{ours}"] = count
        else:
            found[f"{block[1]}.{renamed(block[2], _EVA_GATED if gated else _EVA)}"] = value
    found |= {key: joined(parts, counts[key]) for key, parts in joins.items()}
    if "cls_token" in found:
        found["mask_token"] = torch.zeros_like(found["cls_token"][0])
    known: dict[str, Any] = {"positions": "rope", "norm_eps": NORM_EPS}
    if "cls_token" in found and found["cls_token"].shape[-1] == _WIDTH_7B:
        known["heads"] = _HEADS_7B
    return Parsed(config_of(found, name, known), found, dropped)


def _compose_eva(config: VitConfig, state: Mapping[str, Tensor]) -> Composed:
    kept, dropped = _kept(state)
    names = backwards(_EVA_GATED if config.ffn == "swiglu" else _EVA)
    parts: dict[str, dict[int, str]] = {}
    for theirs, (ours, place, _) in _EVA_PARTS.items():
        parts.setdefault(ours, {})[place] = theirs
    tensors: dict[str, Tensor] = {}
    for key, value in kept.items():
        block = _BLOCK.fullmatch(key)
        if block is None:
            tensors["reg_token" if key == "register_tokens" else key] = value
        elif block[2] in parts:
            count = 3 if block[2] == "attn.qkv.bias" else 2
            for place, part in enumerate(value.chunk(count)):
                if place in parts[block[2]]:
                    tensors[f"{block[1]}.{parts[block[2]][place]}"] = part.clone()
                elif part.any():
                    raise WeightsError(f"timm's DINOv3 has no form for the bias of keys, which {key} has.")
        else:
            tensors[f"{block[1]}.{renamed(block[2], names)}"] = value
    return Composed(tensors, dropped)


EVA = Layout("timm DINOv3", "timm", "rope", _knows_eva, _parse_eva, _compose_eva)
