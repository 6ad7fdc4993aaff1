"""From the bytes of an image file to pixels. Bytes that are not a whole, sane image are ``Broken``, never a crash."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from dinoforge.base.errors import DataError

MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs (Pillow's own limit)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})
"""Names under which image files are looked for."""


class Broken(DataError):
    """One image cannot be used; the text is the reason, in words a user can act on."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image whose size is known before its pixels are decoded: crops are drawn first, and may need fewer pixels.

    Sizes are those of the whole image with its orientation applied.
    """

    height: int
    width: int
    channels: int
    decoded: Callable[[int], np.ndarray]
    """Decodes at a reduction of at most so much, see ``pixels``."""

    @classmethod
    def of(cls, pixels: np.ndarray) -> Picture:
        """One that is there already, ``[Y, X, C]``."""
        height, width, channels = pixels.shape
        return cls(height, width, channels, lambda _reduction: pixels)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Pixels ``[Y, X, C]``, each side divided by ``reduction`` or by less where the format can do no more.

        Raises:
            Broken: The image is truncated or damaged.
        """
        return self.decoded(reduction)


def open_picture(encoded: bytes) -> Picture:
    """The image in these bytes.

    Raises:
        Broken: No image, or one of more than ``MAX_PIXELS``.
    """
    return Picture.of(decode(encoded))


def decode(encoded: bytes) -> UInt8[np.ndarray, "Y X 3"]:
    """Red, green, blue, with the orientation of the file's EXIF applied; 16-bit grey is scaled to 8.

    Raises:
        Broken: No image, a truncated one, or one of more than ``MAX_PIXELS``.
    """
    if not encoded:
        raise Broken("the file is empty")
    if encoded[:2] == b"\xff\xd8" and b"Exif\x00\x00" not in encoded[:4096]:
        pixels = _plain_jpeg(encoded)
        if pixels is not None:
            return pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs at half its limit, and of odd EXIF
            with Image.open(io.BytesIO(encoded)) as image:
                _refuse_bombs(*image.size)
                return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise Broken("this is no image that can be read") from None
    except Broken:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise Broken(f"damaged image: {error}") from None


def _plain_jpeg(encoded: bytes) -> UInt8[np.ndarray, "Y X 3"] | None:
    """A JPEG without EXIF, which is what the faster decoder is right about; None leaves it to the thorough one."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        _refuse_bombs(width, height)
        if colours in {"CMYK", "YCCK"}:
            return None
        return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
    except ValueError as error:
        if isinstance(error, Broken):
            raise
        return None


def _refuse_bombs(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Broken(f"{width}x{height} pixels are more than {MAX_PIXELS:,}; a decompression bomb?")
    if width * height == 0:
        raise Broken("the image has no pixel")


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "Y X 3"]:
    """Any mode as 8-bit RGB; transparency is dropped, as the methods we follow do."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        grey = (wide >> 8 if wide.max(initial=0) > 255 else wide).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))
