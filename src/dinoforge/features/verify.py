"""Are two pictures one? Lays one thumbnail over the other in every plausible way and compares what then coincides.

A descriptor says which pairs are worth a look; at a low threshold, so that it misses little. Here each of these is settled:
every window of the one is compared with the whole of the other and the reverse, first coarsely, then, where that looks
promising, with edges moved by fractions of a pixel and without the lowest frequencies, which many pictures share. Neither may
bars, frames and lines of text decide, of which sparse pictures consist: the comparison is also made without what whole rows
and whole columns have in common, and the lower of the two counts.
No training, and no figures but those of the comparison.

Axes: N images, T by T pixels of a thumbnail, P pairs, W windows, w windows along one
side (first and last edge, as shares of the side), m by m pixels of a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from pydantic import Field
from threadpoolctl import threadpool_limits

from dinoforge.base.config import Config
from dinoforge.base.processes import spread
from dinoforge.features.compressed import Rows
from dinoforge.features.copies import SIDE, Thumbnails

_COARSE, _FINE = 16, 24
"""Pixels of the two comparisons down and across."""
_STEP = 1 / 15
"""Between the edges of two windows, as a share of the side: about a pixel of the coarse comparison."""
_MOVES = np.arange(-2, 3) / 60
"""By how much the fine comparison moves an edge, twice."""
_SHARED = 2.5
"""Standard deviation of the blur, in pixels of the fine comparison, whose result two pictures may share by chance."""
_GRANTED = 0.03
"""By how much the comparison without whole rows and columns may be worse: less of the picture, more of JPEG's noise is left
(of pairs that pass the other comparison, 98 in 100 pages of text that differ have 0.83 or less, 98 in 100 copies by
compression, size, colour or a crop of 30 % have 0.95 or more)."""
_FAINTEST = 2.0
_LIMIT = Lock()
_GROUPS, _PLACES = 32, 256
"""Pictures with all their partners, and promising pairs, that are compared in one go; a process has many of both."""


class VerifyConfig(Config):
    """When two pictures count as one."""

    promising: float = Field(default=0.9, ge=0, le=1)
    """Correlation of the coarse comparison from which on the fine one is made (toy worlds at 64 pixels: copies by
    compression, size, colour or a crop of 30 % have 0.93 and more)."""
    smallest_side: float = Field(default=0.65, ge=0.5, le=1)
    """Shortest window, as a share of the side: 0.65 finds crops that keep 42 % of the area."""
    stretch: float = Field(default=1.28, ge=1, le=2)
    """Largest change of the aspect by a crop, as a factor."""


@dataclass(frozen=True, slots=True)
class _Windows:
    sides: Float[np.ndarray, "w 2"]
    down: Int[np.ndarray, " W"]
    across: Int[np.ndarray, " W"]
    resample: Float32[np.ndarray, "w m T"]


def aligned_similarity(
    thumbnails: Rows,
    left: Int[np.ndarray, " P"],
    right: Int[np.ndarray, " P"],
    *,
    mirror: Bool[np.ndarray, " P"] | None = None,
    config: VerifyConfig,
    workers: int = 1,
) -> Float32[np.ndarray, " P"]:
    """Correlation of the detail of each pair where they coincide best, -1 to 1; -1 where it does not look promising.

    Args:
        thumbnails: ``[N 32 32 3]``, uint8; read are those of the pairs.
        mirror: The pairs of which one picture is looked at with left and right exchanged.
        workers: Processes that compare; they change nothing of the result.
    """
    cv2.setNumThreads(1)  # processes that are forked while it has threads would wait for them for ever
    # Threads for products as small as these wait for one another: on a busy machine up to thirty times as long. The limit
    # is the process's own: of two that set it at once, the later would find the limit of the other and leave that behind.
    with _LIMIT, threadpool_limits(1, user_api="blas"):
        return _aligned(thumbnails, left, right, mirror, config, workers)


def _aligned(
    thumbnails: Rows,
    left: Int[np.ndarray, " P"],
    right: Int[np.ndarray, " P"],
    mirror: Bool[np.ndarray, " P"] | None,
    config: VerifyConfig,
    workers: int,
) -> Float32[np.ndarray, " P"]:
    """As ``aligned_similarity``, whatever threads there are."""
    windows, pairs = _windows(config), np.arange(len(left))
    flip = np.zeros(len(left), dtype=bool) if mirror is None else mirror
    score, outer, inside = np.full(len(left), -1.0, np.float32), np.zeros_like(left), np.zeros(len(left), np.int64)
    # Every picture is once taken apart, and its windows are held against all of its partners, whichever side they stand on.
    one, other, pair = np.concatenate([left, right]), np.concatenate([right, left]), np.concatenate([pairs, pairs])
    order = np.argsort(one, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(one[order])) + 1) if len(order) else []

    def fitted(some: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            _fitting(_smooth(thumbnails[one[g[:1]]])[0], _wholes(thumbnails, other[g], flip[pair[g]]), windows)
            for g in some
        ]

    parts = [groups[start : start + _GROUPS] for start in range(0, len(groups), _GROUPS)]
    for some, answers in zip(parts, spread(fitted, parts, workers=workers), strict=True):
        for group, (window, found) in zip(some, answers, strict=True):
            at = pair[group]
            better = found > score[at]
            at = at[better]
            score[at], outer[at], inside[at] = found[better], one[group[0]], window[better]

    def compared(places: np.ndarray) -> list[float]:
        found = []
        for place in places.tolist():
            whole = _wholes(thumbnails, left[[place]] + right[[place]] - outer[[place]], flip[[place]])[0]
            down, across = windows.sides[windows.down[inside[place]]], windows.sides[windows.across[inside[place]]]
            found.append(_settled(_smooth(thumbnails[outer[[place]]])[0], whole, down, across))
        return found

    settled, promising = np.full(len(left), -1.0, dtype=np.float32), np.flatnonzero(score >= config.promising)
    places = np.split(promising, range(_PLACES, len(promising), _PLACES))
    for at, near in zip(places, spread(compared, places, workers=workers), strict=True):
        settled[at] = near
    return settled


def _wholes(
    thumbnails: Rows, rows: Int[np.ndarray, " n"], flip: Bool[np.ndarray, " n"]
) -> Float32[np.ndarray, "n 3 T T"]:
    chosen = thumbnails[rows]
    chosen[flip] = chosen[flip, :, ::-1]
    return _smooth(chosen)


def _fitting(
    picture: Float32[np.ndarray, "3 T T"], wholes: Float32[np.ndarray, "n 3 T T"], windows: _Windows
) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The window of one picture that is most like each of some whole others, and its correlation with it."""
    count, size = len(windows.sides), _COARSE
    rows = np.matmul(windows.resample[None], picture[:, None])  # c w i k
    parts = rows.reshape(3, count * size, SIDE) @ windows.resample.reshape(count * size, SIDE).T
    parts = parts.reshape(3, count, size, count, size).transpose(1, 3, 0, 2, 4)[windows.down, windows.across]
    scores = _correlations(parts, _resampled(wholes, _WHOLE_COARSE))
    return scores.argmax(axis=0), scores.max(axis=0)


def _settled(
    picture: Float32[np.ndarray, "3 T T"],
    whole: Float32[np.ndarray, "3 T T"],
    down: Float[np.ndarray, "2"],
    across: Float[np.ndarray, "2"],
) -> float:
    """Correlation of the detail of a window of one picture with that of the whole other, after moving the window to fit."""
    target = part = _resampled(whole[None], _WHOLE_FINE)
    for _ in range(2):
        tried = _moved(across)
        rows = _lines(down[None], _FINE) @ picture  # c i k
        parts = np.matmul(rows[None], _lines(tried, _FINE).transpose(0, 2, 1)[:, None])
        across = tried[int(_correlations(parts, target)[:, 0].argmax())]
        tried = _moved(down)
        columns = picture @ _lines(across[None], _FINE)[0].T  # c j l
        parts = np.matmul(_lines(tried, _FINE)[:, None], columns[None])
        chosen = int(_correlations(parts, target)[:, 0].argmax())
        down, part = tried[chosen], parts[[chosen]]
    part, target = _detail(part), _detail(target)
    whole, rest = (_correlations(*pair)[0, 0] for pair in ((part, target), (_uncommon(part), _uncommon(target))))
    return float(min(whole, rest + _GRANTED))


def _windows(config: VerifyConfig) -> _Windows:
    """Every window whose sides are whole steps shorter than the picture's, and whose aspect is near enough to its."""
    lengths = 1 - _STEP * np.arange(round((1 - config.smallest_side) / _STEP) + 1)
    sides = np.asarray(
        [
            (first * _STEP, min(first * _STEP + length, 1.0))
            for steps, length in enumerate(lengths)
            for first in range(steps + 1)
        ]
    )
    long = sides[:, 1] - sides[:, 0]
    down, across = np.nonzero(np.abs(np.log(long[:, None] / long)) <= np.log(config.stretch) + 1e-9)
    return _Windows(sides, down, across, _lines(sides, _COARSE))


def _lines(edges: Float[np.ndarray, "w 2"], count: int) -> Float32[np.ndarray, "w m T"]:
    """The means of ``count`` equal parts of the stretch between two edges, as weights of its pixels."""
    first, last = edges[:, :1], edges[:, 1:]
    cuts = (first + (last - first) * np.arange(count + 1) / count) * SIDE
    low, high, pixel = cuts[:, :-1, None], cuts[:, 1:, None], np.arange(SIDE)
    shared = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return (shared / (high - low)).astype(np.float32)


_WHOLE_COARSE, _WHOLE_FINE = (_lines(np.asarray([[0.0, 1.0]]), count)[0] for count in (_COARSE, _FINE))


def _moved(edges: Float[np.ndarray, "2"]) -> Float[np.ndarray, "w 2"]:
    moves = np.stack(np.meshgrid(_MOVES, _MOVES, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.clip(edges + moves, 0.0, 1.0)


def _resampled(
    pictures: Float32[np.ndarray, "n 3 T T"], line: Float32[np.ndarray, "m T"]
) -> Float32[np.ndarray, "n 3 m m"]:
    return line @ pictures @ line.T


def _smooth(thumbnails: Thumbnails) -> Float32[np.ndarray, "n 3 T T"]:
    """Without what compression and resizing change first, and around a mean of 0."""
    smooth = np.stack([cv2.GaussianBlur(picture, (0, 0), 1.0) for picture in thumbnails.astype(np.float32)])
    return np.ascontiguousarray((smooth - smooth.mean(axis=(1, 2), keepdims=True)).transpose(0, 3, 1, 2))


def _detail(part: Float32[np.ndarray, "1 3 m m"]) -> Float32[np.ndarray, "1 3 m m"]:
    return part - np.stack([cv2.GaussianBlur(colour, (0, 0), _SHARED) for colour in part[0]])[None]


def _uncommon(part: Float32[np.ndarray, "1 3 m m"]) -> Float32[np.ndarray, "1 3 m m"]:
    """Without what whole rows and whole columns have in common. Of a picture of bars alone nothing is left."""
    rows, columns = part.mean(axis=3, keepdims=True), part.mean(axis=2, keepdims=True)
    return part - rows - columns + rows.mean(axis=2, keepdims=True)


def _correlations(
    parts: Float32[np.ndarray, "W 3 m m"], targets: Float32[np.ndarray, "n 3 m m"]
) -> Float32[np.ndarray, "W n"]:
    """Correlation of every part with every target, over all colours, each first freed of its mean and spread.

    A colour that hardly varies is not stretched.
    """
    x, y = (some.reshape(*some.shape[:2], -1) for some in (parts, targets))
    weight, length = _scaled(x)
    y_weight, y_length = _scaled(y)
    y = (y - y.mean(axis=2, keepdims=True)) * y_weight[..., None]
    # The targets' mean is 0, so that of the parts makes no difference to their products.
    products = np.matmul(x.transpose(1, 0, 2), y.transpose(1, 2, 0))  # c W n
    return (products * weight.T[..., None]).sum(axis=0) / (length[:, None] * y_length)


def _scaled(x: Float32[np.ndarray, "n 3 F"]) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, " n"]]:
    """By what each colour is multiplied, and how long the row of all colours is then."""
    mean, square = x.mean(axis=2), np.einsum("ncf,ncf->nc", x, x) / x.shape[2]
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    weight = 1 / np.maximum(spread, _FAINTEST)
    return weight, np.maximum(np.sqrt(((spread * weight) ** 2).sum(axis=1) * x.shape[2]), 1e-6)
