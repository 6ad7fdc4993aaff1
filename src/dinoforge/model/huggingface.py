"""Hugging Face's ``Dinov2Model`` and ``Dinov2WithRegistersModel``: names, settings and tensors, both ways.

Both resample positions by size; the one with registers antialiases, the one without does not (and lacks the official offset
of 0.1, so its features differ a little from the official code's away from the native size).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.model.layout import TRAINING_ONLY, Composed, Layout, Parsed
from dinoforge.model.official import config_of
from dinoforge.model.vit import VitConfig

KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
"""``model_type`` in ``config.json`` and the class of ``transformers``."""

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_INSIDE = {
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attention.o_proj": "attn.proj",
    "mlp.down_proj": "mlp.w3",
    "norm1": "norm1",
    "norm2": "norm2",
}
_PARTS = {
    "attention.attention.query": ("attn.qkv", 0),
    "attention.attention.key": ("attn.qkv", 1),
    "attention.attention.value": ("attn.qkv", 2),
    # What the classes of transformers 5 call them in memory; on disk they keep the published names.
    "attention.q_proj": ("attn.qkv", 0),
    "attention.k_proj": ("attn.qkv", 1),
    "attention.v_proj": ("attn.qkv", 2),
    "mlp.gate_proj": ("mlp.w12", 0),
    "mlp.up_proj": ("mlp.w12", 1),
}
"""Matrices that are one in the official layout, with their place in it."""
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")


def knows(state: Mapping[str, Tensor]) -> bool:
    """Whether these are its names."""
    return any(name.endswith("embeddings.position_embeddings") for name in state)


def parse(state: Mapping[str, Tensor], settings: Mapping[str, Any] | None, name: str) -> Parsed:
    """Architecture and tensors, under official names.

    Raises:
        WeightsError: Another kind of model, or of activation.
    """
    found = from_names(state)
    dropped = {key: "a classifier on top" for key in state if key.startswith("classifier.")}
    if settings is not None:
        act = settings.get("hidden_act", "gelu")
        if act != "gelu" and not settings.get("use_swiglu_ffn"):  # gated layers have their own
            raise WeightsError(f"{name}: hidden_act {act!r} is not supported; 'gelu' is.")
        return Parsed(config_from(settings), found, dropped)
    # A file alone tells what its shapes tell; the class with registers antialiases, the other does not.
    known = {"position_offset": 0.0, "position_antialias": "register_tokens" in found}
    return Parsed(config_of(found, name, known), found, dropped)


def compose(config: VitConfig, state: Mapping[str, Tensor]) -> Composed:
    """Settings and tensors that ``from_pretrained`` reads.

    Raises:
        WeightsError: Something that Hugging Face's classes cannot express.
    """
    settings = config_to(config)
    settings["architectures"] = [KINDS[settings["model_type"]]]
    local = {name: TRAINING_ONLY for name in state if name.startswith("local_cls_norm.")}
    return Composed(to_names(state), local, settings)


def config_from(settings: Mapping[str, Any]) -> VitConfig:
    """Our settings from Hugging Face's.

    Raises:
        WeightsError: Another kind of model.
    """
    kind = settings.get("model_type")
    if kind not in KINDS:
        raise WeightsError(f"model_type {kind!r} is not supported; {' and '.join(KINDS)} are.")
    return VitConfig.build(
        {
            "width": settings["hidden_size"],
            "depth": settings["num_hidden_layers"],
            "heads": settings["num_attention_heads"],
            "patch": settings["patch_size"],
            "pixels": settings["image_size"],
            "channels": settings.get("num_channels", 3),
            "registers": settings.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0,
            "ffn": "swiglu" if settings.get("use_swiglu_ffn") else "mlp",
            "ffn_ratio": settings.get("mlp_ratio", 4),
            "layerscale": settings.get("layerscale_value", 1.0) or 1.0,
            "qkv_bias": settings.get("qkv_bias", True),
            "norm_eps": settings.get("layer_norm_eps", 1e-6),
            "position_offset": 0.0,
            "position_antialias": kind == "dinov2_with_registers",
        }
    )


def config_to(config: VitConfig) -> dict[str, Any]:
    """Hugging Face's settings from ours.

    Raises:
        WeightsError: Something that its classes cannot express.
    """
    lacking = [name for name in ("proj_bias", "ffn_bias") if not getattr(config, name)]
    if lacking or config.layerscale is None:
        raise WeightsError(
            f"Hugging Face's Dinov2 has no form for backbone.{', '.join(lacking) or 'layerscale'} switched off."
        )
    if config.positions != "table":
        raise WeightsError(f"Hugging Face's Dinov2 has no form for backbone.positions={config.positions}.")
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    return {
        "model_type": "dinov2_with_registers" if config.registers else "dinov2",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.pixels,
        "num_channels": config.channels,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "mlp_ratio": int(config.ffn_ratio) if config.ffn_ratio == int(config.ffn_ratio) else config.ffn_ratio,
        "layerscale_value": config.layerscale,
        "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        **registers,
    }


def from_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under official names; queries, keys and values become one matrix. Names that it does not have stay."""
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    for full, value in state.items():
        name = full.removeprefix("dinov2.").removeprefix("dinov2_with_registers.")
        if name.startswith("classifier."):
            continue  # a classification head on top
        official, place = _official(name)
        if official is None:
            found[full] = value
        elif place is None:
            found[official] = value
        else:
            joined.setdefault(official, {})[place] = value
    for official, parts in joined.items():
        found[official] = torch.cat([parts[place] for place in sorted(parts)])
    if "cls_token" in found:  # saved without one where none was used
        found.setdefault("mask_token", torch.zeros_like(found["cls_token"][0]))
    return found


def _official(name: str) -> tuple[str | None, int | None]:
    """A tensor's official name, and its place where it is only a part there."""
    for theirs, ours in _OUTSIDE.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name[len(theirs) :], None
    block = _BLOCK.fullmatch(name)
    if block is None:
        return None, None
    number, inside = block.groups()
    stem, _, kind = inside.rpartition(".")
    if stem in _PARTS:
        ours, place = _PARTS[stem]
        return f"blocks.{number}.{ours}.{kind}", place
    for theirs, ours in _INSIDE.items():
        if theirs in {inside, stem}:
            return f"blocks.{number}.{ours}{inside[len(theirs) :]}", None
    return None, None


def to_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under Hugging Face's names, from official ones; what only training uses has none and is left out."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("local_cls_norm."):
            continue
        if not name.startswith("blocks."):
            theirs = next(t for t, ours in _OUTSIDE.items() if name == ours or name.startswith(ours + "."))
            found[theirs + name[len(_OUTSIDE[theirs]) :]] = value
            continue
        _, number, inside = name.split(".", 2)
        start = f"encoder.layer.{number}."
        if inside.startswith("attn.qkv."):
            kind = inside.removeprefix("attn.qkv.")
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{start}attention.attention.{part}.{kind}"] = third.clone()
        else:
            theirs = next(t for t, ours in _INSIDE.items() if inside == ours or inside.startswith(ours + "."))
            found[start + theirs + inside[len(_INSIDE[theirs]) :]] = value
    return found


LAYOUT = Layout("Hugging Face Dinov2", "huggingface", "table", knows, parse, compose)
