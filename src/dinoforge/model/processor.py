"""Hugging Face's ``preprocessor_config.json``, both ways: what an image goes through before a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.model.weights import Preprocessing

FILE = "preprocessor_config.json"
_BICUBIC = 3
"""Of Pillow's resampling filters."""


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
