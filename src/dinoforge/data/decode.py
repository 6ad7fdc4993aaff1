"""From the bytes of an image file to a picture. Bytes that are not a whole, sane image are ``Broken``, never a crash."""

from __future__ import annotations

import ctypes
import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import Image

from dinoforge.data.bands import NPY, TIFF, numbers, open_npy, open_tiff
from dinoforge.data.picture import (
    MAX_PIXELS,
    RGB,
    SIDEWAYS,
    Broken,
    Picture,
    Reading,
    as_bytes,
    damage,
    first_line,
    turned,
)

__all__ = [
    "MAX_PIXELS",
    "RGB",
    "SUFFIXES",
    "Broken",
    "Picture",
    "Reading",
    "as_bytes",
    "damage",
    "decode",
    "open_picture",
]

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".npy", ".avif", ".jfif",
})  # fmt: skip
"""Names under which image files are looked for; what is in them is judged by their bytes alone."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What Pillow is asked to open. Not what starts other programs (EPS) or is hardly met."""
_REDUCTIONS = (8, 4, 2)
_ORIENTATION = 0x0112
_SAMPLES_16 = {2: 3, 4: 2, 6: 4}
"""Samples a pixel of the colour types of PNG that Pillow cuts from 16 bits to 8."""


def _silence() -> None:
    """Keep what decoders print of damaged files off standard error; the reason comes with ``Broken``.

    Pillow logs, which a handler of its own answers unless the user listens. Its libtiff writes to standard error by itself,
    and Pillow offers no way to stop it; where the library's symbols cannot be reached it goes on.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    try:
        libtiff = ctypes.CDLL(str(Image.core.__file__))
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            getattr(libtiff, name)(None)
    except (OSError, AttributeError):
        return


_silence()


def open_picture(encoded: bytes) -> Picture:
    """The image in these bytes, of which only the header is read; the first of those that move.

    Raises:
        Broken: No image.
    """
    if not encoded:
        raise Broken("the file is empty")
    if encoded.startswith(NPY):
        return open_npy(encoded)
    if encoded.startswith(b"\xff\xd8"):
        found = _jpeg(encoded)
        if found is not None:
            return found
    return _thorough(encoded)


def decode(encoded: bytes) -> UInt8[np.ndarray, "Y X 3"]:
    """Red, green, blue in 8 bits, as a network of three channels reads them.

    Raises:
        Broken: No image, a damaged one, one of more than ``MAX_PIXELS``, or of other channels.
    """
    return RGB.of(open_picture(encoded)).pixels()


def _jpeg(encoded: bytes) -> Picture | None:
    """A JPEG file as the faster decoder sees it; None where it knows less than the thorough one."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if colours not in {"Gray", "YCbCr", "RGB"}:
        return None
    orientation = 1
    if _may_be_turned(encoded):
        with _told():
            orientation = _orientation(_open(encoded), encoded)

    def decoded(reduction: int) -> np.ndarray:
        factor = _factor(reduction)
        try:
            pixels = simplejpeg.decode_jpeg(
                encoded, colorspace="GRAY" if colours == "Gray" else "RGB",
                min_height=-(-height // factor), min_width=-(-width // factor),
            )  # fmt: skip
        except ValueError:  # a flaw that the thorough decoder may know how to take
            return _thorough(encoded).decoded(reduction)
        return turned(pixels, orientation)

    size = (width, height) if orientation in SIDEWAYS else (height, width)
    return Picture(*size, 1 if colours == "Gray" else 3, decoded=decoded)


def _may_be_turned(encoded: bytes) -> bool:
    """Whether a JPEG file has a segment (APP1) in which EXIF and XMP stand, or is written too oddly to tell."""
    at = 2
    while at + 4 <= len(encoded):
        if encoded[at] != 0xFF:
            return True
        marker = encoded[at + 1]
        if marker in {0xE1, 0xDA}:  # DA begins the pixels
            return marker == 0xE1
        at += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return True


def _factor(reduction: int) -> int:
    """The largest reduction of JPEG's transform that is not more than what was asked for."""
    return next((factor for factor in _REDUCTIONS if factor <= reduction), 1)


def _thorough(encoded: bytes) -> Picture:
    """An image as Pillow sees it, or tifffile and we where Pillow would cut channels or bits off."""
    is_tiff = encoded.startswith(TIFF)
    with _told():
        image = _open(encoded)
        if image is None:
            if is_tiff:
                return open_tiff(encoded, pages_are_channels=False)
            raise Broken("this is no image that can be read")
        if image.format == "TIFF":
            pages_are_channels = _pages_are_channels(image)
            if pages_are_channels or not _is_whole(image):
                return open_tiff(encoded, pages_are_channels=pages_are_channels)
        wide = _wide(image, encoded)
        channels, alpha = _bands(image) if wide is None else (wide, wide in {2, 4})
        # Of TIFF files Pillow gives the size as it will be after turning, and turns the pixels by itself.
        orientation = 1 if image.format == "TIFF" else _orientation(image, encoded)
        width, height = map(int, image.size)

    def decoded(reduction: int) -> np.ndarray:
        with _told():
            again = _open(encoded)
            assert again is not None
            return turned(_pixels(again, encoded, wide, reduction), orientation)

    size = (width, height) if orientation in SIDEWAYS else (height, width)
    return Picture(*size, channels, decoded=decoded, alpha=alpha)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever a decoder raises on a damaged file is ``Broken``, and what it warns of is not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Broken:
        raise
    except MemoryError:
        raise Broken("the image does not fit into memory") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise Broken(f"damaged image: {first_line(error)}") from None


def _open(encoded: bytes) -> Any:
    """Pillow's view of the header, or None.

    Without ``Image.open``, whose limit on the number of pixels is one for the whole process.
    """
    Image.init()
    for name in _FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(encoded[:16]) is not True):
            continue
        try:
            return factory(io.BytesIO(encoded), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    return None


def _orientation(image: Any, encoded: bytes) -> int:
    """The orientation that EXIF or XMP gives, 1 to 8; 1 where there is none or it is damaged."""
    try:
        if image.format == "PNG" and "exif" not in image.info:
            # It may lie behind the pixels, and Pillow would decode them all to find it.
            exif = Image.Exif()
            exif.load(_png_chunk(encoded, b"eXIf"))
        else:
            exif = image.getexif()
        found = exif.get(_ORIENTATION, 1)
    except Exception:  # a damaged note beside the image is no reason to lose the image
        return 1
    return found if found in range(1, 9) else 1


def _png_chunk(encoded: bytes, name: bytes) -> bytes:
    """The first part of a PNG file of that name; empty where there is none."""
    at = 8
    while at + 8 <= len(encoded):
        length = int.from_bytes(encoded[at : at + 4], "big")
        if encoded[at + 4 : at + 8] == name:
            return encoded[at + 8 : at + 8 + length]
        at += 12 + length
    return b""


def _bands(image: Any) -> tuple[int, bool]:
    """Channels that ``_plain`` gives, and whether the last one is transparency."""
    mode = image.mode
    if mode in {"LA", "La", "RGBA", "RGBa", "PA"}:
        return 2 if mode.startswith("L") else 4, True
    return (1, False) if mode in {"1", "L", "F"} or mode.startswith("I") else (3, False)


def _pixels(image: Any, encoded: bytes, wide: int | None, reduction: int) -> Shaped[np.ndarray, "Y X C"]:
    """Pixels as they lie in the file, in its numbers."""
    if image.format == "PPM" and wide is not None:
        return _wide_ppm(image, encoded, wide)
    if image.format == "PNG" and wide is not None:
        return _wide_png(image, encoded, wide)
    if image.format in {"JPEG", "MPO"}:
        factor = _factor(reduction)
        image.draft(None, tuple(max(1, side // factor) for side in image.size))
    return _plain(image)


def _plain(image: Any) -> Shaped[np.ndarray, "Y X C"]:
    """Pixels of an image that Pillow knows whole: grey in any numbers, colours in 8 bits."""
    image.load()  # a TIFF file may get another mode by it
    mode = image.mode
    channels, _ = _bands(image)
    if mode == "F" or mode.startswith("I"):
        grey = np.asarray(image)
        if image.format == "TIFF" and mode == "I":
            grey = _as_stored(grey, image.tag_v2)
        return numbers(grey[:, :, None])
    target = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    found = np.array(image if mode == target else image.convert(target))
    return found if found.ndim == 3 else found[:, :, None]


def _as_stored(grey: Shaped[np.ndarray, "Y X"], tags: Any) -> Shaped[np.ndarray, "Y X"]:
    """Integers of a TIFF file, which Pillow gives as int32, in their own type."""
    if tags.get(339, (1,))[0] == 1:
        return grey.view(np.uint32)
    return grey.astype(np.int16) if tags.get(258, (1,))[0] == 16 else grey


def _is_whole(image: Any) -> bool:
    """Whether Pillow keeps every channel and bit of a TIFF file."""
    tags = image.tag_v2
    samples = tags.get(277, 1)
    if samples == 1:
        bits, plain = tags.get(258, (1,))[0], tags.get(339, (1,))[0] == 1
        if bits <= 16 and (plain or bits <= 8):
            return bool(plain)  # signed bytes would come out as unsigned ones
        # Of wider or signed numbers that are compressed and big-endian, Pillow (13.0) swaps the bytes once too often.
        return bool(tags.prefix == b"II" or tags.get(259, 1) == 1)
    unspecified = 0 in tags.get(338, ())
    return (
        max(tags.get(258, (1,))) <= 8 and samples == len(image.getbands()) and not unspecified and image.mode != "RGBX"
    )


def _pages_are_channels(image: Any) -> bool:
    """Whether a TIFF file says that its pages are the channels of one picture."""
    about = str(image.tag_v2.get(270, ""))
    return (about.startswith("ImageJ=") and "\nchannels=" in about) or "<OME " in about[:4096]


def _wide(image: Any, encoded: bytes) -> int | None:
    """Samples a pixel of an image whose 16 bits Pillow would cut to 8; None where it does not.

    Raises:
        Broken: Nobody here reads it whole.
    """
    if image.format == "PNG" and encoded[24] == 16:
        return _SAMPLES_16.get(encoded[25])
    if (
        image.format == "PPM"
        and image.mode != "F"
        and isinstance(image.tile[0][3], tuple)
        and image.tile[0][3][-1] > 255
    ):
        if image.tile[0][0] != "ppm":
            raise Broken("numbers of more than 8 bits written as text are not read; store it as PNG or TIFF")
        return len(image.getbands())
    if image.format == "JPEG2000":
        at = encoded.find(b"\xff\x4f\xff\x51")  # the image size marker: channels at 40, bits of the first one at 42
        if at >= 0 and encoded[at + 41] > 1 and encoded[at + 42] & 0x7F > 7:
            raise Broken("JPEG 2000 with more than 8 bits a channel is read in grey only; store it as PNG or TIFF")
    return None


def _wide_png(image: Any, encoded: bytes, samples: int) -> Shaped[np.ndarray, "Y X C"]:
    """A 16-bit PNG file in colour or with transparency.

    Pillow undoes the filters of such a file right and drops the low bytes afterwards; read once more as if the bytes of each
    number were swapped, it drops the high ones. Grey with transparency has the size of four bytes a pixel, and is read so.
    """
    if samples == 2:
        halves = _as_raw(image, "RGBA", "RGBA")
        return halves[:, :, 0::2].astype(np.uint16) << 8 | halves[:, :, 1::2]
    mode = "RGB" if samples == 3 else "RGBA"
    high = _as_raw(image, mode, f"{mode};16B")
    low = _as_raw(_open(encoded), mode, f"{mode};16L")
    return high.astype(np.uint16) << 8 | low


def _as_raw(image: Any, mode: str, raw: str) -> UInt8[np.ndarray, "Y X C"]:
    """The pixels unpacked in another way than the file says."""
    image._mode = mode
    image.tile = [(*part[:3], raw) for part in image.tile]
    return np.array(image)


def _wide_ppm(image: Any, encoded: bytes, samples: int) -> Shaped[np.ndarray, "Y X C"]:
    """A PGM or PPM file of two bytes a number, its own highest number as the type's."""
    _, _, start, (_, highest) = image.tile[0]
    width, height = image.size
    flat = np.frombuffer(encoded, ">u2", height * width * samples, start)
    scaled = flat.astype(np.uint32) * 65535 // highest
    return scaled.clip(0, 65535).astype(np.uint16).reshape(height, width, samples)
