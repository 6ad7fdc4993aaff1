"""Tar shards of what a curation kept: image files as they are, with what is known of each, read in any order by their offsets.

USTAR with WebDataset's names: ``000000012.jpg``, the image's own bytes, and ``000000012.json``, what the manifest says of it.
A shard is a function of its rows, its name ends in a key of them, and it is whole or absent: one that is there is right.

Axes: N rows of a manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError, DataError, RunError
from dinoforge.base.files import finite, write_atomic
from dinoforge.base.log import say
from dinoforge.curate.executors.run import Lost, Shard, Shards
from dinoforge.curate.executors.task import Held
from dinoforge.data.decode import SUFFIXES, Broken

FOLDER = "shards"
"""In the folder of a curation; the manifest names its tars relative to itself, so that both can be moved together."""
COLUMNS = pa.schema([("shard", pa.string()), ("offset", pa.int64())])
"""Columns of a manifest whose images lie in shards: the tar, and the first byte of the image in it (as many as ``bytes``)."""
_VERSION = 1
_OURS = re.compile(r"\d{6,}-[0-9a-f]{8}\.tar")
_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_ABOUT_FILES = ("stamp", "copy_of")
"""Columns that say nothing of an image."""
_BEGINNINGS = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"II*\0": "tif", b"MM\0*": "tif",
    b"\x93NUMPY": "npy", b"\0\0\0\x0cjP": "jp2", b"BM": "bmp", b"P6": "ppm", b"P5": "pgm",
}  # fmt: skip
"""What the files of a format begin with, and the ending by which WebDataset's decoders know it."""


class Changed(DataError):
    """An image can no longer be read, or is no longer what it was."""

    row: int
    """Of the manifest."""

    @classmethod
    def of(cls, row: int, text: str) -> Changed:
        """With what is to be told."""
        found = cls(text)
        found.row = row  # no argument: errors travel between processes by their arguments and what is set on them
        return found


@dataclass(frozen=True, slots=True)
class _Shard:
    """Where everything lies in one tar, known before it is written."""

    name: str
    first: int
    """Row of its first sample."""
    texts: list[bytes]
    """The ``.json`` of each sample."""
    offsets: Int[np.ndarray, " n"]
    """Of the images."""
    size: int


def free(folder: Path) -> None:
    """See that nothing of others lies where the shards go.

    Raises:
        ConfigError: Something does.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and tar shards go into a folder of that name; give another out.")
    strange = sorted(path.name for path in folder.glob("[!.]*") if not _OURS.fullmatch(path.name))
    if strange:
        raise ConfigError(f"{folder}, where tar shards go, holds other files ({strange[0]}); give another out.")


def packed(out: Path, table: Any, *, each: int, read: Callable[[int], bytes], crew: Shards) -> tuple[Any, list[str]]:
    """Write the images of a manifest's rows into tars, those that are not there yet; the table with ``COLUMNS``, and the tars.

    Those of an earlier start stay until ``tidy``: its manifest may still be the one that is there.

    Args:
        out: Folder of the manifest.
        table: Of ``manifest_table``.
        each: Images a tar.
        read: Gives the bytes of a row's image; goes to other processes.
        crew: Writes them.

    Raises:
        Changed: An image can no longer be read, or is no longer what it was.
        RunError: The folder cannot be written, or a tar is not written in two tries.
    """
    folder = out.absolute() / FOLDER
    names = np.empty(len(table), dtype=object)
    offsets = np.zeros(len(table), np.int64)
    files: list[str] = []
    missing: list[Shard] = []
    kept = crew.kept(read)
    for first in range(0, len(table), each):
        rows = table.slice(first, each)
        shard = _planned(rows, first, number=len(files))
        path = folder / shard.name
        if not _there(path, shard):
            missing.append(Shard(shard.name, len(rows), _Packing(path, _Slice(rows), first, len(files), kept), path))
        files.append(f"{FOLDER}/{shard.name}")
        names[first : first + len(rows)] = files[-1]
        offsets[first : first + len(rows)] = shard.offsets
    for number, lost in crew.each(_pack, missing, title="pack", total=len(table)):
        if isinstance(lost, Lost):
            raise RunError(
                f"{missing[number].name} cannot be written: {lost.why}. Is there memory left? Take fewer workers."
            )
    for field, values in zip(COLUMNS, (names, offsets), strict=True):
        table = table.append_column(field, pa.array(values, field.type))
    return table, files


class _Slice:
    """Some rows of a table; pyarrow would send all the others along."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __reduce__(self) -> tuple[Any, ...]:
        return _Slice, (self.table.take(np.arange(len(self.table))),)


@dataclass(frozen=True, slots=True)
class _Packing:
    """A tar to write."""

    path: Path
    rows: _Slice
    """Of the manifest; ``_planned`` makes the same of them again, so that no text of theirs travels or waits."""
    first: int
    number: int
    read: Held[Callable[[int], bytes]]


def _pack(job: _Packing, _processes: int) -> None:
    """Write a tar, unless a process that died then had written it."""
    shard = _planned(job.rows.table, job.first, job.number)
    if not _there(job.path, shard):
        write_atomic(job.path, lambda file: _write(file, job, shard))


def _there(path: Path, shard: _Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.size


def tidy(out: Path, files: Sequence[str]) -> None:
    """Remove the shards that no row of the manifest lies in; where it has none at all, leave them and say so."""
    strays = [path for path in sorted((out / FOLDER).glob("*.tar")) if f"{FOLDER}/{path.name}" not in set(files)]
    strays = [path for path in strays if _OURS.fullmatch(path.name)]
    if strays and not files:
        say(
            f"{out / FOLDER} holds {len(strays):,} tar shards of an earlier start, which the new manifest does not name."
        )
        return
    for path in strays:
        path.unlink()


def _planned(rows: Any, first: int, number: int) -> _Shard:
    about = [name for name in rows.column_names if name not in _ABOUT_FILES]
    lines = rows.select(about).to_pylist()
    texts = [json.dumps(finite(_known(line))).encode() for line in lines]
    sizes, keys = rows["bytes"].to_numpy(), rows["sha256"].to_pylist()
    taken = np.asarray([_room(size) + _room(len(text)) for size, text in zip(sizes.tolist(), texts, strict=True)])
    starts = np.cumsum(taken) - taken
    end = int(taken.sum()) + 2 * _BLOCK
    mark = fingerprint([_VERSION, first, keys, [text.decode() for text in texts]])[:8]
    return _Shard(f"{number:06}-{mark}.tar", first, texts, starts + _BLOCK, end + -end % _RECORD)


def _known(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if value is not None and value != ""}


def _room(size: int) -> int:
    """Bytes of a member: a header, the content, and zeros up to a whole block."""
    return _BLOCK + size + -size % _BLOCK


def _write(file: BinaryIO, job: _Packing, shard: _Shard) -> None:
    rows, read = job.rows.table, job.read.get()
    ids, sources, keys = (rows[name].to_pylist() for name in ("id", "source", "sha256"))
    for place, text in enumerate(shard.texts):
        row = shard.first + place
        try:
            content = read(row)
        except Broken as error:
            why = f"can no longer be read: {error}"
            raise Changed.of(row, f"{ids[place]} of {sources[place]} {why}; run again.") from None
        if hashlib.sha256(content).hexdigest() != keys[place]:
            raise Changed.of(row, f"{ids[place]} of {sources[place]} has changed since it was read; run again.")
        assert file.tell() + _BLOCK == shard.offsets[place], f"row {row} would not lie where the manifest says"
        for part in _member(f"{row:09}.{_ending(content, ids[place])}", content):
            file.write(part)
        for part in _member(f"{row:09}.json", text):
            file.write(part)
    file.write(b"\0" * (shard.size - file.tell()))


def _member(name: str, content: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield content
    yield b"\0" * (-len(content) % _BLOCK)


def _ending(content: bytes, name: str) -> str:
    """By what the file begins with, else by its name."""
    found = next((ending for start, ending in _BEGINNINGS.items() if content.startswith(start)), None)
    suffix = Path(name).suffix.lower()
    return found or (suffix[1:] if suffix in SUFFIXES else "image")
