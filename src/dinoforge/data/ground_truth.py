"""Ground truth that is stored as a picture: masks by index, depth in its own unit, never by way of colours.

Axes: Y by X pixels.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import Num
from PIL import Image, ImageOps, UnidentifiedImageError

from dinoforge.data.bands import NPY, read_npy
from dinoforge.data.decode import MAX_PIXELS, Broken

TRUTHS = ("mask", "depth")
"""What a source of files may have; a drawn world has more."""


_FORMATS = ("PNG", "TIFF", "BMP", "PPM", "GIF", "WEBP", "JPEG2000")
"""What Pillow is asked to open: formats that keep numbers as they are, and none that starts another program."""


def ground_truth(encoded: bytes, name: str) -> Num[np.ndarray, "Y X"]:
    """A mask or a depth map in the bytes of a PNG, a TIFF or a NumPy file.

    A palette's index is the class, whatever its colour. 8 and 16 bits stay as they are (uint8, uint16: 16-bit depth is
    millimetres, 0 = no reading), floats become float32; a mask is always whole numbers.

    Raises:
        Broken: No picture, a damaged or huge one, colours, or a mask of fractions.
    """
    values = _array(encoded) if encoded.startswith(NPY) else _picture(encoded)
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]  # grey that was written as red, green and blue
    if values.ndim != 2:
        raise Broken(f"the {name} has several channels; it takes one number a pixel")
    if name == "mask" and values.dtype.kind == "f":
        whole = values.astype(np.int64)
        if not (whole == values).all():
            raise Broken("the mask holds fractions; it takes a class number a pixel")
        values = whole
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _array(encoded: bytes) -> np.ndarray:
    values = read_npy(encoded)
    if values.dtype.kind not in "iufb":
        raise Broken(f"holds {values.dtype}, not numbers")
    kind = values.dtype.newbyteorder("=") if values.dtype != np.bool_ else np.uint8
    return np.array(values, kind)  # a copy: the bytes may not be written to


def _picture(encoded: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs at half its limit
            with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Broken(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
                return _numbers(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise Broken("this is no picture that can be read") from None
    except Broken:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise Broken(f"damaged picture: {error}") from None


def _numbers(image: Image.Image) -> np.ndarray:
    """The numbers of an image as they are stored, without its transparency."""
    if image.mode in {"LA", "PA"}:
        return np.array(image)[:, :, 0]
    if image.mode == "RGBA":
        return np.array(image)[:, :, :3]
    if image.mode == "1":
        return np.array(image, dtype=np.uint8)
    values = np.array(image)
    if image.mode == "I" and values.min(initial=0) >= 0 and values.max(initial=0) <= np.iinfo(np.uint16).max:
        return values.astype(np.uint16)  # how some versions of Pillow open 16-bit grey
    return values.astype(values.dtype.newbyteorder("="))
