"""Stored descriptors of a set of images, and the question whether others, or near copies of them, are among them.

A folder with ``descriptors.npy``, ``thumbnails.npy``, ``images.parquet`` (id and SHA-256 of every row), ``descriptors.json``.

Axes: N stored images, Q asked ones, D numbers of a descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped

from dinoforge.base.errors import DataError
from dinoforge.base.files import explained, new_folder, write_json
from dinoforge.features.copies import NAME, SIDE, WIDTH, Thumbnails
from dinoforge.features.pairs import Candidates, LayoutConfig, centre_of, cross_candidates, settled


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Descriptors on disk; mapped, not loaded."""

    ids: Shaped[np.ndarray, " N"]
    sha256: Shaped[np.ndarray, " N"]
    thumbnails: Thumbnails
    values: Float[np.ndarray, "N D"]


@dataclass(frozen=True, slots=True)
class Match:
    """A stored image that an asked one is a copy of."""

    image: int
    """Row of the asked one."""
    id: str
    """Of the stored one."""
    similarity: float
    """Aligned similarity; 1 for the same bytes."""
    kind: str
    """``exact`` or ``near``."""


def write_descriptors(path: Path, found: Descriptors) -> None:
    """Write descriptors, whole or not at all.

    Raises:
        RunError: The folder cannot be written.
    """
    with new_folder(path) as folder, explained(path):
        np.save(folder / "descriptors.npy", found.values.astype(np.float16))
        np.save(folder / "thumbnails.npy", found.thumbnails)
        table = {"id": found.ids.tolist(), "sha256": found.sha256.tolist()}
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in table.items()}),
                       folder / "images.parquet")  # fmt: skip
        write_json(folder / "descriptors.json", {"name": NAME, "width": WIDTH, "rows": len(found.ids)})


def read_descriptors(path: Path) -> Descriptors:
    """Descriptors that ``write_descriptors`` wrote.

    Raises:
        DataError: No such folder, a damaged one, or descriptors of another kind or width.
    """
    try:
        about = json.loads((path / "descriptors.json").read_text(encoding="utf-8"))
        values, thumbnails = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("descriptors", "thumbnails"))
        table = pq.read_table(path / "images.parquet")
        ids, sha256 = (np.asarray(table[name].to_pylist(), dtype=np.str_) for name in ("id", "sha256"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} holds no descriptors: {str(error).splitlines()[0]}") from None
    kind, width = about.get("name"), values.shape[-1]
    if (kind, width) != (NAME, WIDTH):
        raise DataError(
            f"{path} holds descriptors {kind!r} of width {width}; this version compares {NAME!r} of width {WIDTH}. "
            "Run `dinoforge curate` again."
        )
    if not len(ids) == len(sha256) == len(values) == len(thumbnails) or thumbnails.shape[1:] != (SIDE, SIDE, 3):
        raise DataError(f"{path} is damaged: its files are of {len(ids)}, {len(values)} and {len(thumbnails)} images.")
    return Descriptors(ids, sha256, thumbnails, values)


def matches(
    asked: Descriptors, stored: Descriptors, *, threshold: float, config: LayoutConfig, workers: int = 1
) -> list[Match]:
    """What of the stored images the asked ones are copies of, image after image, the most similar first."""
    found = _near(asked, stored, config, workers) if stored.values.shape[1] else {}
    best = {pair: near for pair, near in found.items() if near > threshold}
    exact: set[tuple[int, int]] = set()
    place: dict[str, list[int]] = {}
    for row, key in enumerate(stored.sha256.tolist()):
        place.setdefault(key, []).append(row)
    for image, key in enumerate(asked.sha256.tolist()):
        exact |= {(image, row) for row in (place.get(key, []) if key else [])}
    best |= dict.fromkeys(exact, 1.0)
    order = sorted(best, key=lambda pair: (pair[0], pair not in exact, -best[pair], pair[1]))
    return [
        Match(image, str(stored.ids[row]), round(best[image, row], 4), "exact" if (image, row) in exact else "near")
        for image, row in order
    ]


def _near(asked: Descriptors, stored: Descriptors, config: LayoutConfig, workers: int) -> dict[tuple[int, int], float]:
    some = cross_candidates(asked.values, stored.values, centre=centre_of(stored.values), config=config)
    rows, right = np.unique(some.right, return_inverse=True)
    # Only the thumbnails that are looked at leave the disk.
    pictures = np.concatenate([asked.thumbnails, np.asarray(stored.thumbnails[rows])])
    shifted = Candidates(some.left, right + len(asked.thumbnails), some.flip, some.recall)
    pairs = settled(shifted, pictures, config=config, workers=workers)
    lines: Sequence[Any] = list(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.similarity.tolist(), strict=True))
    return {(left, int(rows[right - len(asked.thumbnails)])): near for left, right, near in lines}
