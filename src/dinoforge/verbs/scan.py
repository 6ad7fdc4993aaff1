"""``scan``: a source becomes a manifest."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from dinoforge.base.errors import ConfigError
from dinoforge.base.interrupt import interruptible
from dinoforge.base.lock import locked
from dinoforge.base.log import progress, say
from dinoforge.data.journal import Journal
from dinoforge.data.look import printable
from dinoforge.data.manifest import is_manifest, read_made, read_manifest, write_manifest
from dinoforge.data.scan import EARLIER
from dinoforge.data.scan import scan as scan_source
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.verbs.reading import worker_count

_LONGEST = 240
"""Bytes in the name of the output; what is written beside it has a name some longer, and 255 is the most that is allowed."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan found."""

    images: int
    rejected: int
    exact_duplicates: int
    """Images with the bytes of an earlier one; they are in the manifest too, ``copy_of`` names the first."""
    read: int
    """Images whose bytes were read in this start."""
    reused: int
    """Images known from an earlier scan to the same manifest, or from an earlier start of this one."""
    new: int
    """Images that the manifest which was there did not know."""
    changed: int
    """Images that it knew with other bytes."""
    vanished: int
    """Images that it knew and that are no longer there."""
    seconds: float
    out: str


def scan(*, data: str, out: str, workers: str | int | None = None) -> Scanned:
    """Look at every image once and write a manifest: size, key, label, exact copies. Broken ones are named in it.

    Interrupted, the same command goes on. Where the manifest is there already, only images that are new or changed are read.

    Args:
        data: Images: a folder, a Parquet file, toy://species.
        out: Manifest to write, a .parquet file.
        workers: Processes that read; all cores by default. Results do not depend on it.
    """
    began = time.monotonic()
    path, count = Path(out), worker_count(workers)
    _free(path, data)
    with interruptible("what was scanned so far is kept"):
        source = open_source(data)
        beside = path.parent / f".{path.name}.scan"
        about = {"data": source.address, "fingerprint": source.fingerprint}
        with locked(beside):
            with (
                Journal(beside / "journal.arrow", about=about) as journal,
                progress("scan", len(source)) as tick,
            ):
                earlier = read_manifest(path, columns=EARLIER) if path.exists() else None
                found = scan_source(source, earlier=earlier, journal=journal, workers=count, tick=tick)
            rejected = [*_others(source, data, path), *found.rejected()]
            made = {"verb": "scan", **about, "by_name": sorted(source.by_name), "rejected": rejected}
            images = write_manifest(path, found.tables(), made=made)
            shutil.rmtree(beside, ignore_errors=True)
    if rejected:
        say(f"{len(rejected):,} rejected, the first {rejected[0]['id']}: {rejected[0]['reason']}")
    return Scanned(
        images=images, rejected=len(rejected), exact_duplicates=found.exact_duplicates, read=found.read,
        reused=found.reused, new=found.new, changed=found.changed, vanished=found.vanished,
        seconds=time.monotonic() - began, out=out,
    )  # fmt: skip


def _free(path: Path, data: str) -> None:
    """See that nothing is lost by writing a manifest there.

    Raises:
        ConfigError: It is no name for a manifest, or that of something else.
    """
    if path.suffix != ".parquet":
        raise ConfigError(f"out={path} must be a .parquet file.")
    if len(os.fsencode(path.name)) > _LONGEST:
        raise ConfigError(f"out={path} has a name of more than {_LONGEST} bytes; give a shorter one.")
    if not path.exists():
        return
    if not is_manifest(path):
        raise ConfigError(f"out={path} is there and is no manifest; choose another name, or remove it.")
    if _is(data.partition("?")[0], path):
        raise ConfigError(f"out={path} is the manifest that is to be scanned; choose another name.")
    verb = read_made(path).get("verb")
    if verb != "scan":
        raise ConfigError(f"out={path} is a manifest of `{verb}`, not of `scan`; choose another name, or remove it.")


def _is(name: str, path: Path) -> bool:
    """Whether a text names that file."""
    try:
        return Path(name).expanduser().resolve() == path.resolve()
    except (OSError, RuntimeError, ValueError):
        return False


def _others(source: Source, data: str, out: Path) -> list[dict[str, str]]:
    """Files of the source that are no images; the manifest itself, if it is kept among them, is not one that was found."""
    root = data.partition("?")[0]
    return [
        {"id": printable(name), "reason": printable(reason)}
        for name, reason in source.rejected
        if not (name.endswith(out.name) and _is(f"{root}/{name}", out))
    ]
