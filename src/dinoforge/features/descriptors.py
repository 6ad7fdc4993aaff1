"""Stored descriptors of a set of images, and the question whether others, or near copies of them, are among them.

A folder with ``descriptors.npy``, ``thumbnails.npy``, ``images.parquet`` (id and SHA-256 of every row), ``descriptors.json``
(what made them, and how wide they are), and ``measure.npz`` where learnt ones are compared by more than their cosine.

Axes: N stored images, Q asked ones, D numbers of a descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Shaped

from dinoforge.base.errors import DataError
from dinoforge.base.files import explained, new_folder, write_json
from dinoforge.base.log import say
from dinoforge.data.manifest import read_made, read_manifest
from dinoforge.features.copies import NAME, SIDE, WIDTH, Thumbnails
from dinoforge.features.learnt import Measure, placed_across
from dinoforge.features.pairs import Candidates, LayoutConfig, centre_of, cross_candidates, settled


@dataclass(frozen=True)
class Descriptors:
    """Descriptors on disk; mapped, not loaded, until others are compared with them: what that takes is then kept."""

    ids: Shaped[np.ndarray, " N"]
    sha256: Shaped[np.ndarray, " N"]
    thumbnails: Thumbnails
    values: Float[np.ndarray, "N D"]
    """Not of length 1 where an image could not be described: zeros."""
    name: str = NAME
    """What made them: ``layout``, or a network by its kind and weights."""
    measure: Measure | None = None
    """How those of a network are compared; None for ``layout``."""

    @cached_property
    def centre(self) -> Float32[np.ndarray, " D"]:
        """See ``centre_of``."""
        return centre_of(self.values)

    @cached_property
    def centred(self) -> Float32[np.ndarray, "N D"]:
        """The descriptors around their centre."""
        found: np.ndarray = self.values.astype(np.float32) - self.centre
        return found

    @cached_property
    def placed(self) -> Float32[np.ndarray, "N K"]:
        """Those of a network where they are compared, see ``Measure``."""
        return (self.measure or Measure()).placed(self.values)

    @cached_property
    def rows_of(self) -> dict[str, list[int]]:
        """The rows of every SHA-256."""
        found: dict[str, list[int]] = {}
        for row, key in enumerate(self.sha256.tolist()):
            found.setdefault(key, []).append(row)
        return found


@dataclass(frozen=True, slots=True)
class Match:
    """A stored image that an asked one is a copy of."""

    image: int
    """Row of the asked one."""
    id: str
    """Of the stored one."""
    similarity: float
    """Aligned similarity, or cosine of learnt descriptors; 1 for the same bytes."""
    kind: str
    """``exact`` or ``near``."""


def write_descriptors(path: Path, found: Descriptors) -> None:
    """Write descriptors, whole or not at all.

    Raises:
        RunError: The folder cannot be written.
    """
    with new_folder(path) as folder, explained(path):
        np.save(folder / "descriptors.npy", found.values.astype(np.float16, copy=False))
        np.save(folder / "thumbnails.npy", found.thumbnails)
        table = {"id": found.ids.tolist(), "sha256": found.sha256.tolist()}
        pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in table.items()}),
                       folder / "images.parquet")  # fmt: skip
        if found.measure is not None and found.measure.arrays():
            np.savez(folder / "measure.npz", **found.measure.arrays())  # type: ignore[arg-type]
        about = {"name": found.name, "width": found.values.shape[1], "rows": len(found.ids)}
        write_json(folder / "descriptors.json", about)


def read_descriptors(path: Path) -> Descriptors:
    """Descriptors that ``write_descriptors`` wrote.

    Raises:
        DataError: No such folder, a damaged one, or descriptors without weights of another width.
    """
    try:
        about = json.loads((path / "descriptors.json").read_text(encoding="utf-8"))
        values, thumbnails = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("descriptors", "thumbnails"))
        table = pq.read_table(path / "images.parquet")
        ids, sha256 = (np.asarray(table[name].to_pylist(), dtype=np.str_) for name in ("id", "sha256"))
        name, written = str(about["name"]), int(about["width"])
        measure = None if name == NAME else _read_measure(path / "measure.npz")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no descriptors: {str(error).splitlines()[0]}") from None
    width = values.shape[-1]
    if width != written or (name == NAME and width != WIDTH):
        expected = WIDTH if name == NAME else written
        raise DataError(
            f"{path} holds descriptors {name!r} of width {width}, not {expected}. Run `dinoforge curate` again."
        )
    if not len(ids) == len(sha256) == len(values) == len(thumbnails) or thumbnails.shape[1:] != (SIDE, SIDE, 3):
        raise DataError(f"{path} is damaged: its files are of {len(ids)}, {len(values)} and {len(thumbnails)} images.")
    return Descriptors(ids, sha256, thumbnails, values, name, measure)


def stored_beside(manifest: Path) -> Descriptors:
    """What is known of the images of a manifest: their keys, and the descriptors that curation stored beside it.

    Of width 0 where it stored none; then only the same bytes are found.

    Raises:
        DataError: No manifest, or descriptors of another one.
    """
    table = read_manifest(manifest, columns=["id", "sha256"])
    ids, keys = table.column("id"), table.column("sha256")
    beside = read_made(manifest).get("descriptors")
    if not isinstance(beside, str):
        say(f"{manifest} has no descriptors beside it: only exact copies are found. `dinoforge curate` stores them.")
        return Descriptors(
            ids, keys, np.zeros((len(ids), SIDE, SIDE, 3), np.uint8), np.zeros((len(ids), 0), np.float16)
        )
    if Path(beside).name != beside:  # a manifest of unknown origin names no folder elsewhere
        raise DataError(f"{manifest} names descriptors outside its folder: {beside}.")
    found = read_descriptors(manifest.parent / beside)
    if not np.array_equal(found.ids, ids):
        raise DataError(
            f"{manifest.parent / beside} holds descriptors of another manifest; run `dinoforge curate` again."
        )
    return found


def _read_measure(file: Path) -> Measure:
    if not file.exists():
        return Measure()
    with np.load(file, allow_pickle=False) as held:
        return Measure.of({name: held[name] for name in held.files})


def matches(
    asked: Descriptors, stored: Descriptors, *, threshold: float, config: LayoutConfig, workers: int = 1
) -> list[Match]:
    """What of the stored images the asked ones are copies of, image after image, the most similar first.

    Raises:
        DataError: Descriptors that were not made by one and the same.
    """
    kinds = [(one.name, one.values.shape[1]) for one in (asked, stored)]
    if kinds[0] != kinds[1]:
        told = " and ".join(f"{name!r} of width {width}" for name, width in kinds)
        raise DataError(f"descriptors {told} cannot be compared; both must come from one descriptor.")
    found: dict[tuple[int, int], float] = {}
    if stored.values.shape[1]:
        by_layout = stored.name == NAME
        found = _near(asked, stored, config, workers) if by_layout else _near_by_network(asked, stored, config)
    best = {pair: near for pair, near in found.items() if near > threshold}
    exact: set[tuple[int, int]] = set()
    for image, key in enumerate(asked.sha256.tolist()):
        exact |= {(image, row) for row in (stored.rows_of.get(key, []) if key else [])}
    best |= dict.fromkeys(exact, 1.0)
    order = sorted(best, key=lambda pair: (pair[0], pair not in exact, -best[pair], pair[1]))
    return [
        Match(image, str(stored.ids[row]), round(best[image, row], 4), "exact" if (image, row) in exact else "near")
        for image, row in order
    ]


def _near_by_network(asked: Descriptors, stored: Descriptors, config: LayoutConfig) -> dict[tuple[int, int], float]:
    measure = stored.measure or Measure()
    some = placed_across(
        measure.placed(asked.values), stored.placed, measure, above=config.candidate, config=config.search,
        count=config.neighbours,
    )  # fmt: skip
    lines: Sequence[Any] = list(zip(some.left.tolist(), some.right.tolist(), some.similarity.tolist(), strict=True))
    return {(left, right): near for left, right, near in lines}


def _near(asked: Descriptors, stored: Descriptors, config: LayoutConfig, workers: int) -> dict[tuple[int, int], float]:
    centred = asked.values.astype(np.float32) - stored.centre
    some = cross_candidates(centred, stored.centred, config=config)
    rows, right = np.unique(some.right, return_inverse=True)
    # Only the thumbnails that are looked at leave the disk.
    pictures = np.concatenate([asked.thumbnails, np.asarray(stored.thumbnails[rows])])
    shifted = Candidates(some.left, right + len(asked.thumbnails), some.flip, some.recall)
    pairs = settled(shifted, pictures, config=config, workers=workers)
    lines: Sequence[Any] = list(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.similarity.tolist(), strict=True))
    return {(left, int(rows[right - len(asked.thumbnails)])): near for left, right, near in lines}
