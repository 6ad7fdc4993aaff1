"""Embeddings of images for retrieval and balance, kept on the disk by shards and by what made them.

A shard knows which weights it was made with: other weights make it anew, and say so.

Axes: n rows of a source, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import DataError, RunError
from dinoforge.base.log import say
from dinoforge.curate.executors.run import Lost, Shard, Shards, here
from dinoforge.curate.executors.task import Held, Kept
from dinoforge.curate.flat import spilled
from dinoforge.curate.images import SHARD, Images, read_shard, write_shard, written
from dinoforge.data.decode import Broken
from dinoforge.data.look import printable
from dinoforge.data.sources.source import Source
from dinoforge.features.copies import NAME, WIDTH
from dinoforge.features.mapped import blocks

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
    elsewhere: Callable[[], Embed] | None = None
    """Makes the same in another process, from what can be pickled; None keeps all embedding in this one."""
    on_gpu: bool = False
    """Whether a GPU of this machine embeds, which one process drives alone."""

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
    crew: Shards = field(default_factory=here)
    _told: set[str] = field(default_factory=set)
    _lost: dict[tuple[str, int], str] = field(default_factory=dict)

    def of(
        self, images: Images, rows: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m D"]]:
        """Those of the rows that can be embedded, and their embeddings, which lie on the disk.

        Raises:
            DataError: Not one can be.
        """
        if self.how.embed is None:
            some = (images.descriptors[rows[at : at + SHARD]] for at in range(0, len(rows), SHARD))
            return rows, spilled(self.folder, (len(rows), images.descriptors.shape[1]), np.float32, parts=some)
        title = images.name
        shards = [rows[rows // SHARD == number] for number in np.unique(rows // SHARD)]
        files = [self._file(images, int(some[0]) // SHARD) for some in shards]
        marks = [self._mark(images, some) for some in shards]
        held = [self._held(file, mark, title) for file, mark in zip(files, marks, strict=True)]
        missing = [
            some if there is None else np.setdiff1d(some, there) for some, there in zip(shards, held, strict=True)
        ]
        places = [place for place, some in enumerate(missing) if len(some)]
        for number, found in self._computed(images, [(missing[place], files[place]) for place in places], len(rows)):
            place = places[number]
            if isinstance(found, Lost):
                self._lost |= dict.fromkeys(
                    ((title, row) for row in missing[place].tolist()), f"embedding its shard failed twice: {found.why}"
                )
            else:
                self._lost |= {(title, row): why for row, why in found.items()}
                ready = np.setdiff1d(missing[place], list(found))
                held[place] = written(files[place], marks[place], ready, columns=["rows"])["rows"]
        there = [
            (file, mark, np.intersect1d(some, rows_of))
            for file, mark, some, rows_of in zip(files, marks, shards, held, strict=True)
            if rows_of is not None
        ]
        return self._gathered(images, rows, there)

    def _gathered(
        self, images: Images, rows: Int[np.ndarray, " n"], there: Sequence[tuple[Path, str, Int[np.ndarray, " s"]]]
    ) -> tuple[Int[np.ndarray, " m"], Float32[np.ndarray, "m D"]]:
        """What the files hold of their rows, one file after the other. Another run may add rows to them meanwhile."""
        known = [written(file, mark, some, columns=["rows", "usable"])["usable"] for file, mark, some in there]
        orders = [_order(one, some) for one, (_, _, some) in zip(known, there, strict=True)]
        usable = np.concatenate(
            [np.zeros(0, np.int64), *(one[order] for one, order in zip(known, orders, strict=True))]
        )
        if not len(usable):
            why = next(iter(self.lost(images, rows).values()), "")
            raise DataError(f"No image of {images.source.address} could be embedded{why and f'; {why}'}.")
        parts = (
            held["vectors"][_order(held["usable"], some)]
            for (file, mark, some), order in zip(there, orders, strict=True) if len(order)
            for held in [written(file, mark, some, columns=["rows", "usable", "vectors"])]
        )  # fmt: skip
        first = next(parts)
        return usable, spilled(self.folder, (len(usable), first.shape[1]), np.float32, parts=chain([first], parts))

    def lost(self, images: Images, rows: Int[np.ndarray, " n"]) -> dict[int, str]:
        """Those of the rows that could not be read, or whose shard was given up, since this began, with the reason; another
        start tries them again."""
        return {row: self._lost[images.name, row] for row in rows.tolist() if (images.name, row) in self._lost}

    @property
    def lasting(self) -> bool:
        """Whether another start would find the same: nothing was lost."""
        return not self._lost

    def dense(self, images: Images, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """Embeddings of all the rows, zeros of those that are nothing for what embeds (other channels).

        Raises:
            DataError: Not one can be embedded.
            RunError: Some could not be read, or their shard was given up.
        """
        usable, vectors = self.of(images, rows)
        lost = self.lost(images, np.setdiff1d(rows, usable))
        if lost:
            raise RunError(
                f"{len(lost):,} images of {images.source.address} have no descriptor; {next(iter(lost.values()))}. The same "
                "command tries it again."
            )
        if len(usable) == len(rows):
            return vectors
        parts = (_filled(some, usable, vectors) for some in blocks(rows))
        return spilled(self.folder, (len(rows), vectors.shape[1]), np.float32, parts=parts)

    def _file(self, images: Images, number: int) -> Path:
        return self.folder.absolute() / images.name / f"{number * SHARD:010}.npz"

    def _mark(self, images: Images, rows: np.ndarray) -> str:
        first = int(rows[0]) // SHARD * SHARD
        sha256 = images.sha256[first : first + SHARD].tolist()
        return fingerprint([self.how.fingerprint, sha256, images.source.address])

    def _computed(self, images: Images, parts: list[tuple[np.ndarray, Path]], total: int) -> Iterator[tuple[int, Any]]:
        """Add to each file the rows that it lacks."""
        how, elsewhere = self.how, self.how.elsewhere
        assert how.embed is not None
        embed = Kept(how.embed, lambda: elsewhere) if elsewhere else Kept(how.embed, _nowhere)
        source = self.crew.kept(images.source)
        shards = [
            Shard(f"{images.source.columns['id'][some[0]]} to {images.source.columns['id'][some[-1]]}", len(some),
                  _Embedding(embed, source, some, file, self._mark(images, some), how.fingerprint), file)
            for some, file in parts
        ]  # fmt: skip
        yield from self.crew.each(
            _embed, shards, title=f"embed {images.name}", total=total, network=True,
            here=elsewhere is None or (self.crew.opened.local and how.on_gpu),
        )  # fmt: skip

    def _held(self, file: Path, mark: str, title: str) -> Int[np.ndarray, " n"] | None:
        """The rows that a file holds; None where it holds none of these images by these weights."""
        held = read_shard(file)
        if held is not None and str(held["mark"]) != mark:
            if title not in self._told:
                other = str(held["weights"]) != self.how.fingerprint
                say(f"{file.parent} holds embeddings {'by other weights' if other else 'of other images'}; made anew.")
                self._told.add(title)
            return None
        return None if held is None else held["rows"]


def _nowhere() -> Any:
    raise AssertionError("this embedder stays in its process")


def _filled(
    rows: Int[np.ndarray, " n"], usable: Int[np.ndarray, " m"], vectors: Float32[np.ndarray, "m D"]
) -> Float32[np.ndarray, "n D"]:
    """Vectors of some rows, zeros where there is none."""
    found = np.zeros((len(rows), vectors.shape[1]), np.float32)
    mine = np.isin(rows, usable)
    found[mine] = vectors[np.searchsorted(usable, rows[mine])]
    return found


def _order(usable: Int[np.ndarray, " u"], rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Places of those of the rows that have an embedding, in the order of the rows."""
    order = np.argsort(usable, kind="stable")
    return order[np.isin(usable[order], rows)]


@dataclass(frozen=True, slots=True)
class _Embedding:
    """Rows that the file of a shard lacks."""

    embed: Held[Embed]
    source: Held[Source]
    rows: Int[np.ndarray, " n"]
    file: Path
    mark: str
    weights: str


def _embed(job: _Embedding, _processes: int) -> dict[int, str]:
    """Embed the rows that the file still lacks and add them to it, but for those that cannot be read, which are given with the
    reason: they were whole when they were read first, and another start tries them again."""
    held = read_shard(job.file)
    held = held if held is not None and str(held["mark"]) == job.mark else None
    known = held["rows"] if held else np.zeros(0, np.int64)
    rows = np.setdiff1d(job.rows, known)  # a process that died may have added some
    if held and not len(rows):
        return {}
    usable, vectors = _vectors(job, rows)
    unread = _unread(job, np.setdiff1d(rows, usable))
    again = np.setdiff1d(rows, [*usable, *unread])
    if len(again):  # it was the disk for a moment, or they are nothing for what embeds
        usable, vectors = _both((usable, vectors), _vectors(job, again))
    if held:
        usable, vectors = _both((held["usable"], held["vectors"]), (usable, vectors))
    arrays = {"rows": np.concatenate([known, np.setdiff1d(rows, list(unread))]), "usable": usable, "vectors": vectors}
    write_shard(job.file, {"mark": np.asarray(job.mark), "weights": np.asarray(job.weights), **arrays})
    return unread


def _vectors(job: _Embedding, rows: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " m"], Float16[np.ndarray, "m D"]]:
    """Those of the rows that can be embedded, and their embeddings; where none can, these have no channels."""
    try:
        vectors, places = job.embed.get()(job.source.get().select(rows))
    except DataError:  # not one of these can be used; others may
        return rows[:0], np.zeros((0, 0), np.float16)
    return rows[places], vectors.astype(np.float16)


def _unread(job: _Embedding, rows: Int[np.ndarray, " n"]) -> dict[int, str]:
    """Those of the rows whose files cannot be read now, and why."""
    found = {}
    for row in rows.tolist():
        try:
            job.source.get().encoded(row)
        except Broken as error:
            found[row] = printable(str(error))
    return found


def _both(
    one: tuple[Int[np.ndarray, " n"], Float16[np.ndarray, "n _"]],
    other: tuple[Int[np.ndarray, " m"], Float16[np.ndarray, "m _"]],
) -> tuple[Int[np.ndarray, " k"], Float16[np.ndarray, "k D"]]:
    """Rows and their embeddings, and others behind them; those of no rows may have no channels."""
    parts = [vectors for _, vectors in (one, other) if len(vectors)]
    return np.concatenate([one[0], other[0]]), np.concatenate(parts or [other[1]])
