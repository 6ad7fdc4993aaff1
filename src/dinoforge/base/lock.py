"""Folders that one process holds at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinoforge.base.errors import RunError
from dinoforge.base.files import explained, resolved

_held: set[Path] = set()


class Busy(RunError):
    """Another process, or another call in this one, holds a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the operating system lets go of it even after kill -9.

    A record lock, for it belongs to the process: workers forked from it do not keep a killed run's folder locked.

    Raises:
        Busy: Another process, or another call in this one, holds it.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place = resolved(folder)
        busy = Busy(f"out={folder} is in use by another dinoforge process. Wait for it, or choose another out.")
        if place in _held:  # a second lock of one process would succeed, and its end would release the first
            raise busy
        with (folder / ".lock").open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise busy from None
            _held.add(place)
            try:
                yield
            finally:
                _held.discard(place)


def in_use(folder: Path) -> bool:
    """Whether a process, this one included, holds the folder's lock. Nothing is written; the lock is let go at once."""
    # Opening and closing the file would release a lock of our own: record locks belong to the process.
    if folder.resolve() in _held:
        return True
    try:
        with (folder / ".lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or one that we may not open
        return False
    return False
