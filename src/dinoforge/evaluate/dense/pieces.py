"""A head's map on any part of a picture of any size, of which the whole is never held.

Resizing, and the mean of windows that overlap, are linear, and go along rows and columns apart. So a channel k at a pixel is
the sum over windows i, j and their cells of ``down[i, h, Y] * cells[i, j, k, h, w] * across[j, w, X]``: the same numbers as
``tests/slow_maps.py``, of any rectangle, from the few cells of the windows that touch it. Windows are computed row by row when
they are first asked for, and forgotten above what was asked last.

Axes: K channels, Y by X pixels of a picture, y by x of a resized one, I by J windows, h by w cells of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.data.augment import resize
from dinoforge.data.picture import Broken
from dinoforge.evaluate.dense.cut import resized_to
from dinoforge.evaluate.dense.infer import STRIDE, MapHead, ViewingConfig, starts
from dinoforge.evaluate.dense.trunk import Trunk, margins

_NUMBERS = 2**23
"""In a rectangle that is computed at once, over all channels."""
_SIDE = 512
"""Pixels along a side of it at most."""
_MOST_PATCHES = 2**16
"""That a backbone sees at once: attention costs the square of them."""
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Viewing:
    """How pictures are looked at."""

    short_side: int | None
    """Pixels that the short side is resized to, at scale 1; None: its own."""
    window: int | None
    """Side of the square that is seen at once, in pixels; None: the whole picture."""
    stride: int | None = None
    """Pixels from one window to the next; None: two thirds of one."""
    scales: tuple[float, ...] = (1.0,)
    """Of the short side; the answers at all of them are averaged."""
    flip: bool = False
    """Whether the mirrored picture is seen too, and the answers averaged."""

    @staticmethod
    def of(config: ViewingConfig, *, short_side: int, window: int) -> Viewing:
        """As an evaluation looks at test pictures."""
        return Viewing(short_side, window if config.inference == "slide" else None, None, config.scales, config.flip)


@dataclass(frozen=True, slots=True)
class _Share:
    """What the cells of a window add along one axis of the picture."""

    span: Span
    """Pixels that it reaches."""
    weights: Float[Tensor, "h n"]
    """Of each cell in each of these pixels."""

    def on(self, span: Span) -> tuple[slice, Float[Tensor, "h m"]] | None:
        """The part of a span that it reaches, counted from there, and the weights in it."""
        first, last = max(span[0], self.span[0]), min(span[1], self.span[1])
        if first >= last:
            return None
        return slice(first - span[0], last - span[0]), self.weights[:, first - self.span[0] : last - self.span[0]]


class Pieces:
    """One view of a picture: resized, perhaps mirrored, seen by windows.

    Args:
        scale: Which of the viewing's scales.

    Raises:
        Broken: More is seen at once than can be computed.
    """

    def __init__(
        self, trunk: Trunk, head: MapHead, pixels: UInt8[np.ndarray, "Y X C"], viewing: Viewing, *, scale: float,
        mirrored: bool,
    ) -> None:  # fmt: skip
        self.size = (pixels.shape[0], pixels.shape[1])
        side = (viewing.short_side or min(self.size)) * scale
        seen = self.size if viewing.short_side is None and scale == 1 else resized_to(self.size, side)
        image = resize(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), *seen)
        self._image = image.flip(-1) if mirrored else image
        self._trunk, self._head, self._mirrored = trunk, head, mirrored
        self._part = tuple(min(viewing.window or length, length) for length in seen)
        stride = viewing.stride or max(1, int((viewing.window or max(seen)) * STRIDE))
        self._starts = [starts(length, part, stride) for length, part in zip(seen, self._part, strict=True)]
        self._rows, self._shares = dict[int, Tensor](), list[list[_Share]]()
        if (count := _patches(self._part, trunk.patch)) > _MOST_PATCHES:
            raise Broken(f"{count:,} patches at once are more than {_MOST_PATCHES:,}; make pixels or window smaller")

    @property
    def channels(self) -> int:
        """How many a map has."""
        return int(self._cells(0).shape[1])

    def scores(self, rows: Span, columns: Span) -> Float[Tensor, "K n m"]:
        """The map on a rectangle of the picture. Rectangles are asked for from the top down."""
        down, across = self._down_and_across()
        for gone in [number for number in self._rows if down[number].span[1] <= rows[0]]:
            del self._rows[gone]
        found: Tensor | None = None
        for number, share in enumerate(down):
            if (above := share.on(rows)) is None:
                continue
            cells = self._cells(number)
            if found is None:
                found = cells.new_zeros(cells.shape[1], rows[1] - rows[0], columns[1] - columns[0])
            for place, beside in enumerate(across):
                if (left := beside.on(columns)) is not None:
                    found[:, above[0], left[0]] += above[1].T @ cells[place] @ left[1]
        assert found is not None, f"no window reaches rows {rows}"
        return found

    def _down_and_across(self) -> list[list[_Share]]:
        if not self._shares:
            for axis, cells in enumerate(self._cells(0).shape[-2:]):
                length = (self._image.shape[1 + axis], self.size[axis])
                found = _shares(length, self._starts[axis], self._part[axis], patch=self._trunk.patch, cells=cells)
                found = [_Share(one.span, one.weights.to(self._cells(0).device)) for one in found]
                self._shares.append([_turned(one, length[1]) for one in found] if axis and self._mirrored else found)
        return self._shares

    @torch.no_grad()
    def _cells(self, number: int) -> Float[Tensor, "J K h w"]:
        """What the head makes of a row of windows."""
        if number not in self._rows:
            (tall, wide), top = self._part, self._starts[0][number]
            parts = torch.stack([self._image[:, top : top + tall, left : left + wide] for left in self._starts[1]])
            some = [self._head(self._trunk(one)).float() for one in parts.split(self._trunk.how.rows_at_once)]
            self._rows[number] = torch.cat(some)
        return self._rows[number]


def _patches(part: tuple[int, ...], patch: int) -> int:
    return int(np.prod([-(-length // patch) for length in part]))


def _shares(length: Span, begins: list[int], part: int, *, patch: int, cells: int) -> list[_Share]:
    """Of every window along an axis.

    Args:
        length: Of the resized picture and of the picture itself.
        part: Length of a window.
        cells: Of a window, its margins included.
    """
    seen, own = length
    before, after = margins(part, patch)
    alone = F.interpolate(torch.eye(cells)[None], before + part + after, mode="linear", align_corners=False)
    alone = alone[0, :, before : before + part]
    count = torch.zeros(seen)
    for start in begins:
        count[start : start + part] += 1
    found = []
    for start in begins:
        whole = torch.zeros(1, cells, seen)
        whole[0, :, start : start + part] = alone / count[start : start + part]
        whole = whole if seen == own else F.interpolate(whole, own, mode="linear", align_corners=False)
        reached = whole[0].any(0).nonzero().flatten()
        span = (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 0)
        found.append(_Share(span, whole[0, :, span[0] : span[1]].clone()))
    return found


def _turned(share: _Share, own: int) -> _Share:
    """Of the mirrored picture, in the places of the picture itself."""
    return _Share((own - share.span[1], own - share.span[0]), share.weights.flip(1))


def pieces(
    trunk: Trunk, head: MapHead, pixels: UInt8[np.ndarray, "Y X C"], viewing: Viewing, *,
    answer: Callable[[Tensor], Tensor] = lambda scores: scores,
) -> Iterator[tuple[slice, slice, Float[Tensor, "K n m"]]]:  # fmt: skip
    """A head's map on the pixels of a picture, rectangle by rectangle; every pixel is in one of them.

    Args:
        answer: What is averaged over scales and mirrored pictures, made of the head's scores ``[K n m]``.

    Raises:
        Broken: More is seen at once than can be computed.
    """
    mirrors = (False, True) if viewing.flip else (False,)
    views = [
        Pieces(trunk, head, pixels, viewing, scale=scale, mirrored=mirrored)
        for scale in viewing.scales
        for mirrored in mirrors
    ]
    height, width = views[0].size
    wide = min(width, _SIDE)
    tall = max(1, min(_SIDE, _NUMBERS // (wide * views[0].channels)))
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            rows, columns = (top, min(top + tall, height)), (left, min(left + wide, width))
            found = answer(views[0].scores(rows, columns))
            for view in views[1:]:
                found = found + answer(view.scores(rows, columns))
            yield slice(*rows), slice(*columns), found / len(views)


def joined(
    trunk: Trunk, head: MapHead, pixels: UInt8[np.ndarray, "Y X C"], viewing: Viewing, *,
    made: Callable[[Tensor], Tensor], answer: Callable[[Tensor], Tensor] = lambda scores: scores,
) -> Shaped[np.ndarray, "Y X"]:  # fmt: skip
    """What is made of a head's map, on all pixels of a picture; of the map itself there is one rectangle at a time.

    Args:
        made: From ``[K n m]`` to ``[n m]``.
        answer: See ``pieces``.

    Raises:
        DataError: More is seen at once than can be computed.
    """
    found: np.ndarray | None = None
    try:
        for rows, columns, part in pieces(trunk, head, pixels, viewing, answer=answer):
            values = made(part).cpu().numpy()
            found = np.empty(pixels.shape[:2], values.dtype) if found is None else found
            found[rows, columns] = values
    except Broken as error:
        raise DataError(f"a test picture of {pixels.shape[1]}x{pixels.shape[0]}: {error}.") from None
    assert found is not None, "a picture has pixels"
    return found
