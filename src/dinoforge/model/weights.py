"""The noun ``Backbone``: weights, architecture, preprocessing and lineage in a folder, loaded without executing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Config, Ranges
from dinoforge.base.errors import ConfigError, WeightsError, closest
from dinoforge.base.files import new_folder, write_json, write_tensors, write_text
from dinoforge.base.home import at_home
from dinoforge.model.official import read_state
from dinoforge.model.table import BACKBONES, empty

_ADVICE = "give a folder with backbone.safetensors, a run, a Hugging Face folder, or a .pth or .safetensors file"


class Preprocessing(Config):
    """What an image goes through before the backbone, when features are taken."""

    channels: int = Field(default=3, gt=0)
    """Channels of an image: grey is repeated and RGB made grey where 3 and 1 ask for it, nothing else is converted."""
    range: Ranges | None = None
    """Numbers that become 0 and 1, one pair or one a channel; null: 0 and the type's highest (8 and 16 bits)."""
    max_pixels: int = Field(default=178_956_970, gt=0)
    """Larger images are set aside as decompression bombs."""
    short_side: int = Field(default=256, gt=0)
    """The short side is resized to this, bicubic and antialiased, in pixels."""
    side: int = Field(default=224, gt=0)
    """Side of the square cut from the middle, in pixels."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from each channel, on the scale 0 to 1; one number, or one a channel."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Divided by after that; above 0."""

    @model_validator(mode="after")
    def _one_or_each(self) -> Preprocessing:
        for name, values in (("mean", self.mean), ("std", self.std), ("range", self.range or (None,))):
            if len(values) not in {1, self.channels}:
                raise ValueError(f"{name} is for {len(values)} channels, the backbone takes {self.channels}.")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be above 0; got {list(self.std)}.")
        return self

    @classmethod
    def usual(cls, channels: int) -> Preprocessing:
        """For weights that come without any: ImageNet's of RGB; of other channels, numbers from 0 to 1 as they are."""
        return cls() if channels == 3 else cls(channels=channels, mean=(0.0,), std=(1.0,))


@dataclass(frozen=True, slots=True)
class Backbone:
    """A backbone as it lies on disk."""

    module: Any
    config: Any
    preprocessing: Preprocessing
    lineage: dict[str, Any] = field(default_factory=dict)
    """What it was made from: fingerprints and addresses."""
    loaded: str = ""
    """How many tensors of how many were taken from the file."""

    known: str | None = None
    """The fingerprint that its folder gave it. A version of dinoforge with more settings would give it another."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of architecture and weights."""
        return self.known or fingerprint(self.config.model_dump(mode="json"), self.module.state_dict())


def fingerprint(architecture: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change with any weight, name or setting of the architecture."""
    digest = hashlib.sha256(json.dumps(architecture, separators=(",", ":")).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_backbone(path: Path, backbone: Backbone, *, scores: Mapping[str, float] | None = None) -> None:
    """Write a backbone folder, whole or not at all; one that is there is replaced.

    Args:
        scores: What is known of its quality, for the model card.

    Raises:
        RunError: The folder cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.module.state_dict().items()}
    architecture = backbone.config.model_dump(mode="json")
    facts = {
        "format": 1,
        "architecture": architecture,
        "preprocessing": backbone.preprocessing.model_dump(mode="json"),
        "fingerprint": fingerprint(architecture, state),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "scores": dict(scores or {}),
        "lineage": backbone.lineage,
    }
    with new_folder(path) as folder:
        write_tensors(folder / "backbone.safetensors", state)
        write_json(folder / "backbone.json", facts)
        write_text(folder / "README.md", _card(facts))


def load_backbone(path: str | Path) -> Backbone:
    """A backbone from a folder of ours, a run, a Hugging Face folder, or a file of official weights.

    Raises:
        WeightsError: Nothing there, unsafe, damaged, or tensors that do not fit (they are named).
    """
    from dinoforge.model.layouts import open_layout
    from dinoforge.model.processor import preprocessing_beside

    if str(path).startswith(("hf:", "timm:")):
        raise WeightsError(
            f"backbone {path} can be used frozen only (evaluate, embed, pca, match). To train from weights of DINOv2 or "
            "DINOv3, convert them first."
        )
    refuse_pixels(path, f"backbone {path}")
    place = at_home(path)
    if not place.exists():
        raise WeightsError(f"backbone {path} does not exist; {_ADVICE}.")
    if place.is_dir() and (place / "backbone" / "backbone.json").exists():
        place = place / "backbone"  # a run
    if place.is_dir() and (place / "backbone.json").exists():
        return _load_folder(place)
    if place.is_dir() and not (place / "config.json").exists():
        raise WeightsError(f"{path} holds no backbone; {_ADVICE}.")
    parsed = open_layout(place).parsed
    how, _ = preprocessing_beside(place, parsed.config.channels)
    return assembled(str(place), parsed.config, parsed.state, how)


def refuse_pixels(address: str | Path, name: str) -> None:
    """Refuse ``pixels:16`` and ``colours:8``, under this name, where a network is needed.

    Raises:
        WeightsError: It is one of them.
    """
    if str(address).startswith(("pixels:", "colours:")):
        raise WeightsError(
            f"{name} is no network and has nothing to train, teach, convert or export; evaluate, embed, pca and match take it."
        )


def _load_folder(folder: Path) -> Backbone:
    """A folder that ``save_backbone`` wrote."""
    try:
        facts = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
        architecture = dict(facts["architecture"])
        config = BACKBONES[architecture["kind"]][0].build(architecture)
        preprocessing = Preprocessing.build(facts["preprocessing"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ConfigError) else type(error).__name__
        raise WeightsError(f"{folder / 'backbone.json'} does not describe a backbone: {reason}.") from None
    if preprocessing.channels != config.channels:
        raise WeightsError(
            f"{folder / 'backbone.json'} does not describe a backbone: it takes {config.channels} channels, its "
            f"preprocessing gives {preprocessing.channels}."
        )
    found = assembled(str(folder), config, read_state(folder / "backbone.safetensors"), preprocessing)
    mark = fingerprint(architecture, found.module.state_dict())
    if mark != facts.get("fingerprint"):
        raise WeightsError(
            f"{folder} is damaged: its weights have fingerprint {mark}, backbone.json says {facts.get('fingerprint')}."
        )
    return Backbone(found.module, config, preprocessing, dict(facts.get("lineage", {})), found.loaded, known=mark)


def assembled(name: str, config: Config, state: Mapping[str, Tensor], preprocessing: Preprocessing) -> Backbone:
    """A backbone of these tensors.

    Raises:
        WeightsError: They do not fit.
    """
    module = empty(config)
    loaded = load_into(module, state, name=name)
    return Backbone(module.eval(), config, preprocessing, {"weights": name}, loaded)


class Misfits(WeightsError):
    """Tensors that do not fit; all of them by name in ``names``."""

    names: tuple[str, ...] = ()


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, name: str) -> str:
    """Copy every tensor of ``state`` into its place; ``n/n tensors`` when all fit.

    Raises:
        Misfits: A tensor is missing, left over or of another shape; the first of each kind are named.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    left = [f"{key}{closest(key, missing).rstrip()}" for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)}, not {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    fits = len(wanted) - len(missing) - len(shapes)
    if missing or left or shapes:
        parts = [("missing", missing), ("left over", left), ("of another shape", shapes)]
        told = "; ".join(f"{len(v)} {what}: {', '.join(v[:4])}{' …' if len(v) > 4 else ''}" for what, v in parts if v)
        error = Misfits(f"{name}: {fits}/{len(wanted)} tensors fit. {told}.")
        error.names = tuple(f"{what}: {one}" for what, v in parts for one in v)
        raise error
    module.load_state_dict(dict(state), strict=True)
    return f"{fits}/{len(wanted)} tensors"


def _channels(preprocessing: Mapping[str, Any]) -> str:
    """What the channels are, in words."""
    count, given = preprocessing["channels"], preprocessing["range"]
    named = {1: "grey", 3: "RGB"}.get(count, f"{count} channels")
    return named if given is None else f"{named}, numbers in {given} mapped to 0 to 1"


def _card(facts: Mapping[str, Any]) -> str:
    """The model card."""
    architecture, preprocessing = facts["architecture"], facts["preprocessing"]
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in facts["scores"].items())
    lineage = "\n".join(f"- {name}: {value}" for name, value in facts["lineage"].items())
    return f"""# Backbone {facts["fingerprint"]}

Self-supervised visual features, trained with dinoforge.

- Architecture: {", ".join(f"{name} {value}" for name, value in architecture.items())}
- Parameters: {facts["parameters"]:,}
- Input: {_channels(preprocessing)}, short side {preprocessing["short_side"]} (bicubic, antialiased), centre
  {preprocessing["side"]} pixels, normalised by mean {preprocessing["mean"]} and std {preprocessing["std"]}

| score | value |
|---|---|
{scores or "| none measured | |"}

Made from:

{lineage}

```python
import dinoforge

backbone = dinoforge.load("THIS FOLDER")
features = backbone(images)  # .image [B, D], .registers [B, R, D], .patches [B, H, W, D]
```
"""
