"""Revisited Oxford and Paris (Radenović et al. 2018): ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl`` and ``jpg/``.

Of a query, the columns ``easy``, ``hard`` and ``junk`` name rows of the gallery by their ids, one a line. Its picture is what
the ground truth's box (left, top, right, bottom, in pixels) leaves of the file, here and in ``encoded``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dinoforge.data.decode import Broken, Picture, open_picture
from dinoforge.data.picture import first_line
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.paths import Paths, stamps_of
from dinoforge.data.sources.source import Source
from dinoforge.data.toyworld.pollution import png

_TRUTHS = ("gnd_roxford5k.pkl", "gnd_rparis6k.pkl")
_JUDGED = ("easy", "hard", "junk")
Box = tuple[int, int, int, int]


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return any(folder.has(name) for name in _TRUTHS) and "jpg" in folder.top


def opened(folder: Folder) -> Source:
    """The gallery in the order of ``imlist``, then the queries in that of ``qimlist``.

    Raises:
        DataError: See ``Gathered``, or the ground truth is not what it should be.
    """
    by = folder.first(*_TRUTHS)
    held = folder.pickled(by, "imlist", "qimlist", "gnd")
    gallery, queries = _names(folder, by, held["imlist"]), _names(folder, by, held["qimlist"])
    truths = held["gnd"]
    if not isinstance(truths, list) or len(truths) != len(queries):
        raise folder.error(by, f"does not hold a 'gnd' for each of its {len(queries)} queries")
    found = Gathered(folder)
    for name in gallery:
        found.add(name, by=by, split="gallery")
    boxes: dict[int, Box] = {}
    for name, truth in zip(queries, truths, strict=True):
        try:
            judged = {key: "\n".join(gallery[row] for row in _rows(truth[key], len(gallery))) for key in _JUDGED}
            boxes[len(gallery) + len(boxes)] = _box(truth["bbx"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise folder.error(by, f"has an odd ground truth of {name}: {first_line(error)}") from None
        found.add(name, by=by, split="query", **judged)
    found.check()
    return Boxed(folder, found.columns(), boxes)


def _names(folder: Folder, by: str, listed: Any) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(name, (str, bytes)) for name in listed):
        raise folder.error(by, "holds no list of names")
    return [f"jpg/{name.decode('latin1') if isinstance(name, bytes) else name}.jpg" for name in listed]


def _rows(found: Any, count: int) -> list[int]:
    """Places in the gallery."""
    rows = np.asarray(found).ravel()
    if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= count):
        raise ValueError(f"rows of a gallery of {count:,} images are whole numbers from 0")
    return [int(row) for row in rows.tolist()]


def _box(found: Any) -> Box:
    """To whole pixels, as the published evaluation crops."""
    sides = np.asarray(found, dtype=np.float64).ravel()
    if sides.size != 4 or not np.isfinite(sides).all():
        raise ValueError("a box takes left, top, right and bottom")
    left, top, right, bottom = (round(side) for side in sides.tolist())
    if left >= right or top >= bottom:
        raise ValueError(f"the box {left}, {top}, {right}, {bottom} is empty")
    return left, top, right, bottom


class Boxed(Paths):
    """Files of which some rows show only what is in a box."""

    def __init__(self, folder: Folder, columns: Mapping[str, np.ndarray], boxes: Mapping[int, Box]) -> None:
        super().__init__(
            shown(folder.address), folder.address, columns["id"], columns=columns, options=folder.options,
            stamps=stamps_of(folder.stamps, columns["id"].tolist()),
        )  # fmt: skip
        self._boxes = boxes

    def picture(self, row: int) -> Picture:
        """What is in the row's box."""
        whole = open_picture(super().encoded(row))
        return _cropped(whole, self._boxes[row]) if row in self._boxes else whole

    def encoded(self, row: int) -> bytes:
        """The file's bytes, or a PNG file of what is in the row's box."""
        if row not in self._boxes:
            return super().encoded(row)
        pixels = self.picture(row).pixels()
        return png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def stamp(self, row: int) -> str | None:
        """That of the file, with the box."""
        found = super().stamp(row)
        return f"{found}:{self._boxes[row]}" if found and row in self._boxes else found


def _cropped(whole: Picture, box: Box) -> Picture:
    """A part of a picture, still not decoded; what of the box lies outside is left out."""
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(whole.width, box[2]), min(whole.height, box[3])
    if left >= right or top >= bottom:
        raise Broken(f"the box {box} of the query lies outside of its picture of {whole.width}x{whole.height} pixels")

    def decoded(_reduction: int) -> np.ndarray:
        return np.ascontiguousarray(whole.pixels()[top:bottom, left:right])

    return replace(whole, height=bottom - top, width=right - left, decoded=decoded)
