"""A Hugging Face folder: ``AutoModel`` and ``AutoImageProcessor`` open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinoforge.base.errors import WeightsError
from dinoforge.data.augment import centre
from dinoforge.export.layout import expressible, with_factors, written
from dinoforge.export.target import Reopened, Target, Written, transformer
from dinoforge.features.extract import normalised
from dinoforge.model.foreign import open_backbone
from dinoforge.model.processor import FILE, written_processor
from dinoforge.model.weights import Backbone, Preprocessing

_GREY_LEVELS = 2
"""Two libraries' bicubic resampling in 8 bits may differ by so many."""

_USAGE = """from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".")
tokens = model(**processor(images=picture, return_tensors="pt")).last_hidden_state  # picture: PIL
tokens[:, 0], tokens[:, 1 + REGISTERS :]  # class token, patches row by row"""


def _refuse(backbone: Backbone) -> None:
    transformer("huggingface", backbone)
    expressible("huggingface", with_factors(backbone))
    channels = backbone.preprocessing.channels
    if channels not in {1, 3}:
        raise WeightsError(
            f"to=huggingface: AutoImageProcessor reads pictures of 1 or 3 channels, this backbone takes {channels}; to=onnx "
            "and to=program take any, and convert to=huggingface writes the weights alone."
        )


def _write(folder: Path, backbone: Backbone) -> Written:
    whole = with_factors(backbone)  # its classes have no form for none
    return written(folder, whole, "huggingface", beside={FILE: written_processor(backbone.preprocessing)})


def _reopen(folder: Path, written: Written) -> Reopened:
    import transformers

    found = open_backbone(f"hf:{folder}")
    name = type(found.module.model).__name__
    return Reopened(
        found.module,
        f"{name} of transformers {transformers.__version__}",
        notes=(_same_pictures(transformers, folder, written.backbone.preprocessing),),
    )


def _same_pictures(transformers: Any, folder: Path, how: Preprocessing) -> str:
    """That its image processor does to a picture what is done here, in words.

    Raises:
        WeightsError: It does not.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        # Sides that stay whole when they are halved: what does not, the two round to different pixels.
        picture = _picture(2 * how.short_side, 4 * how.short_side, how.channels)
        shown = picture[..., 0] if how.channels == 1 else picture
        there = processor(images=Image.fromarray(shown), return_tensors="pt")["pixel_values"]
    except Exception as error:  # a library of hundreds of processors can raise anything
        told = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise WeightsError(f"{FILE} cannot be used by AutoImageProcessor: {told}") from None
    mine = normalised(centre(picture, short_side=how.short_side, side=how.side).unsqueeze(0), how)
    if there.shape != mine.shape:
        raise WeightsError(f"AutoImageProcessor gives {list(there.shape)} of a picture, and {list(mine.shape)} is due.")
    levels = float(((there - mine).abs() * torch.tensor(how.std).view(1, -1, 1, 1) * 255).max())
    if not levels <= _GREY_LEVELS:
        raise WeightsError(f"AutoImageProcessor reads a picture otherwise: numbers differ by {levels:.3g} grey levels.")
    return (
        f"{type(processor).__name__} reads a test picture as it is done here to within {levels:.2g} grey levels; where a side "
        "comes out broken it rounds otherwise, so the square may lie up to a pixel beside"
    )


def _picture(height: int, width: int, channels: int) -> np.ndarray:
    """Waves and noise, the same each time; uint8 [Y, X, C]."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(rows / 9 + place) * np.cos(columns / 13 - place) for place in range(channels)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, channels))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


TARGET = Target(
    title="Hugging Face transformers",
    needs=("transformers",),
    install='pip install "dinoforge[interop]"',
    bound=1e-5,
    library="transformers",
    usage=_USAGE,
    refuse=_refuse,
    write=_write,
    reopen=_reopen,
)
