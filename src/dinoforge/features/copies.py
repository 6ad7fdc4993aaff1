"""A descriptor of near copies that needs no weights: where a picture is bright, and which way its edges run.

It is the layout that perceptual hashes take their bits from (the low frequencies of the discrete cosine transform), kept as
numbers and for each colour, and beside it a grid of histograms of gradient directions (as in HOG, Dalal and Triggs 2005).
Every colour is freed of its own mean and spread, so a picture that was brightened or tinted keeps its descriptor.
Compression, resizing and recolouring hardly move it, a crop moves it a little; what is turned by more than some degrees
or mostly covered it does not recognise. A trained descriptor (SSCD) does. Pairs that it proposes are settled by ``verify``.

Axes: N images, T by T pixels of a thumbnail, C channels, D numbers of a descriptor.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from dinoforge.data.picture import HIGHEST, Picture, as_bytes, fitted

NAME = "layout"
"""Stands in artefacts for this descriptor, next to ``WIDTH``; training-free."""
SIDE = 32
"""Pixels of a thumbnail down and across; the picture's aspect is given up on purpose, as in SSCD's 320 by 320."""

_FREQUENCIES = 40
_CELLS, _DIRECTIONS = 4, 8
_FAINTEST = 4.0
"""Spread of a colour, in 8-bit steps, below which it counts as flat and is not stretched: noise is no layout."""
_AT_ONCE = 1024
WIDTH = 3 * _FREQUENCIES + _CELLS**2 * _DIRECTIONS

Thumbnails = UInt8[np.ndarray, "N 32 32 3"]


def thumbnail(pixels: UInt8[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "32 32 3"]:
    """All that the descriptor and ``verify`` know of a picture: 3,072 bytes. Its channels as in ``three``."""
    return cv2.resize(np.ascontiguousarray(three(pixels)), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)


def in_bytes(picture: Picture, pixels: Shaped[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "Y X c"]:
    """Pixels in 8 bits, colours without transparency; those without a white are stretched to 256 levels."""
    colours = picture.channels - picture.alpha
    known = fitted(pixels, 3, alpha=picture.alpha) if colours in {1, 3} else pixels
    stretch = None
    if known.dtype not in HIGHEST:
        finite = known[np.isfinite(known)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        stretch = ((low, high if high > low else low + 1),)
    return as_bytes(known, stretch)


def three(pixels: UInt8[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Three channels of any: one counts three times; of more than three, neighbours are averaged to three."""
    channels = pixels.shape[2]
    if channels > 3:
        parts = np.array_split(np.arange(channels), 3)
        pixels = np.stack([pixels[..., part].mean(axis=2) + 0.5 for part in parts], axis=2).astype(np.uint8)
    elif channels < 3:
        pixels = pixels[..., [0, 0, channels - 1]]
    return pixels


def describe(thumbnails: Thumbnails) -> Float[np.ndarray, "N D"]:
    """Descriptors of length 1, float32; float16 holds them well. A flat picture has zeros alone."""
    parts = [_described(thumbnails[start : start + _AT_ONCE]) for start in range(0, len(thumbnails), _AT_ONCE)]
    return np.concatenate([np.zeros((0, WIDTH), np.float32), *parts])


def _described(thumbnails: Thumbnails) -> Float[np.ndarray, "N D"]:
    x = thumbnails.astype(np.float32)
    x = x - x.mean(axis=(1, 2), keepdims=True)
    x = x / np.maximum(np.sqrt((x**2).mean(axis=(1, 2), keepdims=True)), _FAINTEST)
    layout = np.einsum("ui,nijc,vj->nuvc", _COSINES, x, _COSINES, optimize=True)[:, _DOWN, _ACROSS]
    both = [unit(layout.reshape(len(x), 3 * _FREQUENCIES)), unit(_directions(x.mean(axis=3)))]
    return unit(np.concatenate(both, axis=1)).astype(np.float32)


def mirrored(descriptors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """The descriptors of the same pictures, left and right exchanged; what is searched to find flipped copies."""
    n, many = len(descriptors), 3 * _FREQUENCIES
    signs = np.where(_ACROSS % 2 == 1, -1, 1).astype(descriptors.dtype)
    layout = descriptors[:, :many].reshape(n, _FREQUENCIES, 3) * signs[:, None]
    edges = descriptors[:, many:].reshape(n, _CELLS, _CELLS, _DIRECTIONS)
    # A direction a becomes half a turn minus a: of eight, number b becomes 4 - b.
    edges = edges[:, :, ::-1, (_DIRECTIONS // 2 - np.arange(_DIRECTIONS)) % _DIRECTIONS]
    return np.concatenate([layout.reshape(n, many), edges.reshape(n, _CELLS**2 * _DIRECTIONS)], axis=1)


def unit(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Rows of length 1; one of zeros stays so."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _cosines(count: int) -> Float[np.ndarray, "U T"]:
    """Rows of the orthonormal discrete cosine transform (DCT-II), lowest frequency first."""
    angle = np.pi * (np.arange(SIDE) + 0.5) / SIDE
    rows = np.cos(np.arange(count)[:, None] * angle) * np.sqrt(2 / SIDE)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


_RANGE = 9
_COSINES = _cosines(_RANGE)
_U, _V = (axis.ravel() for axis in np.indices((_RANGE, _RANGE)))
_LOWEST = np.lexsort((_U, np.maximum(_U, _V), _U**2 + _V**2))[1 : 1 + _FREQUENCIES]
_DOWN, _ACROSS = _U[_LOWEST], _V[_LOWEST]


def _cells() -> Float[np.ndarray, "cell T"]:
    """How much each of ``SIDE`` pixels in a line belongs to each cell: all of it, shared between the two nearest."""
    place = (np.arange(SIDE) + 0.5) / SIDE * _CELLS - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(place, 0, _CELLS - 1) - np.arange(_CELLS)[:, None])).astype(np.float32)


def _directions(grey: Float[np.ndarray, "N T T"]) -> Float[np.ndarray, "N E"]:
    """Histograms of gradient directions, weighed by the root of their strength; their common mean is taken off."""
    smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 0.7) for image in grey]) if len(grey) else grey
    down, across = np.gradient(smooth, axis=1), np.gradient(smooth, axis=2)
    place = np.arctan2(down, across) / (2 * np.pi) * _DIRECTIONS
    apart = np.abs((place[..., None] - np.arange(_DIRECTIONS) + _DIRECTIONS / 2) % _DIRECTIONS - _DIRECTIONS / 2)
    votes = np.hypot(down, across)[..., None] * np.maximum(0, 1 - apart)
    cells = _cells()
    found = np.sqrt(np.einsum("ay,nyxd,bx->nabd", cells, votes.astype(np.float32), cells, optimize=True))
    flat = found.reshape(len(grey), -1)
    return flat - flat.mean(axis=1, keepdims=True)
