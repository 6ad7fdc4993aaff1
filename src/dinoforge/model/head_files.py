"""The noun ``Head``: what a frozen backbone's tokens become, in a folder that says all that is needed to use it.

``head.safetensors`` holds the weights, ``head.json`` the facts: of which kind the head is, which blocks it sees, what its
outputs mean, at which size it was trained, and on which backbone. Files released with DINOv2 are opened too; what they do not
say is as it was published, and their range of depth is asked for. No code inside a file is ever run.

Axes: B images, K classes, Y by X cells of a map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, WeightsError, unknown
from dinoforge.base.files import new_folder, write_json, write_tensors
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.model.features import Features
from dinoforge.model.mask2former import mask2former_of
from dinoforge.model.official import read_state
from dinoforge.model.released_heads import DptDepth, LinearClassifier, LinearDepth, LinearSegmentation, read_head
from dinoforge.model.weights import Backbone, Preprocessing, fingerprint, load_into

Kind = Literal["classification", "segmentation", "depth"]
_BINS = 256
_SEEN_BY_FOUR = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
"""Blocks that the released depth heads of four blocks see, by how many a backbone has."""
_SEGMENTED = {"short_side": 512, "window": 512, "stride": 341}
_INDOORS, _STREETS, _FAR = 480, 352, 40.0
"""Pixels of the short sides at which released heads were tested: NYU Depth, KITTI; and metres of depth between the two."""
_WEIGHTS, FACTS = "head.safetensors", "head.json"
_ADVICE = f"give a folder with {_WEIGHTS} and {FACTS}, or a head that was released with DINOv2 (.pth)"


class HeadFacts(Config):
    """What a head is, in ``head.json``."""

    kind: Kind
    """What it tells: a class of the image, a class of every pixel, or the depth of every pixel."""
    family: str = "linear"
    """Which module, of those of its kind in ``FAMILIES``."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further arguments of the module."""
    width: int = Field(gt=0)
    """Channels of a token of its backbone."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks that it sees, counted from 0, in the order of the network; none: what a network gives that shows no blocks."""
    norm: bool = True
    """Whether the backbone's last norm is applied to each of them."""
    classes: tuple[str, ...] = ()
    """Names, in the order of its outputs; none for depth."""
    labels: tuple[int, ...] = ()
    """Their numbers in labels and masks; none: 0, 1, 2 …"""
    palette: tuple[tuple[int, int, int], ...] = ()
    """Their colours, red, green and blue from 0 to 255; none: some that differ."""
    ignore: int | None = None
    """Number in masks of pixels that were not learnt from."""
    range: tuple[float, float] | None = None
    """Least and largest depth."""
    unit: Literal["metres", "disparity"] = "metres"
    """Of depth."""
    bins: int = Field(default=_BINS, gt=1)
    """Of a depth head that shares depth out over bins."""
    short_side: int | None = Field(default=None, gt=0)
    """Pixels to which the short side of an image is resized; null: its own."""
    window: int | None = Field(default=None, gt=0)
    """Side in pixels of the square that is seen at once; null: the whole image."""
    stride: int | None = Field(default=None, gt=0)
    """Pixels between windows; null: two thirds of one."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    """Sizes, relative to ``short_side``, at which a picture is seen; the answers are averaged."""
    flip: bool = False
    """Whether a picture is seen mirrored too, and the answers averaged."""
    preprocessing: Preprocessing | None = None
    """How its images were normalised; null: as the backbone says."""
    backbone: str | None = None
    """Fingerprint of the backbone that it was trained on; null: not known."""
    data: str | None = None
    """Fingerprint of what it was trained on."""
    protocol: str = ""
    """How it was trained, in words."""

    @model_validator(mode="after")
    def _fits(self) -> HeadFacts:
        if self.kind == "depth":
            _need(self.range is not None and self.range[0] < self.range[1], f"range takes low < high; got {self.range}")
        else:
            _need(bool(self.classes), f"a {self.kind} head needs the names of its classes")
        for name, values in (("labels", self.labels), ("palette", self.palette)):
            _need(len(values) in {0, len(self.classes)}, f"{len(values)} {name} for {len(self.classes)} classes")
        _need(len({*self.classes}) == len(self.classes), f"each class has a name of its own; got {list(self.classes)}")
        _need(list(self.blocks) == sorted({*self.blocks}), f"blocks must rise; got {list(self.blocks)}")
        _need(self.stride is None or self.stride <= (self.window or 0), f"stride {self.stride} leaves gaps")
        return self

    @property
    def layers(self) -> int:
        """How many blocks' features it takes."""
        return max(len(self.blocks), 1)

    @property
    def pictures(self) -> bool:
        """Whether it takes the images too, before the blocks (``as_features``)."""
        return self.family == "mask2former"

    @property
    def sums(self) -> bool:
        """Whether its scores of classes are sums of chances over queries, 0 or more; else a softmax makes shares of them."""
        return self.family == "mask2former"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its classes."""
        return self.labels or tuple(range(len(self.classes)))


def _need(true: bool, told: str) -> None:
    if not true:
        raise ValueError(told)


@dataclass(frozen=True, slots=True)
class Head:
    """A head, frozen, and what is known of it."""

    module: nn.Module
    facts: HeadFacts

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight or fact."""
        return fingerprint(self.facts.model_dump(mode="json"), self.module.state_dict())

    def __call__(self, layers: Sequence[Features]) -> Tensor:
        """What it says of the features of ``facts.blocks``, before which come the images where it takes them.

        Returns:
            Scores of classes ``[B K]``, or on a map ``[B K Y X]``; or depth ``[B 1 Y X]`` in ``facts.unit``, within the range.
        """
        found: Tensor
        if self.facts.range is None:
            found = self.module(layers)
        else:
            nearest, farthest = self.facts.range
            found = self.module(layers, nearest=nearest, farthest=farthest)
        return found


FAMILIES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "classification": {"linear": lambda f, **more: LinearClassifier(f.width, f.layers, len(f.classes), **more)},
    "segmentation": {
        "linear": lambda f, **more: LinearSegmentation(f.width, f.layers, len(f.classes), **more),
        "mask2former": lambda f, **more: mask2former_of(f.width * f.layers, len(f.classes), **more),
    },
    "depth": {
        "linear": lambda f, **more: LinearDepth(f.width, f.layers, f.bins, **more),
        "dpt": lambda f, **more: DptDepth(f.width, **more),
    },
}
"""How the module of every kind and family is made of its ``HeadFacts`` and, by keyword, their ``options``. It takes a list of
``Features`` and gives what ``Head`` returns; one of depth takes ``nearest`` and ``farthest`` too. A new one is a line here."""


def save_head(path: Path, module: nn.Module, facts: HeadFacts) -> None:
    """Write a head's folder, whole or not at all; one that is there is replaced.

    Raises:
        RunError: The folder cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    told = facts.model_dump(mode="json")
    with new_folder(path) as folder:
        write_tensors(folder / _WEIGHTS, state)
        write_json(folder / FACTS, {"format": 1, "fingerprint": fingerprint(told, state), **told})


def read_any_head(path: str | Path, backbone: Backbone, *, range: tuple[float, float] | None = None) -> Head:
    """A head of ours (its folder, or a file in it) or one that was released with DINOv2; frozen.

    Args:
        backbone: What it shall be used on.
        range: Least and largest depth in metres, of a released depth head alone: its file does not say whether it is for
            NYU Depth (0.001 to 10) or KITTI (0.001 to 80), and the released loader takes 80 for every linear one.

    Raises:
        WeightsError: Nothing there, unsafe, damaged, or for another backbone.
        ConfigError: A range that is missing, or has no effect.
    """
    place = at_home(path)
    if not place.exists():
        raise WeightsError(f"head {path} does not exist; {_ADVICE}.")
    folder = place if place.is_dir() else place.parent
    ours = place.is_dir() or (place.name in {_WEIGHTS, FACTS} and (folder / FACTS).exists())
    if ours and not (folder / FACTS).exists():
        inside = sorted(child.parent.name for child in folder.glob(f"*/{FACTS}"))
        raise WeightsError(
            f"{path} holds no head; {f'of those in it give one: {chr(44).join(inside)}' if inside else _ADVICE}."
        )
    if ours and range is not None:
        raise ConfigError(
            f"range={range[0]:g},{range[1]:g} has no effect: {folder / FACTS} says what the head's range is."
        )
    return _read_ours(folder, backbone) if ours else _read_released(place, backbone, range)


def _read_ours(folder: Path, backbone: Backbone) -> Head:
    try:
        told = dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
        told.pop("format", None)
        mark = told.pop("fingerprint", None)
        facts: HeadFacts = HeadFacts.build(told)
        if facts.family not in FAMILIES[facts.kind]:
            raise unknown(f"family of {facts.kind} heads", facts.family, FAMILIES[facts.kind])
        with torch.device("meta"):
            module = FAMILIES[facts.kind][facts.family](facts, **facts.options)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ConfigError) else type(error).__name__
        raise WeightsError(f"{folder / FACTS} does not describe a head: {reason}.") from None
    _check(facts, backbone, folder)
    state = read_state(folder / _WEIGHTS)
    load_into(module.to_empty(device="cpu"), state, name=str(folder))
    if fingerprint(facts.model_dump(mode="json"), state) != mark:
        raise WeightsError(f"{folder} is damaged: its weights and facts do not have the fingerprint {mark} in {FACTS}.")
    return Head(module.requires_grad_(False).eval(), facts)


def _check(facts: HeadFacts, backbone: Backbone, folder: Path) -> None:
    """See that a head belongs to a backbone.

    Raises:
        WeightsError: It does not.
    """
    if facts.width != backbone.module.width:
        raise WeightsError(
            f"{folder} is a head for backbones of width {facts.width}; this one has {backbone.module.width}."
        )
    if facts.backbone is None:
        say(f"{folder} does not say which backbone it was trained on; on another one its answers mean nothing.")
    elif facts.backbone != backbone.fingerprint:
        raise WeightsError(
            f"{folder} was trained on backbone {facts.backbone}; this one is {backbone.fingerprint}, for which it means "
            "nothing. Give that backbone, or train a head on this one (evaluate save_heads=)."
        )
    _check_blocks(facts, backbone, folder)


def _check_blocks(facts: HeadFacts, backbone: Backbone, path: Path) -> None:
    depth = _depth(backbone)
    if facts.blocks[-1:] >= ((depth or 0),) or (depth is None and not facts.norm):
        has = "shows none of its blocks" if depth is None else f"has {depth} blocks"
        seen = (
            f"blocks {', '.join(map(str, facts.blocks))} (from 0)" if facts.blocks else "the last block before its norm"
        )
        raise WeightsError(f"{path} is a head of {seen}; this backbone {has}.")


def _depth(backbone: Backbone) -> int | None:
    """Blocks of a backbone; None of one that does not show them."""
    return len(backbone.module.blocks) if hasattr(backbone.module, "intermediate") else None


def _read_released(path: Path, backbone: Backbone, range: tuple[float, float] | None) -> Head:
    """A file released with DINOv2, used as published: depth from four blocks before the last norm, classes after it."""
    module = read_head(path, width=backbone.module.width)
    depth = _depth(backbone)
    told: dict[str, Any] = {"width": backbone.module.width, "protocol": f"released head {path.name}"}
    if isinstance(module, LinearClassifier | LinearSegmentation):
        if range is not None:
            raise ConfigError(f"range={range[0]:g},{range[1]:g} has no effect: {path} is no head for depth.")
        count = len(module.weight if isinstance(module, LinearClassifier) else module.conv_seg.weight)
        told |= {"kind": "classification" if isinstance(module, LinearClassifier) else "segmentation"}
        told |= {"classes": _names(path, count), "blocks": _last(module.layers, depth)}
        told |= {} if isinstance(module, LinearClassifier) else _SEGMENTED
    else:
        if range is None:
            raise ConfigError(
                f"range= is required: {path} does not say its range of depth. Give range=0.001,10 for NYU Depth or "
                "range=0.001,80 for KITTI."
            )
        told |= {
            "kind": "depth",
            "range": range,
            "norm": False,
            "short_side": _INDOORS if range[1] < _FAR else _STREETS,
        }
        told |= {"family": "dpt"} if isinstance(module, DptDepth) else {"bins": len(module.conv_depth.weight)}
        told["blocks"] = _last(1, depth) if module.layers == 1 else spread_blocks(depth or 0)
    facts: HeadFacts = HeadFacts.build(told)
    _check_blocks(facts, backbone, path)
    say(
        f"{path} does not say which backbone it was trained on; on another one of width {facts.width} its answers mean nothing."
    )
    return Head(module, facts)


def _last(count: int, depth: int | None) -> tuple[int, ...]:
    """The last so many blocks; of a network that shows none, what it gives counts as the last one."""
    if depth is None:
        return () if count == 1 else tuple(range(count))
    return tuple(range(max(depth - count, 0), max(depth, count)))


def spread_blocks(depth: int) -> tuple[int, ...]:
    """Four blocks spread over a backbone of so many, as the released depth heads see them; of others the quarters' last."""
    return _SEEN_BY_FOUR.get(depth) or tuple(max(round(part * depth / 4), part) - 1 for part in range(1, 5))


def _names(path: Path, count: int) -> tuple[str, ...]:
    """Names of a released head's classes: those that its training left in the file, else their numbers."""
    meta = read_state(path).get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if (
        isinstance(names, list | tuple)
        and len({*map(str, names)}) == len(names) == count
        and all(isinstance(name, str) for name in names)
    ):
        return tuple(names)
    return tuple(f"class {number}" for number in range(count))
