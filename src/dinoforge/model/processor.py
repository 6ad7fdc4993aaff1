"""What an image goes through before a model of other code: Hugging Face's ``preprocessor_config.json``, both ways; timm's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.base.log import say
from dinoforge.model.weights import Preprocessing

FILE = "preprocessor_config.json"
_BICUBIC = 3
"""Of Pillow's resampling filters."""
_SATELLITE = "sat493m"
"""In the name of the DINOv3 weights that saw satellite pictures: they have a mean and std of their own."""


def preprocessing_beside(place: Path, channels: int) -> tuple[Preprocessing, list[str]]:
    """What is done with images before weights of other code, and in words, which are said too, what is done otherwise there.

    It is told by Hugging Face's or timm's file beside the weights, else by the weights' name.
    """
    folder = place if place.is_dir() else place.parent
    if (folder / FILE).exists():
        how, differs = read_processor(folder / FILE, channels)
    elif (place.is_dir() or place.stem in {"model", "pytorch_model"}) and (facts := _of_timm(folder / "config.json")):
        how, differs = facts
        if how.channels != channels:
            differs = [
                f"config.json is for images of {how.channels} channels, the weights take {channels}: as without it"
            ]
            how = Preprocessing.usual(channels)
    else:
        how, differs = Preprocessing.usual(channels), []
        if _SATELLITE in place.name and channels == 3:
            how = how.model_copy(update={"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)})
    for line in differs:
        say(f"{place}: {line}.")
    return how, differs


def _of_timm(path: Path) -> tuple[Preprocessing, list[str]] | None:
    """Ours for the ``pretrained_cfg`` of a folder that timm wrote; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("pretrained_cfg") if path.exists() else None
        return None if found is None else timm_preprocessing(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).rstrip(".") if isinstance(error, ConfigError) else type(error).__name__
        raise WeightsError(f"{path} does not describe what is done with images: {reason}.") from None


def timm_preprocessing(facts: Mapping[str, Any]) -> tuple[Preprocessing, list[str]]:
    """Ours for what timm says of a model's images, and in words what it does otherwise.

    Raises:
        ConfigError, KeyError, TypeError, ValueError: Not as timm writes it.
    """
    channels, side = int(facts["input_size"][0]), int(facts["input_size"][-1])
    short = math.floor(side / float(facts.get("crop_pct") or 1.0))
    values = {
        "channels": channels,
        "side": side,
        "short_side": short,
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
    }
    way = facts.get("interpolation", "bicubic")
    return Preprocessing.build(values), [] if way == "bicubic" else [f"it resamples {way}; here it is bicubic"]


def read_processor(path: Path, channels: int) -> tuple[Preprocessing, list[str]]:
    """Ours for an image processor, and in words what it does otherwise.

    Raises:
        WeightsError: Damaged, or numbers that are scaled in a way that ours cannot follow.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = _steps(facts, path, channels)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        reason = str(error).rstrip(".") if isinstance(error, ConfigError) else type(error).__name__
        raise WeightsError(f"{path} does not describe an image processor: {reason}.") from None
    return found


def _steps(facts: Mapping[str, Any], path: Path, channels: int) -> tuple[Preprocessing, list[str]]:
    factor = facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
    if abs(factor * 255 - 1) > 1e-3:
        raise WeightsError(f"{path} multiplies pixels by {factor:g}; only 1/255 is supported.")
    mean, std = facts.get("image_mean", [0.485, 0.456, 0.406]), facts.get("image_std", [0.229, 0.224, 0.225])
    if not facts.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    size = facts.get("size", 224)
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    squashed = "shortest_edge" not in size
    short = int(size["shortest_edge"] if not squashed else min(size["height"], size["width"]))
    crop = facts.get("crop_size") if facts.get("do_center_crop", "crop_size" in facts) else None
    side = short if crop is None else int(crop if isinstance(crop, int) else min(crop["height"], crop["width"]))
    if "crop_pct" in facts and crop is None and not squashed and short < 384:  # ConvNeXt's own way of saying a margin
        short, side = int(short / (facts["crop_pct"] or 1)), short
    differs = []
    resizes = facts.get("do_resize", True)
    if not resizes:
        differs.append(f"it does not resize pictures; here their short side becomes {short} pixels")
    elif facts.get("resample", _BICUBIC) != _BICUBIC:
        differs.append("it resamples otherwise than bicubic, as is done here")
    if resizes and squashed and crop is None:
        differs.append("it squashes pictures that are no squares; here their middle is cut out")
    values = {"channels": channels, "short_side": short, "side": side, "mean": tuple(mean), "std": tuple(std)}
    return Preprocessing.build(values), differs


def written_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """An image processor of Hugging Face's that does the same; ``range`` has no form there."""
    count = preprocessing.channels
    mean, std = (list(v) * (count if len(v) == 1 else 1) for v in (preprocessing.mean, preprocessing.std))
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": count == 3,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.short_side},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": preprocessing.side, "width": preprocessing.side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
