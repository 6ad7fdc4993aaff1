"""Decoded pictures that a program hands over, judged before anything is computed of them.

Axes: Y by X pixels, C channels of a picture, K channels that the network takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinoforge.base.errors import DataError
from dinoforge.data.picture import Broken, Picture, check_channels, fitted

_MODES = ("L", "LA", "RGB", "RGBA")
"""Of Pillow's images, those whose arrays are the picture as it is seen."""


def handed(images: Iterable[Any], wanted: int) -> Iterator[UInt8[np.ndarray, "Y X K"]]:
    """Decoded pictures that a program hands over, with the channels that a network takes.

    Args:
        images: Arrays of uint8, ``[Y, X, C]`` or ``[Y, X]`` each, or Pillow's images.

    Raises:
        DataError: No picture, something else, or channels that do not fit.
    """
    # The rows of one picture would pass for grey pictures.
    if not isinstance(images, Iterable) or isinstance(images, (str, bytes, Mapping)) or getattr(images, "ndim", 4) != 4:
        raise DataError(f"images takes a list of pictures, also for one alone; got {_kind(images)}.")
    number = -1
    for number, image in enumerate(images):
        name = f"images[{number}]"
        if isinstance(image, Image.Image) and image.mode not in _MODES:
            raise DataError(f"{name} has Pillow's mode {image.mode}; it takes {', '.join(_MODES)}, see image.convert.")
        pixels = np.asarray(image) if hasattr(image, "__array_interface__") or hasattr(image, "__array__") else None
        if pixels is None or pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or not pixels.size:
            raise DataError(f"{name} takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got {_kind(image)}.")
        pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns of arrays that it could not write to
        whole = pixels if pixels.ndim == 3 else pixels[:, :, None]
        alpha = whole.shape[2] in {2, 4}
        try:
            check_channels(replace(Picture.of(whole), alpha=alpha), wanted)
        except Broken as error:
            raise DataError(f"{name} {error}.") from None
        yield fitted(whole, wanted, alpha=alpha)
    if number < 0:
        raise DataError("images is empty; it takes at least one picture.")


def _kind(thing: Any) -> str:
    """What something is, in a few words."""
    shape = getattr(thing, "shape", None)
    return (
        type(thing).__name__ if shape is None else f"{list(shape)} of {getattr(thing, 'dtype', type(thing).__name__)}"
    )
