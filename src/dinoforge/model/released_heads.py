"""Heads that were released with DINOv2: linear classification, linear and DPT depth, linear segmentation.

A head takes the features of the blocks that it was trained on, ``Features`` of one image size each; parameter names are those
of the files. Segmentation and depth files are mmcv checkpoints, of which ``state_dict`` is read.

Axes: B images, H by W patches, D channels of a token, K classes or bins, Y by X cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.base.errors import WeightsError
from dinoforge.model.features import Features
from dinoforge.model.official import read_state
from dinoforge.model.weights import load_into

_FUSED = 256
"""Channels in the decoder of a DPT head."""


class LinearClassifier(nn.Module):
    """Scores of classes from the class tokens of the last blocks and the mean of the last one's patches."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.layers = layers
        self.weight = nn.Parameter(torch.empty(classes, (1 + layers) * width))
        self.bias = nn.Parameter(torch.empty(classes))

    def forward(self, layers: Sequence[Features]) -> Float[Tensor, "B K"]:
        """Of so many last blocks after the last norm, in the order of the network. Classes are in the order of their ids."""
        tokens = [features.image for features in layers] + [layers[-1].patches.mean((1, 2))]
        return F.linear(torch.cat(tokens, dim=-1), self.weight, self.bias)


class LinearDepth(nn.Module):
    """Depth as the mean of 256 evenly spaced bins, on a map of four cells a patch side."""

    def __init__(self, width: int, layers: int, bins: int) -> None:
        super().__init__()
        self.layers = layers
        self.conv_depth = nn.Conv2d(2 * width * layers, bins, 1)

    def forward(
        self, layers: Sequence[Features], *, nearest: float = 0.001, farthest: float = 10.0
    ) -> Float[Tensor, "B 1 Y X"]:
        """Metres. The far end is 10 for NYU Depth and 80 for KITTI (the released loader takes 80 for both)."""
        maps = torch.cat([_with_class(features) for features in layers], dim=1)
        maps = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
        share = self.conv_depth(maps).relu() + 0.1
        share = share / share.sum(1, keepdim=True)
        bins = torch.linspace(nearest, farthest, share.shape[1], device=share.device)
        return torch.einsum("bkyx,k->byx", share, bins).unsqueeze(1).clamp(nearest, farthest)


class LinearSegmentation(nn.Module):
    """Scores of classes for every patch: a batch norm and a linear layer."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.layers = layers
        self.bn = nn.BatchNorm2d(width * layers)
        self.conv_seg = nn.Conv2d(width * layers, classes, 1)

    def forward(self, layers: Sequence[Features]) -> Float[Tensor, "B K H W"]:
        """Of the last block, or of the last four."""
        maps = torch.cat([features.patches.permute(0, 3, 1, 2) for features in layers], dim=1)
        scores: Tensor = self.conv_seg(self.bn(maps))
        return scores


def _with_class(features: Features) -> Float[Tensor, "B twoD H W"]:
    """Every patch with the class token behind it."""
    patches = features.patches
    image = features.image[:, None, None].expand_as(patches)
    return torch.cat([patches, image], dim=-1).permute(0, 3, 1, 2)


class _Convolution(nn.Module):
    """A convolution one name deeper, as in the files."""

    def __init__(self, inside: int, outside: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Float[Tensor, "B d Y X"]) -> Float[Tensor, "B D Y X"]:
        found: Tensor = self.conv(x)
        return found


class _Reassemble(nn.Module):
    """Four maps of one size become a pyramid: four, two, one and half a cell a patch side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = [width // 8, width // 4, width // 2, width]
        self.projects = nn.ModuleList(_Convolution(width, channels, 1) for channels in wide)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(wide[0], wide[0], 4, stride=4),
                nn.ConvTranspose2d(wide[1], wide[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(wide[3], wide[3], 3, stride=2, padding=1),
            ]
        )
        self.readout_projects = nn.ModuleList(nn.Sequential(nn.Linear(2 * width, width), nn.GELU()) for _ in wide)

    def forward(self, layers: Sequence[Features]) -> list[Tensor]:
        found = []
        for features, readout, project, resize in zip(
            layers, self.readout_projects, self.projects, self.resize_layers, strict=True
        ):
            x = readout(_with_class(features).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            found.append(resize(project(x)))
        return found


class _Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Convolution(_FUSED, _FUSED, 3, bias=False)
        self.conv2 = _Convolution(_FUSED, _FUSED, 3, bias=False)

    def forward(self, x: Float[Tensor, "B D Y X"]) -> Float[Tensor, "B D Y X"]:
        found: Tensor = x + self.conv2(self.conv1(x.relu()).relu())
        return found


class _Fusion(nn.Module):
    """The map so far and the one of this level, together at twice the size; the deepest level has only the first."""

    def __init__(self, *, lateral: bool) -> None:
        super().__init__()
        self.project = _Convolution(_FUSED, _FUSED, 1)
        if lateral:
            self.res_conv_unit1 = _Residual()
        self.res_conv_unit2 = _Residual()

    def forward(self, x: Float[Tensor, "B D Y X"], level: Float[Tensor, "B D y x"] | None) -> Tensor:
        if level is not None:
            if level.shape != x.shape:  # an odd number of patches was halved and doubled
                level = F.interpolate(level, size=x.shape[-2:], mode="bilinear", align_corners=False)
            x = x + self.res_conv_unit1(level)
        x = F.interpolate(self.res_conv_unit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        found: Tensor = self.project(x)
        return found


class _DepthConvolutions(nn.Module):
    """From fused maps to one number a cell, at twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(_FUSED, 128, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(128, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )

    def forward(self, x: Float[Tensor, "B D y x"]) -> Float[Tensor, "B 1 Y X"]:
        found: Tensor = self.head(x)
        return found


class DptDepth(nn.Module):
    """Depth by a convolutional decoder over four blocks (Ranftl et al. 2021), regressed, not in bins."""

    layers = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reassemble_blocks = _Reassemble(width)
        wide = [width // 8, width // 4, width // 2, width]
        self.convs = nn.ModuleList(_Convolution(channels, _FUSED, 3, bias=False) for channels in wide)
        self.fusion_blocks = nn.ModuleList(_Fusion(lateral=place > 0) for place in range(4))
        self.project = _Convolution(_FUSED, _FUSED, 3)
        self.conv_depth = _DepthConvolutions()

    def forward(
        self, layers: Sequence[Features], *, nearest: float = 0.001, farthest: float = math.inf
    ) -> Float[Tensor, "B 1 Y X"]:
        """Metres, on sixteen cells a patch side; the four blocks in the order of the network."""
        levels = [conv(level) for conv, level in zip(self.convs, self.reassemble_blocks(layers), strict=True)]
        x = self.fusion_blocks[0](levels[-1], None)
        for fusion, level in zip(list(self.fusion_blocks)[1:], levels[-2::-1], strict=True):
            x = fusion(x, level)
        depth: Tensor = self.conv_depth(self.project(x).relu()).relu() + nearest
        return depth.clamp(max=farthest)


ReleasedHead = LinearClassifier | LinearDepth | LinearSegmentation | DptDepth
"""Each has ``layers``: how many blocks' features it takes."""


def read_head(path: Path, *, width: int) -> ReleasedHead:
    """A released head, by the names in its file; frozen.

    Args:
        width: Channels of a token of the backbone it is for.

    Raises:
        WeightsError: Unsafe, damaged, no head that is known, or one for another width.
    """
    found = read_state(path)
    state = found.get("state_dict", found)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: its state_dict holds a {type(state).__name__}, not tensors by name.")
    tensors = {name.removeprefix("decode_head."): value for name, value in state.items() if isinstance(value, Tensor)}
    for mark, build in _HEADS.items():
        if mark in tensors:
            head = build(tensors, width, path)
            load_into(head, tensors, name=str(path))
            head.requires_grad_(False).eval()
            return head
    begin = ", ".join(list(tensors)[:3]) or "nowhere"
    raise WeightsError(f"{path} is no released head (none of {', '.join(_HEADS)}); its names begin {begin}.")


def _parts(weight: Tensor, width: int, path: Path, allowed: Sequence[int]) -> int:
    """How many times the width a head takes."""
    count = weight.shape[1] / width
    if count not in allowed:
        fits = " or ".join(str(number * width) for number in allowed)
        raise WeightsError(f"{path} takes {weight.shape[1]} channels; a backbone of width {width} gives {fits}.")
    return int(count)


def _classifier(tensors: Mapping[str, Tensor], width: int, path: Path) -> ReleasedHead:
    weight = tensors["weight"]
    return LinearClassifier(width, _parts(weight, width, path, (2, 5)) - 1, len(weight))


def _linear_depth(tensors: Mapping[str, Tensor], width: int, path: Path) -> ReleasedHead:
    weight = tensors["conv_depth.weight"]
    return LinearDepth(width, _parts(weight, width, path, (2, 8)) // 2, len(weight))


def _segmentation(tensors: Mapping[str, Tensor], width: int, path: Path) -> ReleasedHead:
    weight = tensors["conv_seg.weight"]
    return LinearSegmentation(width, _parts(weight, width, path, (1, 4)), len(weight))


def _dpt(tensors: Mapping[str, Tensor], width: int, path: Path) -> ReleasedHead:
    _parts(tensors["reassemble_blocks.projects.0.conv.weight"], width, path, (1,))
    return DptDepth(width)


_HEADS: dict[str, Callable[[Mapping[str, Tensor], int, Path], ReleasedHead]] = {
    "reassemble_blocks.projects.0.conv.weight": _dpt,
    "conv_depth.weight": _linear_depth,
    "conv_seg.weight": _segmentation,
    "weight": _classifier,
}
"""Every head by a name that only its files have."""
