"""Places of a picture made unrecognisable, such as faces: what is left of each is a handful of smooth colours.

A place becomes the means of a few cells, drawn smoothly: unlike a Gaussian, of which much can be undone, at most
``CELLS`` x ``CELLS`` colours are left, at whatever size the picture was decoded.

Axes: Y by X pixels, C channels, b boxes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Shaped

from dinoforge.data.picture import Picture

CELLS = 6
"""Cells down and across a place: a face of 6 by 6 colours is nobody's."""
_MARGIN = 0.15
"""Share of a box's sides that is added on every side; there the blur fades into the picture, so that no edge is drawn."""


def blurred(picture: Picture, boxes: Float[np.ndarray, "b 4"]) -> Picture:
    """The picture without what is in the boxes; still not decoded.

    Args:
        boxes: Left, top, right, bottom, in shares of width and height, 0 to 1.
    """
    if not len(boxes):
        return picture
    return replace(picture, decoded=lambda reduction: blurred_pixels(picture.decoded(reduction), boxes))


def blurred_pixels(pixels: Shaped[np.ndarray, "Y X C"], boxes: Float[np.ndarray, "b 4"]) -> Shaped[np.ndarray, "Y X C"]:
    """A copy of pixels of any numbers without what is in the boxes."""
    found = np.array(pixels)
    for left, top, right, bottom in boxes.tolist():
        rows = _Reach(top, bottom, found.shape[0])
        columns = _Reach(left, right, found.shape[1])
        place = found[rows.span, columns.span]
        if not place.size:
            continue
        plain = np.nan_to_num(place.astype(np.float64))
        smooth = np.einsum("ya,abc,xb->yxc", rows.drawn, _means(plain, rows, columns), columns.drawn, optimize=True)
        share = (rows.share[:, None] * columns.share)[..., None]
        mixed = plain * (1 - share) + smooth * share
        if found.dtype.kind in "iu":
            limits = np.iinfo(found.dtype)
            mixed = mixed.round().clip(limits.min, limits.max)
        found[rows.span, columns.span] = mixed.astype(found.dtype)
    return found


def _means(place: np.ndarray, rows: _Reach, columns: _Reach) -> np.ndarray:
    """Mean colours of the cells."""
    return np.einsum("ay,yxc,bx->abc", rows.mean, place, columns.mean, optimize=True)


class _Reach:
    """One side of a place: its pixels, the means of its cells, how they are drawn, and how much of it is left."""

    def __init__(self, start: float, stop: float, pixels: int) -> None:
        margin = _MARGIN * (stop - start)
        first = max(0, int(np.floor((start - margin) * pixels)))
        last = min(pixels, int(np.ceil((stop + margin) * pixels)))
        self.span = slice(first, max(first, last))
        length = max(last - first, 0)
        cells = min(CELLS, length)
        at = np.arange(length)
        cell = at * cells // max(length, 1)
        self.mean = np.zeros((cells, length))
        self.mean[cell, at] = 1
        self.mean /= np.maximum(self.mean.sum(axis=1, keepdims=True), 1)
        # Linear between the middles of the cells, constant outside of the first and the last.
        place = ((at + 0.5) * cells / max(length, 1) - 0.5).clip(0, max(cells - 1, 0))
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, max(cells - 1, 0))
        self.drawn = np.zeros((length, cells))
        self.drawn[at, low] += 1 - (place - low)
        self.drawn[at, high] += place - low
        # 1 in the box itself, down to 0 at the ends of the margins.
        middle = (first + at + 0.5) / pixels
        outside = np.maximum(start - middle, middle - stop).clip(0)
        self.share = (1 - outside / max(margin, 1e-9)).clip(0, 1)
