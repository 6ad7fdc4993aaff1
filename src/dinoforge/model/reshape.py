"""A backbone for other images: of another native size, or with another number of channels.

Axes: C channels before, N after, D of a token, P by P pixels of a patch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dinoforge.base.errors import ConfigError
from dinoforge.model.layers import resize_positions
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, assembled


def at_pixels(backbone: Backbone, pixels: int) -> Backbone:
    """The position table resampled for another image side; at that side features are what they were, bit for bit.

    Raises:
        ConfigError: No multiple of the patch, or positions that are no table and take any size.
    """
    config: VitConfig = backbone.config
    if getattr(config, "positions", None) != "table":
        raise ConfigError(f"pixels={pixels} has no effect: this backbone has no table of positions, it takes any size.")
    changed = type(config).build(config.model_dump() | {"pixels": pixels})
    state = dict(backbone.module.state_dict())
    side = pixels // config.patch
    state["pos_embed"] = resize_positions(
        state["pos_embed"], grid=(side, side), offset=config.position_offset, antialias=config.position_antialias
    )
    return _with(backbone, changed, state, backbone.preprocessing)


def with_channels(backbone: Backbone, channels: int) -> Backbone:
    """The patch layer for another number of channels, so that copied channels change nothing.

    With more channels, channel j starts as channel j mod C of before, and those that share one share its weights: each takes
    them divided by how many they are, as I3D does along time (Carreira & Zisserman 2017, sec. 2.4). With fewer, the weights
    of the channels c with c mod N = j are added up. Either way an image whose channels are copies, j of j mod min(C, N), has
    the features that it had; a grey picture as one channel those of the same picture as RGB. Means and deviations are
    carried over; those that fall together are averaged, and the weights corrected for what that changes.

    Raises:
        ConfigError: It has as many already, or its channels are read with ranges that cannot be one.
    """
    config, before = backbone.config, backbone.config.channels
    if channels == before:
        raise ConfigError(f"channels={channels} has no effect: the backbone takes as many already.")
    if getattr(config, "kind", None) != "vit":
        raise ConfigError(f"channels={channels} is for vision transformers; this backbone is a {config.kind}.")
    changed = type(config).build(config.model_dump() | {"channels": channels})
    how = backbone.preprocessing
    mean, std = (torch.tensor(v, dtype=torch.float64).expand(before) for v in (how.mean, how.std))
    state = dict(backbone.module.state_dict())
    weight = state["patch_embed.proj.weight"].double()
    if channels > before:
        source = torch.arange(channels) % before
        copies = torch.bincount(source, minlength=before)
        weight = weight[:, source] / copies[source].view(1, -1, 1, 1)
        mean, std = mean[source], std[source]
        ranges = None if how.range is None or len(how.range) == 1 else tuple(how.range[c] for c in source.tolist())
    else:
        weight, mean, std, shift = _folded(weight, mean, std, channels)
        if shift.any():
            state["patch_embed.proj.bias"] = (state["patch_embed.proj.bias"].double() + shift).float()
        ranges = _one_range(how, channels)
    state["patch_embed.proj.weight"] = weight.to(state["patch_embed.proj.weight"].dtype)
    values = {"channels": channels, "mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
    values["range"] = how.range if ranges is None else ranges
    return _with(backbone, changed, state, Preprocessing.build(how.model_dump() | values))


def _folded(weight: Tensor, mean: Tensor, std: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, means, deviations of fewer channels, and what the bias changes by.

    With ``y = sum_c w_c (x - m_c) / s_c`` and one mean m and deviation s instead, ``w = s sum_c w_c / s_c`` and the rest,
    ``sum_c w_c (m - m_c) / s_c`` over all pixels of the patch, is a constant.
    """
    shape = (weight.shape[0], channels, *weight.shape[2:])
    target = torch.arange(len(mean)) % channels
    many = torch.bincount(target, minlength=channels).double()
    new_mean = torch.zeros(channels, dtype=torch.float64).index_add(0, target, mean) / many
    new_std = torch.zeros(channels, dtype=torch.float64).index_add(0, target, std) / many
    scaled = weight / std.view(1, -1, 1, 1)
    summed = torch.zeros(shape, dtype=torch.float64).index_add(1, target, scaled) * new_std.view(1, -1, 1, 1)
    shift = (scaled * (new_mean[target] - mean).view(1, -1, 1, 1)).sum((1, 2, 3))
    return summed, new_mean, new_std, shift


def _one_range(how: Preprocessing, channels: int) -> Any:
    """The ranges of fewer channels; None leaves what is there."""
    if how.range is None or len(how.range) == 1:
        return None
    if any(pair != how.range[place % channels] for place, pair in enumerate(how.range)):
        raise ConfigError(
            f"channels={channels}: channels that fall together are read with different ranges, {how.range}."
        )
    return how.range[:channels]


def _with(backbone: Backbone, config: VitConfig, state: dict[str, Tensor], how: Preprocessing) -> Backbone:
    found = assembled(str(backbone.lineage.get("weights", "backbone")), config, state, how)
    return dataclasses.replace(found, lineage=backbone.lineage, loaded=backbone.loaded)
