"""Files that are whole or absent: atomic writes, JSON lines, hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dinoforge.base.errors import RunError

_WHY = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "no space left. Free some and run again"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "permission denied. Choose a folder that you may write to"
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "a file stands where a folder is needed, or the reverse"
    ),
    errno.ELOOP: "its links are a loop. Choose another place",
}
"""What the operating system's refusals mean."""


@contextmanager
def explained(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn the operating system's refusals at ``path`` into one line a user can act on."""
    try:
        yield
    except OSError as error:
        why = _WHY.get(error.errno or 0)
        if error.errno == errno.ENOENT and error.filename is not None and _made_for(path, Path(error.filename)):
            why = "no file can be made there. Choose another place"
        if why is None:
            raise
        raise RunError(f"Cannot {doing} {path}: {why}.") from None


def _made_for(path: Path, missing: Path) -> bool:
    """Whether something is ``path``, a folder around it or a temporary neighbour: made before it is used, so never missing."""
    there, here = missing.absolute(), path.absolute()
    return here.is_relative_to(there) or (there.parent == here.parent and there.name.startswith(f".{here.name}."))


def resolved(path: Path, doing: str = "write") -> Path:
    """A path without links.

    Raises:
        RunError: The links lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError:  # what Python 3.11 and 3.12 say of a circle
        raise RunError(f"Cannot {doing} {path}: {_WHY[errno.ELOOP]}.") from None


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` on a temporary neighbour of ``path``, flush it to the disk and rename it into place."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity become null."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None, flush: bool = False
) -> None:
    """Write a ``.safetensors`` file; with ``flush`` it is on the disk when this returns.

    Raises:
        RunError: The disk is full or must not be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with explained(path):
        try:
            save_file(plain, path, metadata=metadata)
            path.chmod(0o644)  # as every other file of ours; the library writes it for its owner alone
            if flush:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code.group(1)), str(error)) from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary neighbour of ``path`` to fill; renamed to ``path`` (replacing it) only if the block succeeds.

    Raises:
        RunError: It cannot be written, or as ``replaceable``.
    """
    with explained(path):
        path = replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        temporary.chmod(0o755)
        try:
            yield temporary
            put_back(path)
            old = _aside(path)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replaceable(path: Path) -> Path:
    """The folder that is replaced: of a link what it leads to, so that data stay on the disk they were meant for.

    Raises:
        RunError: It is the working folder, or one around it, or a loop of links.
    """
    found = resolved(path)
    if Path.cwd().is_relative_to(found):
        raise RunError(
            f"{path} holds the folder that this was started in, and cannot be replaced; give a folder in it."
        )
    return found


def _aside(path: Path) -> Path:
    """Where a folder waits while its successor takes its place."""
    return path.parent / f".{path.name}.old"


def put_back(path: Path) -> None:
    """Undo a replacement by ``new_folder`` that was killed between its two renames: the old folder is there again."""
    path = resolved(path)
    if not path.exists() and _aside(path).exists():
        _aside(path).replace(path)


def place_for(path: Path) -> None:
    """Make the folder of a file that is written in the end, and find out now whether it can be.

    Raises:
        RunError: It cannot.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()


UNFINISHED = "new"
"""Ending of a folder's temporary neighbour that several processes write and must all know the name of."""

_GOING = "gone"
"""Ending of a folder that is being removed."""

_LEFTOVER = re.compile(rf"\.(?P<name>.+)\.(?:[a-z0-9_]{{8}}|old|{_GOING}|{UNFINISHED})")
"""What writers call their temporary neighbours (eight characters are tempfile's)."""


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there: killed at any moment, it is whole or not there any more under its name."""
    going = path.parent / f".{path.name}.{_GOING}"
    shutil.rmtree(going, ignore_errors=True)
    with suppress(OSError):  # what cannot be removed stays as it is
        path.replace(going)
    shutil.rmtree(going, ignore_errors=True)


def clear_leftovers(folder: Path, *names: str) -> list[Path]:
    """Remove what writers of the given names (``fnmatch`` patterns) left in ``folder`` when they were killed.

    A predecessor whose successor never arrived is put back, not removed. The caller sees to it that nobody is writing.

    Returns:
        What was removed unfinished.
    """
    removed = []
    for path in sorted(folder.glob(".*")):
        found = _LEFTOVER.fullmatch(path.name)
        if found is None or not any(fnmatch(found["name"], name) for name in names):
            continue
        if path == _aside(folder / found["name"]):
            put_back(folder / found["name"])
        elif path.suffix != f".{_GOING}":
            removed.append(path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line and hand it to the operating system before returning.

    After a line that a crash or a full disk cut off, it begins on a line of its own.
    """
    with explained(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + _line(row))


class Lines:
    """JSON lines added to a file one by one, in order. None is lost to a full disk: what it refuses is added later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: deque[dict[str, Any]] = deque()

    def add(self, row: dict[str, Any]) -> None:
        """Put one behind those that wait, and write what can be written."""
        self._waiting.append(row)
        with suppress(RunError):
            self.flush()

    def flush(self) -> None:
        """Write all that wait.

        Raises:
            RunError: The disk is full; the next call tries again.
        """
        while self._waiting:
            append_line(self._path, self._waiting[0])
            self._waiting.popleft()

    def replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write these in place of what the file holds and of those that wait.

        Raises:
            RunError: It cannot be written; file and waiting lines stay as they are.
        """
        write_lines(self._path, rows)
        self._waiting.clear()


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically, in place of what the file holds."""
    write_atomic(path, lambda file: file.write(b"".join(map(_line, rows))))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(finite(row)).encode() + b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file that may be absent; a line that was cut off, or holds no facts by name, is left out."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def finite(value: Any) -> Any:
    """The same structure with every NaN and infinity replaced by None, which is what JSON can hold."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
