"""Embeddings of images for retrieval and balance, kept on the disk by shards and by what made them.

A shard knows which weights it was made with: other weights make it anew, and say so.

Axes: n rows of a source, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import DataError
from dinoforge.base.log import progress, say
from dinoforge.curate.images import SHARD, Images, read_shard, write_shard
from dinoforge.data.sources.source import Source
from dinoforge.features.copies import NAME, WIDTH

Embed = Callable[[Source], tuple[Float32[np.ndarray, "n D"], Int[np.ndarray, " n"]]]
"""Embeddings of the rows of a source that can be used, and those rows."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """What embeds."""

    name: str
    """For the summary."""
    fingerprint: str
    """Changes with any weight."""
    embed: Embed | None = None
    """None takes the descriptor that needs no weights, which is there already."""
    weights: str | None = None
    """The fingerprint without what only rounds otherwise (precision); None where there is no such thing."""

    @property
    def known_as(self) -> str:
        """What a filter that was trained on its embeddings remembers of it."""
        return self.weights or self.fingerprint


LAYOUT = Embedder(f"{NAME}, a descriptor of colours and edges that needs no weights", f"{NAME} {WIDTH}")
"""What embeds where no backbone is given."""


@dataclass(slots=True)
class Embeddings:
    """Embeddings by one embedder, computed where they are asked for and not known yet."""

    folder: Path
    how: Embedder
    _told: set[str] = field(default_factory=set)

    def of(
        self, images: Images, rows: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m D"]]:
        """Those of the rows that can be embedded, and their embeddings.

        Raises:
            DataError: Not one can be.
        """
        if self.how.embed is None:
            return rows, images.descriptors[rows].astype(np.float32)
        title = images.name
        shards = [rows[rows // SHARD == number] for number in np.unique(rows // SHARD)]
        found, done = [], 0
        with progress(f"embed {title}", len(rows)) as tick:
            for some in shards:
                part, computed = self._shard(images, some, title)
                found.append(part)
                done += len(some)
                if computed:
                    tick(done)
        usable = np.concatenate([np.zeros(0, np.int64), *(place for place, _ in found)])
        if not len(usable):
            raise DataError(f"No image of {images.source.address} could be embedded.")
        return usable, np.concatenate([vectors for place, vectors in found if len(place)]).astype(np.float32)

    def dense(self, images: Images, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """Embeddings of all the rows, zeros of those that cannot be embedded.

        Raises:
            DataError: Not one can be.
        """
        usable, vectors = self.of(images, rows)
        found = np.zeros((len(rows), vectors.shape[1]), np.float32)
        found[np.searchsorted(rows, usable)] = vectors
        return found

    def _shard(self, images: Images, rows: np.ndarray, title: str) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
        """Embeddings of rows of one shard, and whether any was missing: what a shard lacks is added to it."""
        number = int(rows[0]) // SHARD
        file = self.folder / title / f"{number * SHARD:010}.npz"
        span = slice(number * SHARD, (number + 1) * SHARD)
        mark = fingerprint([self.how.fingerprint, images.sha256[span].tolist(), images.source.address])
        held = self._held(file, mark, title)
        known = held["rows"] if held else np.zeros(0, np.int64)
        missing = np.setdiff1d(rows, known)
        if len(missing):
            usable, vectors = self._computed(images.source, missing)
            held = {
                "mark": np.asarray(mark), "weights": np.asarray(self.how.fingerprint),
                "rows": np.concatenate([known, missing]),
                "usable": np.concatenate([held["usable"], usable]) if held else usable,
                "vectors": np.concatenate([held["vectors"], vectors]) if held and len(held["usable"]) else vectors,
            }  # fmt: skip
            write_shard(file, held)
        assert held is not None
        order = np.argsort(held["usable"], kind="stable")
        order = order[np.isin(held["usable"][order], rows)]
        vectors = held["vectors"][order] if len(order) else np.zeros((0, 0), np.float16)
        return (held["usable"][order], vectors), bool(len(missing))

    def _held(self, file: Path, mark: str, title: str) -> dict[str, np.ndarray] | None:
        held = read_shard(file)
        if held is not None and str(held["mark"]) != mark:
            if title not in self._told:
                other = str(held["weights"]) != self.how.fingerprint
                say(f"{file.parent} holds embeddings {'by other weights' if other else 'of other images'}; made anew.")
                self._told.add(title)
            return None
        return held

    def _computed(self, source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.how.embed is not None
        try:
            vectors, usable = self.how.embed(source.select(rows))
        except DataError:  # not one of these can be used; others may
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float16)
        return rows[usable], vectors.astype(np.float16)
