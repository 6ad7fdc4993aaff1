"""Pictures of any number of channels and of numbers wider than 8 bits: NumPy arrays and TIFF files.

Axes: Y by X pixels, C channels.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Shaped

from dinoforge.data.picture import SIDEWAYS, Broken, Picture, first_line, turned

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of both byte orders, of the classic form and of BigTIFF."""
_NEEDS = re.compile(r"<\w+\.(\w+): \d+> requires the 'imagecodecs' package")
"""What tifffile says of a compression or predictor that it leaves to another library."""
_UNTOUCHED = (np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.float32)


def numbers(pixels: Shaped[np.ndarray, "Y X C"]) -> Shaped[np.ndarray, "Y X C"]:
    """Pixels in the byte order of the machine and in a type that the rest understands.

    Truth values become 0 and 255; other floats become float32, other integers int32 or, where they are too long, float32.

    Raises:
        Broken: No real numbers.
    """
    kind = pixels.dtype
    if kind == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind.kind not in "uif":
        raise Broken(f"holds {kind}, not integers or floats")
    known = next((own for own in _UNTOUCHED if kind.newbyteorder("=") == own), None)
    other = np.int32 if kind.kind == "i" and kind.itemsize < 4 else np.float32
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite, which a range cuts off
        return np.ascontiguousarray(pixels, dtype=known or other)


def read_npy(encoded: bytes) -> Shaped[np.ndarray, "Y X"] | Shaped[np.ndarray, "Y X C"]:
    """An array ``[Y, X, C]`` or ``[Y, X]`` as ``numpy.save`` writes it, a view of the bytes; nothing in it is executed.

    Raises:
        Broken: Objects, another number of axes, or another length than the header says.
    """
    file = io.BytesIO(encoded)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, kind = read(file)
        start, needed = file.tell(), math.prod(shape) * kind.itemsize
    except Exception as error:  # the header is a Python literal, and a damaged one may be anything
        raise Broken(f"this is no NumPy array that can be read: {first_line(error)}") from None
    if kind.hasobject:
        raise Broken("holds Python objects, not numbers")
    if not kind.itemsize:  # any shape would fit no bytes
        raise Broken(f"holds {kind}, not numbers")
    if len(shape) not in {2, 3}:
        raise Broken(f"has shape {list(shape)}; an image is [Y, X] or [Y, X, C]")
    if needed != len(encoded) - start or min(shape) < 0:
        raise Broken(f"shape {list(shape)} of {kind} needs {needed:,} bytes, {len(encoded) - start:,} are there")
    try:
        return np.ndarray(shape, kind, encoded, start, order="F" if columns_first else "C")
    except ValueError as error:  # an axis of length 0 beside one that is too long
        raise Broken(f"shape {list(shape)} of {kind} is no array: {first_line(error)}") from None


def open_npy(encoded: bytes) -> Picture:
    """The picture in an array of ``read_npy``.

    Raises:
        Broken: As ``read_npy``.
    """
    found = read_npy(encoded)
    pixels = found if found.ndim == 3 else found[:, :, None]
    height, width, channels = pixels.shape
    return Picture(height, width, channels, decoded=lambda _reduction: numbers(pixels))


@cache
def _tifffile() -> Any:
    """The library.

    Raises:
        Broken: It is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise Broken(
            "TIFF files of many channels or wide numbers need tifffile: pip install 'dinoforge[bands]'"
        ) from None
    # It logs what is odd about a file; a handler of its own keeps that off standard error unless the user listens.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    return tifffile


def open_tiff(encoded: bytes, *, pages_are_channels: bool) -> Picture:
    """The first picture of a TIFF file with all its channels, stored together or apart.

    Args:
        pages_are_channels: Every page is a channel, as the file itself says (ImageJ, OME).

    Raises:
        Broken: Damaged, not of one picture, or tifffile is not installed.
    """
    library = _tifffile()
    with _told(), library.TiffFile(io.BytesIO(encoded)) as file:
        part = file.series[0] if pages_are_channels else file.pages[0]
        axes, shape, kind = str(part.axes), [int(side) for side in part.shape], part.dtype
        first = file.pages[0]
        tag = first.tags.get("Orientation")
        orientation = tag.value if tag is not None else 1
        extra = tuple(first.extrasamples)
        alpha = not pages_are_channels and int(first.photometric) == 2 and len(extra) == 1 and int(extra[0]) in {1, 2}
    named = dict(zip(axes, shape, strict=True))
    channel = [axis for axis in axes if axis in "CS" and named[axis] > 1]
    others = [f"{named[axis]} {axis}" for axis in axes if axis not in "CSYX" and named[axis] > 1]
    if len(channel) > 1 or others or not {"Y", "X"} <= named.keys() or kind is None:
        raise Broken(f"is a stack with axes {axes} of {shape}; an image has height, width and channels")
    height, width = named["Y"], named["X"]

    def decoded(_reduction: int) -> np.ndarray:
        with _told(), library.TiffFile(io.BytesIO(encoded)) as file:
            part = file.series[0] if pages_are_channels else file.pages[0]
            for page in part.pages if pages_are_channels else [part]:
                _check_whole(page, len(encoded))
            found = part.asarray()
        order = [axes.index(axis) for axis in ("Y", "X", *channel)]
        squeezed = found.transpose(*order, *(n for n in range(found.ndim) if n not in order))
        return turned(numbers(squeezed.reshape(height, width, -1)), orientation)

    size = (width, height) if orientation in SIDEWAYS else (height, width)
    return Picture(*size, named[channel[0]] if channel else 1, decoded=decoded, alpha=alpha)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever the library raises on a damaged file is ``Broken``."""
    try:
        yield
    except Broken:
        raise
    except Exception as error:
        needed = _NEEDS.search(str(error))
        if needed:
            raise Broken(
                f"is a TIFF file written with {needed[1]}, which needs imagecodecs: pip install it, or store the file with "
                "deflate or uncompressed"
            ) from None
        raise Broken(f"damaged TIFF file, or of a kind not read here: {first_line(error)}") from None


def _check_whole(page: Any, length: int) -> None:
    """Parts of a page that are missing would be read as zeros.

    Raises:
        Broken: A part lies beyond the end of the file, or nowhere.
    """
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not start or not count or start + count > length:
            raise Broken("the TIFF file is truncated, or parts of its picture were never written")
