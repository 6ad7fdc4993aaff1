"""What the stages know of every image of a source: its file's facts, its measures, its thumbnail and its descriptor.

Images are read once, shard after shard; a shard is a function of its rows alone, lies on the disk, and is read again only
where its images are not those that it was made of. What all shards hold is then mapped, column by column (``flat``).

Axes: N rows of a source, n of them in a shard, D numbers of a descriptor.
"""

from __future__ import annotations

import hashlib
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Float64, Int, Shaped, UInt8

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import DataError, RunError
from dinoforge.base.files import clear_leftovers, explained, write_atomic
from dinoforge.base.log import say
from dinoforge.curate.executors.run import Lost, Shard, Shards
from dinoforge.curate.executors.task import Held
from dinoforge.curate.filters import Measured, measured
from dinoforge.curate.flat import column_file, forget_columns, read_columns, write_columns
from dinoforge.data.journal import FACTS
from dinoforge.data.look import Seen, looked, printable
from dinoforge.data.manifest import Manifest, firsts, keys
from dinoforge.data.picture import Picture
from dinoforge.data.scan import Found
from dinoforge.data.sources.source import Source
from dinoforge.features.copies import NAME, SIDE, WIDTH, describe, in_bytes, three, thumbnail

SHARD = 2048
"""Images that are read, written, and lost at most when a run is killed."""
_VERSION = 1
"""Of what is measured: another one reads all shards again."""
_MEASURES = Measured.__slots__
_SHOWN = 90.0
"""Seconds until what one machine wrote is seen by another, at most: NFS keeps what it knows of a folder for 60."""


_Parts = Callable[..., Iterator[Mapping[str, np.ndarray]]]
"""Of named columns, what each shard holds."""


class Taken(NamedTuple):
    """What is made of a picture's pixels."""

    measures: tuple[float, ...]
    thumbnail: UInt8[np.ndarray, "32 32 3"]


def take(picture: Picture, pixels: Shaped[np.ndarray, "Y X C"]) -> Taken:
    """Measures and thumbnail of a picture of any channels and numbers; those without a white are stretched to 256 levels."""
    small = in_bytes(picture, pixels)
    found = measured(small)
    return Taken(tuple(float(getattr(found, name)) for name in _MEASURES), thumbnail(small))


def colours_of(picture: Picture, *, longest: int) -> UInt8[np.ndarray, "Y X 3"]:
    """A picture of any channels and numbers as red, green and blue in 8 bits, its longer side at most so many pixels.

    Raises:
        Broken: It cannot be decoded.
    """
    side = max(picture.height, picture.width)
    pixels = three(in_bytes(picture, picture.pixels(max(1, side // longest))))
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(pixels)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA))


@dataclass(frozen=True, eq=False)
class Images:
    """All rows of a source, those included that are no images. Arrays are mapped: what is not asked for is not held."""

    name: str
    """What its folders are called."""
    source: Source
    folder: Path
    """Of the files of its arrays."""
    sha256: Shaped[np.ndarray, " N"]
    """Empty where the file could not be read."""
    sizes: Int[np.ndarray, "N 4"]
    """Width, height, channels, bytes; -1 where it is broken."""
    broken: Shaped[np.ndarray, " N"]
    """Why it cannot be used; empty where it is whole."""
    measures: Float64[np.ndarray, "N 6"]
    thumbnails: UInt8[np.ndarray, "N 32 32 3"]
    descriptors: Float16[np.ndarray, "N D"]

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def whole(self) -> Int[np.ndarray, " n"]:
        """Rows that are images."""
        return np.flatnonzero(self.broken == "")

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any image, its name or its label."""
        digest = hashlib.sha256(f"{_VERSION} {NAME} {WIDTH} {self.source.fingerprint}".encode())
        for column in (self.sha256, self.broken):
            _take_in(digest, column)
        return digest.hexdigest()[:16]

    def column_fingerprint(self, name: str) -> str | None:
        """Changes with any text of a column of the source, of which ``fingerprint`` knows nothing; None where it has none."""
        if name not in self.source.columns:
            return None
        digest = hashlib.sha256()
        _take_in(digest, self.source.columns[name])
        return digest.hexdigest()[:16]

    def forget(self, row: int) -> None:
        """Have another start read the shard of a row again, whose file is no longer what was read.

        Raises:
            RunError: The folder cannot be written.
        """
        file = _file(self.folder.parent, row // SHARD * SHARD)
        with explained(file):
            file.unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        """Where one of the arrays lies, for other processes."""
        return column_file(self.folder, name)

    def keys(self, rows: Int[np.ndarray, " n"]) -> Any:
        """SHA-256 of some rows as pyarrow texts."""
        parts = [self.sha256[rows[start : start + SHARD]].tolist() for start in range(0, len(rows), SHARD)]
        return pa.chunked_array([pa.array(part, pa.string()) for part in parts], pa.string())

    @cached_property
    def pixels(self) -> Int[np.ndarray, " N"]:
        """Width times height."""
        return self.sizes[:, 0] * self.sizes[:, 1]

    def measured(self, rows: Int[np.ndarray, " n"]) -> list[Measured]:
        """The measures of some rows."""
        return [Measured(*line) for line in self.measures[rows].tolist()]

    def manifest(self, rows: Int[np.ndarray, " n"] | None = None) -> Manifest:
        """Some rows, which are images, as a scan of no others lists them; all that are images by default."""
        kept, place = self.whole if rows is None else rows, np.full(len(self), -1)
        place[kept] = np.arange(len(kept))
        found = Found(
            self.source, self._facts(kept), place, {}, kept, firsts(self.keys(kept)),
            read=len(self), reused=0, new=0, changed=0, vanished=0,
        )  # fmt: skip
        tables = list(found.tables())
        if not tables:
            raise DataError(f"{self.source.address} holds no image that can be used.")
        made = {"by_name": sorted(self.source.by_name)}
        return Manifest(pa.concat_tables(tables), made)

    def _facts(self, rows: Int[np.ndarray, " n"]) -> Any:
        sizes = self.sizes[rows]
        columns: dict[str, Any] = {
            name: pa.array(sizes[:, place], FACTS.field(name).type)
            for place, name in enumerate(("width", "height", "channels", "bytes"))
        }
        columns |= {"sha256": self.keys(rows), "id": keys(self.source.columns["id"]).take(pa.array(rows))}
        columns["stamp"] = pa.array((self.source.stamp(row) for row in rows.tolist()), pa.string())
        return pa.table(
            [
                columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(rows), field.type)
                for field in FACTS
            ],
            schema=FACTS,
        )


def _take_in(digest: Any, column: Shaped[np.ndarray, " N"]) -> None:
    """Add a column of texts to a digest, a part at a time."""
    for start in range(0, len(column), SHARD):
        text = "\n".join(column[start : start + SHARD].tolist())
        digest.update(f"{chr(10) if start else ''}{text}".encode("utf-8", "backslashreplace"))


def read_images(source: Source, folder: Path, *, name: str, crew: Shards) -> Images:
    """Read what is not known yet of a source, and give all of it.

    Args:
        folder: Of the shards.
        name: See ``Images``; also for the progress.
        crew: Reads the shards. The images of one that it gives up are broken, until another start reads them.

    Raises:
        RunError: The folder cannot be written.
    """
    cv2.setNumThreads(1)  # processes that are forked while it has threads would wait for them for ever
    ids = keys(source.columns["id"]).to_pylist()
    spans = [(start, min(start + SHARD, len(source))) for start in range(0, len(source), SHARD)]
    made = [_made(source, ids, *span) for span in spans]
    marks = [mark for mark, _ in made]
    files = [_file(folder.absolute(), start) for start, _ in spans]
    held = [_held(file, mark) for file, mark in zip(files, marks, strict=True)]
    stale = sum(not there and file.exists() for there, file in zip(held, files, strict=True))
    if stale:
        say(f"{name}: {stale} of {len(files)} shards in {folder} were made of other images; they are read again.")
    if any(there and not dated for there, (_, dated) in zip(held, made, strict=True)):
        say(f"{source.address} does not tell when its images were changed; remove {folder} if some were.")
    missing = [place for place, there in enumerate(held) if not there]
    kept = crew.kept(source)
    shards = [
        Shard(named(source, *spans[place]), spans[place][1] - spans[place][0],
              _Reading(kept, *spans[place], ids[slice(*spans[place])], marks[place], files[place]), files[place])
        for place in missing
    ]  # fmt: skip
    lost: dict[int, str] = {}
    flat = folder.absolute() / "flat"
    if missing:
        forget_columns(flat)
    for number, found in crew.each(_read, shards, title=f"read {name}", total=len(source)):
        if isinstance(found, Lost):
            lost[missing[number]] = found.why
    for stray in sorted(set(folder.absolute().glob("*.npz")) - set(files)):
        stray.unlink()  # of a source that was longer

    def parts(*columns: str) -> Iterator[Mapping[str, np.ndarray]]:
        for place, (file, mark) in enumerate(zip(files, marks, strict=True)):
            if place in lost:
                yield _lost(ids[slice(*spans[place])], lost[place])
            else:
                yield written(file, mark, columns=columns)

    return _joined(name, source, flat, parts, fingerprint(marks), again=bool(missing))


def _file(folder: Path, start: int) -> Path:
    """Of the shard that begins with a row."""
    return folder / f"{start:010}.npz"


def named(source: Source, start: int, stop: int) -> str:
    """Rows of a source for the person at the terminal: the first and the last."""
    ids = source.columns["id"]
    return f"{ids[start]} to {ids[stop - 1]}"


@dataclass(frozen=True, slots=True)
class _Reading:
    """A shard to read."""

    source: Held[Source]
    start: int
    stop: int
    ids: list[str | None]
    mark: str
    file: Path


def _read(job: _Reading, processes: int) -> None:
    """Read a shard and write what it holds, unless a process that died then had written it."""
    if _held(job.file, job.mark):
        return
    rows = np.arange(job.start, job.stop)
    seen = [one for some in looked(job.source.get(), rows, workers=processes, also=take) for one in some]
    write_shard(job.file, _shard(seen, job.ids, job.mark))


def _lost(ids: list[str | None], why: str) -> Mapping[str, np.ndarray]:
    """What is known of images of a shard that cannot be read."""
    told = f"reading its shard failed twice: {printable(why)}"
    return _shard([Seen(None, None, None, None, None, told, lasting=False)] * len(ids), ids, "")


def _made(source: Source, ids: list[str | None], start: int, stop: int) -> tuple[str, bool]:
    """What a shard is made of: names and stamps of its files, not their contents, which are to be read only once; and whether
    all of them have a stamp."""
    stamps = [source.stamp(row) for row in range(start, stop)]
    return fingerprint([_VERSION, NAME, WIDTH, source.address, ids[start:stop], stamps]), None not in stamps


def _held(file: Path, mark: str) -> bool:
    """Whether a shard is there, whole, and of these images; one with images that may be found otherwise is not."""
    part = read_shard(file)
    return part is not None and str(part["mark"]) == mark and bool(part["lasting"].all())


def _shard(seen: list[Seen], ids: list[str | None], mark: str) -> dict[str, np.ndarray]:
    again = {}
    named: set[str | None] = set()
    for place, name in enumerate(ids):
        if name is None or name in named:
            again[place] = "its name is no Unicode text; rename it" if name is None else "its id is that of another row"
        named.add(name)
    blank = Taken((np.nan,) * len(_MEASURES), np.zeros((SIDE, SIDE, 3), np.uint8))
    takes = [one.more or blank for one in seen]
    thumbnails = np.stack([one.thumbnail for one in takes])
    return {
        "mark": np.asarray(mark),
        "lasting": np.asarray([one.lasting for one in seen]),
        "sha256": np.asarray([one.sha256 or "" for one in seen], dtype=np.str_),
        "sizes": np.asarray(
            [[-1 if one.broken or n is None else n for n in (one.width, one.height, one.channels, one.bytes)]
             for one in seen], dtype=np.int64,
        ),
        "broken": np.asarray(
            [again.get(place) or one.broken or "" for place, one in enumerate(seen)], dtype=np.str_
        ),
        "measures": np.asarray([one.measures for one in takes], dtype=np.float64),
        "thumbnails": thumbnails,
        "descriptors": describe(thumbnails).astype(np.float16),
    }  # fmt: skip


_COLUMNS = {
    "sha256": ((), "<U64"), "sizes": ((4,), np.int64), "broken": ((), "<U1"), "measures": ((len(_MEASURES),), np.float64),
    "thumbnails": ((SIDE, SIDE, 3), np.uint8), "descriptors": ((WIDTH,), np.float16),
}  # fmt: skip
"""By name: axes behind the rows, and the kind of number. Texts of ``broken`` are as long as the longest."""


def _joined(name: str, source: Source, folder: Path, parts: _Parts, key: str, *, again: bool) -> Images:
    """What all shards hold.

    Args:
        key: Of the shards.
        again: Whether one was just read; else columns that were made of the same ones are taken over.
    """
    held = None if again else read_columns(folder, _COLUMNS, key=key)
    if held is None:
        clear_leftovers(folder.parent, folder.name)
        longest, lasting = 1, True
        for part in parts("broken", "lasting"):
            longest, lasting = max(longest, part["broken"].dtype.itemsize // 4), lasting and bool(part["lasting"].all())
        kinds = {**_COLUMNS, "broken": ((), f"<U{longest}")}
        # Another start may find otherwise what does not last: such columns have no key.
        write_columns(folder, kinds, len(source), parts=parts(*_COLUMNS), key=key if lasting else "")
        held = read_columns(folder, _COLUMNS)
        if held is None:
            raise RunError(
                f"{folder} cannot be read as it was written; out= must lie on a disk whose files can be mapped."
            )
    return Images(name, source, folder, **held)


def write_shard(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, whole or not at all.

    Raises:
        RunError: They cannot be written.
    """
    write_atomic(file, lambda handle: np.savez(handle, **arrays))  # type: ignore[arg-type]


def read_shard(file: Path, columns: Collection[str] = ()) -> dict[str, np.ndarray] | None:
    """Named arrays, None where there are none or the file is damaged. No code in it is run.

    Args:
        columns: Those that are read; all by default.
    """
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as held:
            return {name: held[name] for name in columns or held.files}
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None


def written(
    file: Path, mark: str, rows: Int[np.ndarray, " n"] | None = None, *, columns: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """What another process has written. A file system over a network may take its time to show it.

    Args:
        mark: That it was made of; an older file may be seen for a while.
        rows: That it must hold, where some are added to what was there.
        columns: Those that are read; all by default.

    Raises:
        RunError: It is not shown.
    """
    end = time.monotonic() + _SHOWN
    while True:
        found = read_shard(file, {*columns, "mark"} if columns else ())
        if found is not None and str(found["mark"]) == mark and (rows is None or np.isin(rows, found["rows"]).all()):
            return found
        if time.monotonic() > end:
            raise RunError(
                f"{file} was written by a worker and is not seen here; out= must lie where all machines see it."
            )
        time.sleep(_SHOWN / 100)
