"""Hugging Face's ``DINOv3ViTModel``: names, settings and tensors, both ways. Its keys have no bias where ours are all zero."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.model.layout import TRAINING_ONLY, Composed, Layout, Parsed, backwards, joined, renamed
from dinoforge.model.official import config_of, swiglu_ratio
from dinoforge.model.official3 import NORM_EPS
from dinoforge.model.vit import VitConfig

MODEL_TYPE = "dinov3_vit"
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "norm": "norm",
}
_INSIDE = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_PLAIN = _INSIDE | {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
_GATED = _INSIDE | {"mlp.down_proj": "mlp.w3"}
_PARTS = {
    "attention.q_proj": ("attn.qkv", 0),
    "attention.k_proj": ("attn.qkv", 1),
    "attention.v_proj": ("attn.qkv", 2),
}
_HALVES = {"mlp.gate_proj": ("mlp.w12", 0), "mlp.up_proj": ("mlp.w12", 1)}
_BLOCK = re.compile(r"(?:model\.)?layer\.(\d+)\.(.+)")
_COUNT = {"attn.qkv": 3, "mlp.w12": 2}


def _plain(name: str) -> str:
    """Without what the class stands in."""
    return name.removeprefix(f"{MODEL_TYPE}.").removeprefix("dinov3.")


def _knows(state: Mapping[str, Tensor]) -> bool:
    names = {_plain(name) for name in state}
    return "embeddings.patch_embeddings.weight" in names and "embeddings.position_embeddings" not in names


def _parse(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None, name: str) -> Parsed:
    found: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    joins: dict[str, dict[int, Tensor]] = {}
    gated = any(".mlp.gate_proj." in key for key in state)
    parts, inside = (_PARTS | _HALVES, _GATED) if gated else (_PARTS, _PLAIN)
    for full, value in state.items():
        key = _plain(full)
        block = _BLOCK.fullmatch(key)
        if key.startswith("classifier."):
            dropped[full] = "a classifier on top"
        elif key == "embeddings.register_tokens" and not value.numel():
            dropped[full] = "no registers"
        elif block is None:
            found[renamed(key, _OUTSIDE)] = value[0] if key == "embeddings.mask_token" else value
        elif (stem := block[2].rpartition(".")[0]) in parts:
            ours, place = parts[stem]
            joins.setdefault(f"blocks.{block[1]}.{ours}.{block[2].rpartition('.')[2]}", {})[place] = value
        else:
            found[f"blocks.{block[1]}.{renamed(block[2], inside)}"] = value
    found |= {key: joined(some, _COUNT[key.split(".", 2)[2].rpartition(".")[0]]) for key, some in joins.items()}
    return Parsed(config_of(found, name, _known(settings, name)), found, dropped)


def _known(settings: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """What ``config.json`` tells; the releases' values without one."""
    known: dict[str, Any] = {"positions": "rope", "norm_eps": NORM_EPS, "rope_base": 100.0}
    if settings is None:
        return known
    width, patch = settings["hidden_size"], settings["patch_size"]
    gated = settings.get("use_gated_mlp", False)
    act = "silu" if gated else "gelu"
    if settings.get("hidden_act", act) != act:
        raise WeightsError(f"{name}: hidden_act {settings['hidden_act']!r} is not supported; {act!r} is.")
    rope = settings.get("rope_theta") or (settings.get("rope_parameters") or {}).get("rope_theta", 100.0)
    hidden, pixels = settings["intermediate_size"], settings.get("image_size", 224)
    known |= {
        "width": width,
        "depth": settings["num_hidden_layers"],
        "heads": settings["num_attention_heads"],
        "patch": patch,
        "channels": settings.get("num_channels", 3),
        "registers": settings.get("num_register_tokens", 0),
        "ffn": "swiglu" if gated else "mlp",
        "ffn_ratio": swiglu_ratio(width, hidden, name) if gated else hidden / width,
        "layerscale": settings.get("layerscale_value", 1.0) or 1.0,
        "norm_eps": settings.get("layer_norm_eps", NORM_EPS),
        "rope_base": float(rope),
    }
    return known | ({"pixels": pixels} if isinstance(pixels, int) and pixels % patch == 0 else {})


def _compose(config: VitConfig, state: Mapping[str, Tensor]) -> Composed:
    if config.layerscale is None:
        raise WeightsError("Hugging Face's DINOv3ViT has no form for backbone.layerscale switched off.")
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    # Keys of no bias are theirs where ours have a bias of zero; the class takes one all the same.
    keys = [value.chunk(3)[1] for key, value in state.items() if key.endswith(".attn.qkv.bias")]
    key_bias = any(bool(part.any()) for part in keys)
    outside, inside = backwards(_OUTSIDE), backwards(_GATED if config.ffn == "swiglu" else _PLAIN)
    parts: dict[str, list[str]] = {"attn.qkv": list(_PARTS), "mlp.w12": list(_HALVES)}
    for key, value in state.items():
        if key.startswith("local_cls_norm."):
            dropped[key] = TRAINING_ONLY
        elif not key.startswith("blocks."):
            tensors[renamed(key, outside)] = value.unsqueeze(0) if key == "mask_token" else value
        else:
            _, number, rest = key.split(".", 2)
            stem, _, kind = rest.rpartition(".")
            if stem not in parts:
                tensors[f"layer.{number}.{renamed(rest, inside)}"] = value
                continue
            for theirs, part in zip(parts[stem], value.chunk(len(parts[stem])), strict=True):
                if (theirs, kind) != ("attention.k_proj", "bias") or key_bias:
                    tensors[f"layer.{number}.{theirs}.{kind}"] = part.clone()
    if not config.registers:  # the class has them in any case; none of them
        tensors["embeddings.register_tokens"] = torch.zeros(1, 0, config.width)
    return Composed(tensors, dropped, _settings(config, state, key_bias=key_bias))


def _settings(config: VitConfig, state: Mapping[str, Tensor], *, key_bias: bool) -> dict[str, Any]:
    gated = config.ffn == "swiglu"
    hidden = state["blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight"].shape[1]
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["DINOv3ViTModel"],
        "hidden_size": config.width,
        "intermediate_size": hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.pixels,
        "num_channels": config.channels,
        "num_register_tokens": config.registers,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "query_bias": config.qkv_bias,
        "key_bias": key_bias,
        "value_bias": config.qkv_bias,
        "proj_bias": config.proj_bias,
        "mlp_bias": config.ffn_bias,
        "layerscale_value": config.layerscale,
        "layer_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
    }


LAYOUT = Layout("Hugging Face DINOv3ViT", "huggingface", "rope", _knows, _parse, _compose)
