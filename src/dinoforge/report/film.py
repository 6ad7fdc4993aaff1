"""The film of a run: what the backbone makes of the same few images, kept at every probe for the report.

``RUN/film/images.npz`` holds the images and which rows of which source they are, ``RUN/film/step_000000120.npz`` what was seen
of them after that many steps. A film of other images (another ``probe=`` when the run went on) is dropped for the new one.
Axes: G images (the first Q of them are the queries), Q queries, K neighbours, H by W patches, D channels of
a patch, C of an image, Y by X pixels.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from PIL import Image
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.base.files import write_atomic
from dinoforge.base.hardware import compute_context
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction, image_features, normalised, pictures
from dinoforge.features.nearest import nearest
from dinoforge.model.weights import Preprocessing

QUERIES = 8
"""Images that the film strip shows."""
GALLERY = 200
"""Images among which the neighbours of a query are looked for, the queries included."""
NEIGHBOURS = 5
"""Neighbours of a query that are kept."""
_CLASSES = 20
"""Classes that the gallery is taken from at most, so that each has several images."""
_THUMBNAIL = 96
"""Longest side of a kept picture, in pixels."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The images of a film, small."""

    thumbnails: UInt8[np.ndarray, "G Y X 3"]
    ids: np.ndarray
    labels: np.ndarray
    """Names of their classes; empty strings where there are none."""
    queries: int
    """The first so many are the queries."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a backbone made of them after so many steps."""

    step: int
    patches: Float[np.ndarray, "Q H W D"]
    attention: Float[np.ndarray, "Q H W"]
    """Class-token attention in the last block, mean of the heads."""
    nearest: Integer[np.ndarray, "Q K"]
    """Rows of the gallery, nearest first by cosine; never the query itself."""


class Film:
    """Records frames of one run. Reads the module only: no random number is drawn, no weight or mode is changed."""

    def __init__(
        self, folder: Path, source: Source, preprocessing: Preprocessing, how: Extraction, *,
        on_broken: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self.folder, self.preprocessing, self.how, self.on_broken = folder, preprocessing, how, on_broken
        self.of = source.fingerprint
        self.spread = spread(source.columns.get("label"), rows=len(source), count=GALLERY)
        self.source = source.select(self.spread)

    def __call__(self, module: Any, step: int) -> None:
        """Keep a frame; one of the same step is replaced. Without a single usable image nothing is written."""
        try:
            features, rows = image_features(module, self.source, self.preprocessing, self.how, on_broken=self.on_broken)
        except DataError:
            return
        count = min(QUERIES, len(rows))
        _, images = next(
            pictures(self.source.select(rows[:count]), self.preprocessing, on_broken=self.on_broken, rows_at_once=count)
        )
        if not self._is_of(rows):
            # The pictures go last: a drop that is cut off is taken up again.
            for old in (*self.folder.glob("step_*.npz"), self.folder / "images.npz"):
                old.unlink(missing_ok=True)
            self._write_cast(rows, count)
        patches, attention = looked_at(module, images, self.preprocessing, self.how)
        _save(
            self.folder / f"step_{step:09d}.npz",
            patches=patches.half().numpy(), attention=attention.mean(1).numpy(),
            nearest=nearest(features, queries=count, count=NEIGHBOURS).numpy(),
        )  # fmt: skip

    def _is_of(self, rows: Int[np.ndarray, " G"]) -> bool:
        """Whether the pictures that are there are these rows of this source."""
        try:
            with (self.folder / "images.npz").open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return str(file["source"]) == self.of and np.array_equal(file["rows"], self.spread[rows])
        except _DAMAGED:
            return False

    def _write_cast(self, rows: Int[np.ndarray, " G"], queries: int) -> None:
        kept = self.source.select(rows)
        small = [
            thumbnail
            for _, images in pictures(kept, self.preprocessing, on_broken=self.on_broken, rows_at_once=64)
            for thumbnail in (_small(image) for image in images)
        ]
        label = kept.columns.get("label", np.full(len(kept), -1))
        names = np.where(label < 0, "", kept.columns.get("label_name", label).astype(np.str_))
        _save(
            self.folder / "images.npz", thumbnails=np.stack(small), queries=np.int64(queries),
            source=np.str_(self.of), rows=self.spread[rows],
            ids=np.asarray(kept.columns["id"], dtype=np.str_), labels=np.asarray(names, dtype=np.str_),
        )  # fmt: skip


def spread(labels: Int[np.ndarray, " N"] | None, *, rows: int, count: int) -> Int[np.ndarray, " n"]:
    """Rows to look at, at most ``count``: evenly over the source, or class by class in turn where it is labelled.

    At most ``_CLASSES`` classes take part, evenly over their numbers; rows without a label (-1) only where all are.
    """
    known = None if labels is None else np.unique(labels[labels >= 0])
    if labels is None or known is None or not len(known):
        return np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(np.int64))
    chosen = known[np.unique(np.linspace(0, len(known) - 1, min(_CLASSES, len(known))).round().astype(np.int64))]
    turns = [np.flatnonzero(labels == label)[: -(-count // len(chosen))] for label in chosen]
    order = [turn[place] for place in range(max(map(len, turns))) for turn in turns if place < len(turn)]
    return np.asarray(order[:count], dtype=np.int64)


def looked_at(
    module: Any, images: UInt8[Tensor, "Q C Y X"], preprocessing: Preprocessing, how: Extraction
) -> tuple[Float[Tensor, "Q H W D"], Float[Tensor, "Q heads H W"]]:
    """Patch features and class-token attention of a few images, computed one at a time; float32, on the CPU."""
    was_training = module.training
    module.eval()
    patches, attention = [], []
    try:
        with torch.no_grad(), compute_context(how.precision, how.device):
            for image in images.split(1):
                x = normalised(image.to(how.device), preprocessing)
                patches.append(module(x).patches.float().cpu())
                attention.append(module.class_attention(x).float().cpu())
    finally:
        module.train(was_training)
    return torch.cat(patches), torch.cat(attention)


def visible(images: UInt8[Tensor, "B C Y X"]) -> UInt8[Tensor, "B 3 Y X"]:
    """Images of any number of channels for the eye: the first three, or the first one as grey where there are fewer."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def _small(image: UInt8[Tensor, "C Y X"]) -> UInt8[np.ndarray, "y x 3"]:
    picture = Image.fromarray(np.ascontiguousarray(visible(image.unsqueeze(0))[0].permute(1, 2, 0).numpy()))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return np.array(picture)


def _save(path: Path, **arrays: np.ndarray | np.generic) -> None:
    write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def read_film(folder: Path) -> tuple[Cast, list[Frame]] | None:
    """The film of a run, oldest frame first; None where there is none. Frames that cannot be read are left out."""
    cast = _read_cast(folder / "images.npz")
    if cast is None:
        return None
    frames = [frame for path in sorted(folder.glob("step_*.npz")) if (frame := _read_frame(path, cast)) is not None]
    return (cast, frames) if frames else None


# np.load gives an array, which is no context, where the file is no archive of arrays.
_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)


def _read_cast(path: Path) -> Cast | None:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            cast = Cast(file["thumbnails"], file["ids"], file["labels"], int(file["queries"]))
    except _DAMAGED:
        return None
    small = cast.thumbnails
    whole = small.ndim == 4 and small.dtype == np.uint8 and len(small) == len(cast.ids) == len(cast.labels)
    return cast if whole and 0 < cast.queries <= len(small) else None


def _read_frame(path: Path, cast: Cast) -> Frame | None:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            frame = Frame(int(path.stem.removeprefix("step_")), file["patches"], file["attention"], file["nearest"])
    except _DAMAGED:
        return None
    near, maps = frame.nearest, frame.attention
    whole = len(near) == len(maps) == len(frame.patches) == cast.queries and frame.patches.shape[:3] == maps.shape
    inside = not near.size or (near.min() >= 0 and near.max() < len(cast.ids))
    return frame if whole and inside else None
