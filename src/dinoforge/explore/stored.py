"""What is made of a collection's features once and then read: arrays beside them, each with the fingerprint of its features."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.files import clear_leftovers, write_atomic, write_text
from dinoforge.base.lock import locked

NAMES = ("vectors.npy", "places.faiss", "map.npz", "copies.npz", "outliers.npz")
"""Of all that is stored of a collection beside its features."""
_making = Lock()
"""Two that ask for the same wait for one that makes it; the machine has no use for two at once either."""


def refuse_strange(folder: Path) -> None:
    """See that what may be replaced or removed was stored here: it has its note.

    Raises:
        ConfigError: Something else has the name of such a file, or lies among its parts.
    """
    for whole in (folder / name for name in NAMES):
        parts = _parts(whole)
        for path in (whole, *(parts.iterdir() if parts.is_dir() else [parts])):
            ours = path.name.startswith(".") or path.suffix == ".of" or _note(path).exists()
            if path.exists() and not ours:
                raise ConfigError(f"{path} exists and was not written by explore; give another folder.")


def is_of(path: Path, fingerprint: str) -> bool:
    """Whether a file is there and is of that fingerprint."""
    try:
        return path.exists() and _note(path).read_text(encoding="utf-8").strip() == fingerprint
    except OSError:
        return False


def see_to(path: Path, fingerprint: str, make: Callable[[], Callable[[BinaryIO], object]]) -> None:
    """See to it that a file is there, and is of that fingerprint: replaced as a whole, as another process may have it mapped.

    Args:
        make: Makes what is missing; what it gives writes that to a file. Once it lies there its parts go.

    Raises:
        RunError: It cannot be written, or another process is making something of the same collection.
    """
    if is_of(path, fingerprint):
        return
    with _making, locked(path.parent):
        _put(path, fingerprint, make)
        shutil.rmtree(_parts(path), ignore_errors=True)


def _put(path: Path, fingerprint: str, make: Callable[[], Callable[[BinaryIO], object]]) -> None:
    if is_of(path, fingerprint):
        return
    clear_leftovers(path.parent, path.name)
    write = make()
    write_text(_note(path), "unfinished\n")  # before the file: one without a note is somebody else's
    write_atomic(path, write)
    write_text(_note(path), fingerprint + "\n")


def read_or_make(path: Path, fingerprint: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """One array, mapped; made and stored where it is missing or of something else.

    Raises:
        RunError: See ``see_to``.
    """

    def writer() -> Callable[[BinaryIO], object]:
        made = make()
        return lambda file: np.save(file, made)

    see_to(path, fingerprint, writer)
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def read_or_make_several(
    path: Path, fingerprint: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Several arrays by name, in memory; see ``read_or_make``."""
    see_to(path, fingerprint, _several(make))
    return _read_several(path)


def read_or_make_part(
    whole: Path, number: int, fingerprint: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Several arrays that are a part of what is being made just now: others wait for that already.

    Args:
        whole: The file that is made of them.
    """
    path = _parts(whole) / f"{number:09d}.npz"
    path.parent.mkdir(exist_ok=True)
    _put(path, fingerprint, _several(make))
    return _read_several(path)


def _parts(whole: Path) -> Path:
    return whole.with_name(f"{whole.name}.parts")


def _several(make: Callable[[], Mapping[str, np.ndarray]]) -> Callable[[], Callable[[BinaryIO], object]]:
    def writer() -> Callable[[BinaryIO], object]:
        made: dict[str, Any] = dict(make())
        return lambda file: np.savez(file, **made)

    return writer


def _read_several(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.of")
