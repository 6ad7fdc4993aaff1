"""Official DINOv3 vision transformers: their state dicts, both ways (Siméoni et al. 2025).

They differ from DINOv2's in: rotary positions, whose periods lie in the file; registers called storage tokens; norms with an
eps of 1e-5; a gated feed-forward layer in three matrices; and a mask on the bias of queries, keys and values, which is 0 for
keys: the bias that counts is their product.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.model.layout import Composed, Layout, Parsed, joined
from dinoforge.model.official import config_of
from dinoforge.model.vit import VitConfig

NORM_EPS = 1e-5
"""Of the released weights; a state dict does not tell it."""

_PERIODS = "rope_embed.periods"
_GATED = re.compile(r"(blocks\.\d+\.mlp)\.w([12])\.(weight|bias)")


def _knows(state: Mapping[str, Tensor]) -> bool:
    return "storage_tokens" in state or _PERIODS in state


def _parse(state: Mapping[str, Tensor], _settings: Mapping[str, Any] | None, name: str) -> Parsed:
    if _PERIODS not in state or "cls_token" not in state:
        missing = ", ".join(key for key in (_PERIODS, "cls_token") if key not in state)
        raise WeightsError(f"{name} is no DINOv3 vision transformer: it has no {missing}.")
    found: dict[str, Tensor] = {}
    halves: dict[str, dict[int, Tensor]] = {}
    dropped: dict[str, str] = {}
    for key, value in state.items():
        gated = _GATED.fullmatch(key)
        if key == _PERIODS:
            dropped[key] = "computed from rope_base"
        elif key.endswith(".attn.qkv.bias_mask"):
            dropped[key] = "multiplied into the bias"
        elif gated is not None:
            halves.setdefault(f"{gated[1]}.w12.{gated[3]}", {})[int(gated[2]) - 1] = value
        else:
            found["register_tokens" if key == "storage_tokens" else key] = _masked(key, value, state)
    found |= {key: joined(parts, 2) for key, parts in halves.items()}
    width = state["cls_token"].shape[-1]
    heads, base = _rope_of(state[_PERIODS], width, name)
    known = {"positions": "rope", "norm_eps": NORM_EPS, "heads": heads, "rope_base": base}
    return Parsed(config_of(found, name, known), found, dropped)


def _masked(key: str, value: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """A bias as it counts; what its mask hides may be anything, no number included."""
    mask = state.get(f"{key}_mask")
    return value if mask is None else torch.where(mask == 0, torch.zeros_like(value), value * mask)


def periods(width: int, base: float) -> Tensor:
    """The periods of a head of so many channels: ``base`` to the powers from 0 up to 1 (excluded), a quarter as many."""
    return base ** (torch.arange(width // 4).float() / (width // 4))


def _rope_of(given: Tensor, width: int, name: str) -> tuple[int, float]:
    """Heads and base that these periods belong to."""
    head = 4 * len(given)
    base = float(given[1].double() ** len(given)) if len(given) > 1 else 100.0
    base = float(f"{base:.4g}")
    if width % head or base <= 1 or not torch.allclose(given.float(), periods(head, base), rtol=1e-3):
        told = ", ".join(f"{value:.4g}" for value in given[:3].tolist())
        raise WeightsError(
            f"{name}: rope_embed.periods of {len(given)} numbers ({told}, …) for a width of {width} are no powers of one base; "
            "such positions are not supported."
        )
    return width // head, base


def _compose(config: VitConfig, state: Mapping[str, Tensor]) -> Composed:
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(".mlp.w12.weight") or key.endswith(".mlp.w12.bias"):
            stem, _, kind = key.rpartition(".w12.")
            for number, half in enumerate(value.chunk(2), start=1):
                tensors[f"{stem}.w{number}.{kind}"] = half.clone()
            continue
        tensors["storage_tokens" if key == "register_tokens" else key] = value
        if key.endswith(".attn.qkv.bias"):
            mask = torch.ones_like(value)
            keys = mask.chunk(3)[1]
            if not value.chunk(3)[1].any():
                keys.zero_()
            tensors[f"{key}_mask"] = mask
    tensors[_PERIODS] = periods(config.width // config.heads, config.rope_base)
    return Composed(tensors)


LAYOUT = Layout("official DINOv3", "official", "rope", _knows, _parse, _compose)
