"""What a crawl brings along: near-copies of known kind and strength, and junk.

Axes: C channels, Y by X pixels of the original, y by x of the copy.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from dinoforge.data.decode import decode

Pixels = UInt8[np.ndarray, "Y X 3"]
Changed = UInt8[np.ndarray, "y x 3"]
Truth = Shaped[np.ndarray, "Y X"]
MovedTruth = Shaped[np.ndarray, "y x"]
Draw = np.random.Generator


def png(pixels: Pixels) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # 3 times as fast as the default, 10 % larger
    return file.getvalue()


def jpeg(pixels: Pixels, quality: int) -> bytes:
    """The bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


@dataclass(frozen=True, slots=True)
class CopyKind:
    """One way to copy a picture."""

    mildest: float
    strongest: float
    """Range of the strength; NaN for a kind that has none."""
    change: Callable[[Pixels, float, Draw], Changed]
    """(original, strength, generator) to the copy's pixels."""
    follow: Callable[[Truth, float, Draw], MovedTruth] | None
    """What the same change does to ground truth, given a generator in the same state; None where it is no longer true."""

    def strength(self, rng: Draw) -> float:
        """One of its range, or NaN."""
        return self.mildest + rng.random() * (self.strongest - self.mildest)


def _same(picture: Truth, strength: float, rng: Draw) -> MovedTruth:
    return picture


def _unchanged(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    return pixels


def _compressed(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    return decode(jpeg(pixels, round(strength)))


def _sides(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _resized(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    height, width = _sides(pixels.shape, strength)
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _resized_truth(truth: Truth, strength: float, rng: Draw) -> MovedTruth:
    height, width = _sides(truth.shape, strength)
    down = (np.arange(height) * 2 + 1) * truth.shape[0] // (2 * height)
    across = (np.arange(width) * 2 + 1) * truth.shape[1] // (2 * width)
    return truth[down[:, None], across]


def _window(shape: tuple[int, ...], area: float, rng: Draw) -> tuple[slice, slice]:
    """A window of that share of the area, anywhere."""
    height, width = _sides(shape, math.sqrt(area))
    top, left = int(rng.integers(0, shape[0] - height + 1)), int(rng.integers(0, shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _cropped(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    return pixels[_window(pixels.shape, strength, rng)]


def _cropped_truth(truth: Truth, strength: float, rng: Draw) -> MovedTruth:
    return truth[_window(truth.shape, strength, rng)]


def _flipped(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    return pixels[:, ::-1]


def _flipped_truth(truth: Truth, strength: float, rng: Draw) -> MovedTruth:
    return truth[:, ::-1]


def _coloured(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    """Every channel brighter or darker by up to ``strength``, one of them by all of it."""
    gain = rng.uniform(-1, 1, 3)
    gain = 1 + strength * gain / np.abs(gain).max()
    return (np.clip(pixels * gain, 0, 255) + 0.5).astype(np.uint8)


def _turned_points(shape: tuple[int, ...], degrees: float) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"]]:
    """Points of the original under the pixels of the largest upright square of the turned picture: nothing is filled in."""
    angle, side = math.radians(degrees), min(shape[:2])
    c, s = math.cos(angle), math.sin(angle)
    inner = max(1, math.floor(side / (abs(c) + abs(s))))
    axis = np.arange(inner) + 0.5 - inner / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    down, across = c * y + s * x + shape[0] / 2 - 0.5, c * x - s * y + shape[1] / 2 - 0.5
    return np.clip(down, 0, shape[0] - 1), np.clip(across, 0, shape[1] - 1)


def _turned(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    down, across = _turned_points(pixels.shape, strength)
    top, left = np.floor(down).astype(np.int64), np.floor(across).astype(np.int64)
    below, right = np.minimum(top + 1, pixels.shape[0] - 1), np.minimum(left + 1, pixels.shape[1] - 1)
    part_y, part_x = (down - top)[..., None], (across - left)[..., None]
    upper = pixels[top, left] * (1 - part_x) + pixels[top, right] * part_x
    lower = pixels[below, left] * (1 - part_x) + pixels[below, right] * part_x
    return (upper * (1 - part_y) + lower * part_y + 0.5).astype(np.uint8)


def _turned_truth(truth: Truth, strength: float, rng: Draw) -> MovedTruth:
    down, across = _turned_points(truth.shape, strength)
    return truth[np.round(down).astype(np.int64), np.round(across).astype(np.int64)]


_LETTERS = np.asarray(
    [[int(bit) for bit in f"{bits:015b}"]
     for bits in (0o25755, 0o65656, 0o34443, 0o65556, 0o74747, 0o74744, 0o34553, 0o55755, 0o72227, 0o11152,
                  0o55655, 0o44447, 0o57755, 0o75555, 0o25552, 0o65644, 0o34216, 0o72222, 0o55557, 0o55552)]
).reshape(-1, 5, 3).astype(bool)  # fmt: skip
"""Twenty capital letters of five rows and three columns: an octal digit a row."""


def _line(letters: int, scale: int, rng: Draw) -> UInt8[np.ndarray, "y x"]:
    """A line of random letters, 1 where there is ink; ``scale`` pixels a dot, one dot between letters."""
    chosen = np.pad(_LETTERS[rng.integers(0, len(_LETTERS), letters)], ((0, 0), (0, 0), (0, 1)))
    dots = chosen.transpose(1, 0, 2).reshape(5, -1)
    return np.kron(dots, np.ones((scale, scale))).astype(np.uint8)


def _captioned(pixels: Pixels, strength: float, rng: Draw) -> Changed:
    """A line of letters across the picture, ``strength`` of its height high, white or black."""
    height, width = pixels.shape[:2]
    scale = max(1, round(strength * height / 5))
    ink = _line(max(1, -(-width // (4 * scale))), scale, rng)[:height, :width].astype(bool)
    top = int(rng.integers(0, height - ink.shape[0] + 1))
    captioned = pixels.copy()
    captioned[top : top + ink.shape[0], : ink.shape[1]][ink] = 255 if rng.random() < 0.5 else 0
    return captioned


COPY_KINDS: dict[str, CopyKind] = {
    "exact": CopyKind(math.nan, math.nan, _unchanged, _same),
    "jpeg": CopyKind(90, 20, _compressed, _same),  # quality
    "resize": CopyKind(0.9, 0.4, _resized, _resized_truth),  # factor of both sides
    "crop": CopyKind(0.95, 0.4, _cropped, _cropped_truth),  # share of the area that is kept
    "flip": CopyKind(math.nan, math.nan, _flipped, _flipped_truth),
    "colour": CopyKind(0.1, 0.5, _coloured, _same),  # largest change of a channel, as a share
    "text": CopyKind(0.08, 0.25, _captioned, None),  # height of the letters, as a share; they hide what was true
    "rotation": CopyKind(3, 25, _turned, _turned_truth),  # degrees
}
"""Ways to copy, each with its unit of strength."""


def copied(kind: str, pixels: Pixels, strength: float, rng: Draw) -> bytes:
    """The file of a copy: a JPEG file if the kind is jpeg, else a PNG file; an exact copy's bytes are its original's."""
    if kind == "jpeg":
        return jpeg(pixels, round(strength))
    return png(np.ascontiguousarray(COPY_KINDS[kind].change(pixels, strength, rng)))


def _flat(size: int, rng: Draw) -> Changed:
    return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (size, size, 3))


def _noise(size: int, rng: Draw) -> Changed:
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def _gradient(size: int, rng: Draw) -> Changed:
    one, other = rng.uniform(0, 255, (2, 3))
    turn = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size)
    part = 0.5 + (np.cos(turn) * axis[None, :] + np.sin(turn) * axis[:, None]) / math.sqrt(2)
    return (one + part[..., None] * (other - one) + 0.5).astype(np.uint8)


def _page(size: int, rng: Draw) -> Changed:
    """Lines of dark letters of unequal length on light paper."""
    paper, ink = rng.uniform(200, 255), rng.uniform(0, 80)
    scale = max(1, size // 64)
    margin = min(2 * scale, size // 4)
    page = np.full((size, size), paper)
    for top in range(margin, size - margin, 8 * scale):
        fits = max(1, (size - 2 * margin) // (4 * scale))
        line = _line(int(rng.integers(max(1, fits // 2), fits + 1)), scale, rng)
        room = page[top : min(top + 5 * scale, size), margin : margin + line.shape[1]]
        room[line[: room.shape[0], : room.shape[1]] > 0] = ink
    return np.repeat(page[..., None], 3, axis=2).astype(np.uint8)


def _tiny(size: int, rng: Draw) -> Changed:
    height, width = rng.integers(1, 5, 2)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


JUNK: dict[str, Callable[[int, Draw], Changed]] = {
    "flat": _flat,
    "noise": _noise,
    "gradient": _gradient,
    "page": _page,
    "tiny": _tiny,  # one to four pixels wide and high
    "broken": _noise,  # its file ends early, see ``junk``
}
"""Kinds of pictures that show nothing."""


def junk(kind: str, size: int, rng: Draw) -> bytes:
    """The PNG file of a picture that shows nothing; a broken one is cut off somewhere in its second third."""
    file = png(np.ascontiguousarray(JUNK[kind](size, rng)))
    return file[: int(len(file) * rng.uniform(1 / 3, 2 / 3))] if kind == "broken" else file
