"""What lies where in a tar file: read once from its headers, kept beside it, never unpacked.

The members of a sample share the path up to the first dot of the file's name (WebDataset): ``a/7.jpg``, ``a/7.cls``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dinoforge.base.errors import ConfigError, DataError, RunError
from dinoforge.base.files import write_atomic
from dinoforge.base.home import at_home
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.storage import LONGEST, Disk, Storage, on_opening, printable

_VERSION = 2
_KEY = b"dinoforge tar index"
_FACTS = 1 << 16  # bytes; a longer .json or .cls is no fact but a document
_WORDS = 512  # characters; longer texts (captions) stay in the tar
_TRAILING = 1 << 20  # bytes of zeros that writers put after the end


@dataclass(frozen=True, slots=True)
class Index:
    """Samples of a tar, in the order of their first members.

    ``samples`` (pyarrow) has ``key``, the members as lists ``names``, ``fields`` (``jpg``, ``mask.png``), ``offsets``,
    ``sizes``, and ``fact NAME`` for each plain value in the samples' ``.json`` and ``.cls``.
    """

    samples: Any
    rejected: list[tuple[str, str]]
    """Members that are not used, with the reason."""


@dataclass(slots=True)
class _Sample:
    names: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def index_of(address: str, storage: Storage) -> Index:
    """The index of a tar: the one that is kept if the tar has not changed since, else a new one, which is kept.

    Raises:
        DataError: No tar, or one that cannot be read.
    """
    with on_opening(address):
        size, version = storage.stamp(address)
        stamp = {"size": size, "changed": version, "version": _VERSION}
        places = _places(address, storage)
        for place in places:
            kept = _kept(place, stamp)
            if kept is not None:
                return kept
        with storage.opened(address) as file:
            index = _made(file, address, size)
    table = index.samples.replace_schema_metadata({_KEY: json.dumps({"stamp": stamp, "rejected": index.rejected})})
    for place in places if version else ():  # what cannot be told from another tar of this size is not kept
        try:
            write_atomic(place, lambda target: pq.write_table(table, target, compression="zstd"))
            break
        except (RunError, OSError):
            continue  # nowhere to keep it: it is made again the next time
    return index


def _places(address: str, storage: Storage) -> list[Path]:
    """Where an index may be kept, the best first."""
    whole = str(Path(address).resolve()) if isinstance(storage, Disk) else shown(address)
    found = [Path(address).parent / f".{Path(address).name}.index"] if isinstance(storage, Disk) else []
    with suppress(ConfigError):  # a user without a home has no cache
        cache = at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        found.append(cache / "dinoforge" / "tar" / f"{hashlib.sha256(os.fsencode(whole)).hexdigest()[:32]}.index")
    return found


def _kept(place: Path, stamp: dict[str, Any]) -> Index | None:
    """A kept index, if it is one of this very tar."""
    try:
        if not place.is_file():
            return None
        table = pq.read_table(place)
        facts = json.loads((table.schema.metadata or {})[_KEY])
        rejected = [(str(name), str(reason)) for name, reason in facts["rejected"]]
        return Index(table, rejected) if facts["stamp"] == stamp else None
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return None  # damaged: made again


def _made(file: io.BufferedReader, address: str, size: int) -> Index:
    """Read every header of a tar."""
    samples: dict[str, _Sample] = {}
    rejected: list[tuple[str, str]] = []
    for member in _members(file, address, size, rejected):
        key, ending = _split(member.name)
        sample = samples.setdefault(key, _Sample())
        if ending in sample.fields:
            rejected.append((member.name, "the name is in the archive twice; the first is used"))
            continue
        if ending in {"json", "cls"} and member.size <= _FACTS:
            file.seek(member.offset_data)
            _note(sample.facts, ending, file.read(member.size), member.name, rejected)
            continue
        sample.names.append(member.name.removeprefix("./"))
        sample.fields.append(ending)
        sample.offsets.append(member.offset_data)
        sample.sizes.append(member.size)
    return Index(_table(samples), rejected)


def _members(
    file: io.BufferedReader, address: str, size: int, rejected: list[tuple[str, str]]
) -> Iterator[tarfile.TarInfo]:  # fmt: skip
    """The whole regular files of a tar whose names stay within it; for all else the reason.

    Raises:
        DataError: No tar.
    """
    name = Path(shown(address)).name
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r", errorlevel=0, encoding="utf-8")
    except tarfile.TarError as error:
        packed = " It may be compressed: unpack it to a plain .tar." if "zip" in _magic(file) else ""
        raise DataError(f"{shown(address)} cannot be read as a tar: {error}.{packed}") from None
    with archive:
        last = 0
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
                rejected.append((name, f"the archive is cut off or damaged at byte {archive.offset:,}: {error}"))
                return
            if member is None:
                break
            if member.offset_data <= last:  # a size below 0 leads back
                rejected.append((name, f"damaged header at byte {member.offset:,}; what follows is not read"))
                return
            last = member.offset_data
            vars(archive)["members"].clear()  # ours to keep: the library's list of a million takes a gigabyte
            reason = _refused(member, size)
            if reason:
                long = len(member.name) > LONGEST
                called = f"{member.name[:64]}… at byte {member.offset:,}" if long else member.name
                rejected.append((printable(called), reason))
            elif not Path(member.name).name.startswith("."):
                yield member
        end = archive.offset
    _look_behind(file, name, end, size, rejected)


def _magic(file: io.BufferedReader) -> str:
    """``zip`` in some form where a file begins like a compressed one."""
    file.seek(0)
    start = file.read(6)
    return "zip" if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK")) else ""


def _refused(member: tarfile.TarInfo, size: int) -> str:
    """Why a member is not used; empty for one that is, and for folders."""
    if member.issym() or member.islnk():
        return "a link, not a file"
    if not member.isreg():
        return "" if member.isdir() else "not a regular file"
    if len(member.name) > LONGEST:
        return f"the name has {len(member.name):,} characters, more than {LONGEST:,}"
    if member.name.startswith("/") or ".." in member.name.replace("\\", "/").split("/") or "\x00" in member.name:
        return "the name leads out of the archive"
    if printable(member.name) != member.name:
        return "the name is not valid UTF-8"
    if member.offset_data + member.size > size:
        return f"the archive is cut off within it, at byte {size:,}"
    return "" if not member.issparse() else "a sparse file"


def _look_behind(file: io.BufferedReader, name: str, end: int, size: int, rejected: list[tuple[str, str]]) -> None:
    """Say so if reading ended at something else than the end of an archive."""
    file.seek(min(end, size))
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        if end >= size:
            rejected.append((name, "the archive has no end mark; it may be cut off"))
    elif len(block) < tarfile.BLOCKSIZE:
        rejected.append((name, f"the archive is cut off at byte {size:,}, within a header"))
    elif block.strip(b"\0"):
        rejected.append((name, f"damaged header at byte {end:,}; what follows is not read"))
    elif size - end > _TRAILING:
        rejected.append((name, f"{size - end:,} bytes after the end of the archive are not read"))


def _split(name: str) -> tuple[str, str]:
    """A member's sample and its ending, in lower case."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _note(facts: dict[str, Any], ending: str, content: bytes, name: str, rejected: list[tuple[str, str]]) -> None:
    """The plain values of a ``.json``, or the class in a ``.cls``."""
    try:
        if ending == "json":
            found = json.loads(content)
            if not isinstance(found, dict):
                raise ValueError("it holds no names with values")
            plain = {str(k): v for k, v in found.items() if isinstance(v, int | float | str)}
            short = {k: v for k, v in plain.items() if not isinstance(v, str) or len(v) <= _WORDS}
            "".join(f"{name}{value}" for name, value in short.items()).encode()  # refuses what is no Unicode text
            facts.update(short)
        else:
            text = content.decode().strip()
            if len(text) > _WORDS:
                raise ValueError(f"{len(text):,} characters are no name of a class")
            facts.setdefault("label", int(text) if text.lstrip("-").isdecimal() else text)
    except (ValueError, RecursionError) as error:
        rejected.append((name, f"not read: {str(error).splitlines()[0]}"))


def _table(samples: dict[str, _Sample]) -> Any:
    """The samples as a table; a fact that is now a number, now a text, becomes text."""
    rows = list(samples.values())
    lists = {
        "names": pa.array([row.names for row in rows], pa.list_(pa.string())),
        "fields": pa.array([row.fields for row in rows], pa.list_(pa.string())),
        "offsets": pa.array([row.offsets for row in rows], pa.list_(pa.int64())),
        "sizes": pa.array([row.sizes for row in rows], pa.list_(pa.int64())),
    }
    facts = {
        f"fact {name}": _column([row.facts.get(name) for row in rows])
        for name in dict.fromkeys(name for row in rows for name in row.facts)
    }
    return pa.table({"key": pa.array(list(samples), pa.string()), **lists, **facts})


def _column(values: list[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    try:
        if not kinds <= {int, float} and kinds != {bool}:
            raise pa.ArrowInvalid("texts among them")
        return pa.array(values)
    except (pa.ArrowInvalid, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
