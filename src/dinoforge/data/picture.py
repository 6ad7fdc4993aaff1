"""A picture before and after its pixels are decoded, and how a network's channels are made of a file's.

Axes: Y by X pixels, C channels of the file, K channels that the network takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from dinoforge.base.errors import DataError, UserError

MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs (Pillow's own limit); ``data.max_pixels`` raises it."""
_ANY = 2**63
HIGHEST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
"""The number that is white, in the types that have one."""
_LUMA = (0.299, 0.587, 0.114)


class Broken(DataError):
    """One image cannot be used; the text is the reason, in words a user can act on."""


@contextmanager
def damage() -> Iterator[None]:
    """Whatever a library raises of a damaged file or container is ``Broken``; what the user can put right stays as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise Broken(" ".join(f"cannot be read: {type(error).__name__}: {error}".split())) from None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image whose size is known before its pixels are decoded: crops are drawn first, and may need fewer pixels.

    Sizes are those of the whole image with its orientation applied.
    """

    height: int
    width: int
    channels: int
    """Of the file. Palettes, print and luma-chroma colours count as RGB, for that is how they are decoded."""
    decoded: Callable[[int], np.ndarray]
    """Decodes at a reduction of at most so much, see ``pixels``."""
    alpha: bool = False
    """Whether the last channel is transparency."""
    max_pixels: int = MAX_PIXELS
    """A larger image is refused before it is decoded; beyond four channels, each four count as another image."""

    @classmethod
    def of(cls, pixels: np.ndarray) -> Picture:
        """One that is there already, ``[Y, X, C]``."""
        height, width, channels = pixels.shape
        return cls(height, width, channels, decoded=lambda _reduction: pixels)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Pixels ``[Y, X, C]``, each side divided by ``reduction`` or by less where the format can do no more.

        In the numbers of the file: uint8, uint16, another integer, or float32. ICC profiles are not applied.

        Raises:
            Broken: The image is truncated or damaged, or larger than ``max_pixels``.
        """
        if not self.height * self.width * self.channels:
            raise Broken("the image has no pixel")
        if self.height * self.width * max(1.0, self.channels / 4) > self.max_pixels:
            bands = f" with {self.channels} channels" if self.channels > 4 else ""
            raise Broken(
                f"{self.width}x{self.height} pixels{bands} are more than {self.max_pixels:,}; a decompression bomb? "
                "data.max_pixels raises the limit"
            )
        return self.decoded(reduction)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a network reads pictures: always the same for training, probes and features."""

    channels: int = 3
    """Channels that the network takes."""
    range: tuple[tuple[float, float], ...] | None = None
    """Numbers that become 0 and 1, one pair or one a channel; null: 0 and the type's highest (8 and 16 bits only)."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused."""

    def of(self, picture: Picture) -> Picture:
        """The picture as the network takes it: uint8 with ``channels`` channels, still not decoded.

        Its pixels are ``Broken`` where the channels do not fit, or the numbers have no range.
        """
        numbers = self.numbers(picture)
        return replace(numbers, decoded=lambda reduction: as_bytes(numbers.decoded(reduction), self.range))

    def numbers(self, picture: Picture) -> Picture:
        """The picture with the channels that the network takes, in the numbers of the file, still not decoded.

        Its pixels are ``Broken`` where the channels do not fit.
        """

        def decoded(reduction: int) -> np.ndarray:
            check_channels(picture, self.channels)
            whole = replace(picture, max_pixels=self.max_pixels)
            return fitted(whole.pixels(reduction), self.channels, alpha=picture.alpha)

        # The limit is that of the picture in the file, which ``decoded`` asks.
        return replace(picture, channels=self.channels, alpha=False, max_pixels=_ANY, decoded=decoded)


RGB = Reading()
"""Red, green and blue in 8 bits, what most networks take."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations of EXIF that swap height and width."""


def turned(pixels: Shaped[np.ndarray, "Y X C"], orientation: int) -> Shaped[np.ndarray, "y x C"]:
    """Pixels as they are meant to be seen, by the orientation of EXIF (1 to 8; others change nothing)."""
    if orientation not in range(2, 9):
        return pixels
    # A pixel moved as one thing takes half the time of its channels one by one.
    things = np.ascontiguousarray(pixels).view(np.dtype((np.void, pixels.shape[2] * pixels.dtype.itemsize)))[:, :, 0]
    things = things.T if orientation in SIDEWAYS else things
    down = -1 if orientation in {3, 4, 7, 8} else 1
    across = -1 if orientation in {2, 3, 6, 7} else 1
    moved = np.ascontiguousarray(things[::down, ::across])
    return moved.view(pixels.dtype).reshape(*moved.shape, pixels.shape[2])


def first_line(error: Exception) -> str:
    """What an error says, short enough for a list of reasons."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def check_channels(picture: Picture, wanted: int) -> None:
    """Refuse a picture that does not have the channels of the network, before it is decoded.

    Raises:
        Broken: Neither so many channels, nor grey or RGB (with or without transparency) where the other one is wanted.
    """
    colours = picture.channels - picture.alpha
    if picture.channels != wanted and not (wanted in {1, 3} and colours in {1, 3}):
        bands = f"{picture.channels} channel{'s' if picture.channels > 1 else ''}"
        raise Broken(f"has {bands}, the backbone takes {wanted}")


def fitted(pixels: Shaped[np.ndarray, "Y X C"], wanted: int, *, alpha: bool) -> Shaped[np.ndarray, "Y X K"]:
    """The channels that a network takes, in the numbers of the file.

    Grey is repeated three times and transparency dropped, as the released DINOv2 does (``convert("RGB")``); RGB becomes
    grey by the luma of ITU-R 601. Nothing else is converted: ``check_channels`` refuses the rest.
    """
    if pixels.shape[2] == wanted:
        return pixels
    colours = pixels[:, :, :-1] if alpha else pixels
    if colours.shape[2] == wanted:
        return colours
    if wanted == 3:
        return np.repeat(colours, 3, axis=2)
    grey = colours.astype(np.float64) @ np.asarray(_LUMA)
    grey = grey.round() if np.issubdtype(pixels.dtype, np.integer) else grey
    return grey.astype(pixels.dtype)[:, :, None]


def as_bytes(
    pixels: Shaped[np.ndarray, "Y X C"], range: tuple[tuple[float, float], ...] | None
) -> UInt8[np.ndarray, "Y X C"]:
    """Pixels in 256 levels, the low end of ``range`` as 0 and its high end as 255, see ``unit``.

    Views travel as bytes, so finer steps than 1/255 of the range are lost.

    Raises:
        Broken: As ``unit``.
    """
    if range is None and pixels.dtype == np.uint8:
        return pixels
    return (unit(pixels, range) * 255).round().astype(np.uint8)


def unit(
    pixels: Shaped[np.ndarray, "... C"], range: tuple[tuple[float, float], ...] | None
) -> Float[np.ndarray, "... C"]:
    """Numbers from 0 to 1, the ends of ``range`` or of the type; what lies beyond is cut off, and NaN is the low end.

    Raises:
        Broken: Neither a range nor a type that has one, or not one pair for all channels or one for each.
    """
    if range is None:
        if pixels.dtype not in HIGHEST:
            raise Broken(f"has numbers of type {pixels.dtype}, which need data.range; `dinoforge stats` prints it")
        range = ((0, HIGHEST[pixels.dtype]),)
    if len(range) not in {1, pixels.shape[-1]}:
        raise Broken(f"has {pixels.shape[-1]} channels, data.range is for {len(range)}")
    # Float32 holds every 16-bit number, and not every 32-bit one.
    work = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
    low, high = np.asarray(range, dtype=np.float64).T
    scaled = (pixels.astype(work) - low.astype(work)) / (high - low).astype(work)
    return np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
