"""Where files lie: on a disk, in object storage, on the web; all read the same way, a whole file or a part of one."""

from __future__ import annotations

import http.client
import io
import os
import random
import socket
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.options import shown

TRIES = 5
"""How often a read from the network is tried before the file is given up."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes of servers that may answer the next time."""
LONGEST = 4096
"""Characters that a name may have. Columns of texts give every row as many as the longest of them has."""
_FIRST_WAIT = 0.5  # seconds; doubled after each try, so that five tries take about 8
_TRANSIENT = frozenset({
    "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "EndpointConnectionError", "HTTPClientError",
    "ResponseStreamingError", "IncompleteReadError", "ClientConnectionError", "ClientPayloadError", "FSTimeoutError",
    "ServerDisconnectedError", "ClientOSError",
})  # fmt: skip
"""Names of errors of the network in libraries that need not be installed."""
_BUFFER = 256 * 1024  # bytes asked for at once from the network: many headers of small members, little of large ones

T = TypeVar("T")
_fence: ContextVar[Callable[[str], None] | None] = ContextVar("_fence", default=None)


@contextmanager
def behind(fence: Callable[[str], None]) -> Iterator[None]:
    """Within, ``fence`` is given every path of the disk before a source looks there; it raises where none may look."""
    token = _fence.set(fence)
    try:
        yield
    finally:
        _fence.reset(token)


def ask_fence(path: str) -> None:
    """Called before anything of the disk is looked at for a source; whoever reads past ``Disk`` calls it too.

    Raises:
        ConfigError: There is a fence, and the path lies behind it.
    """
    fence = _fence.get()
    if fence is not None:
        fence(path)


@dataclass(slots=True)
class Found:
    """What a folder holds."""

    names: list[str] = field(default_factory=list)
    """Relative paths of its files at any depth, in a fixed order; none is hidden."""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """What is no file to be read, with the reason; names are printable."""
    stamps: dict[str, str] = field(default_factory=dict)
    """By name, a text that changes with the file's content, where the listing gives one."""


class Storage(ABC):
    """Reads files by their address. Holds no connection, so that it goes to any process."""

    @abstractmethod
    def read(self, address: str) -> bytes:
        """A whole file.

        Raises:
            Broken: It is not there or cannot be read; the text names no place.
        """

    @abstractmethod
    def part(self, address: str, start: int, size: int) -> bytes:
        """So many bytes of a file; fewer at its end.

        Raises:
            Broken: As ``read``.
        """

    @abstractmethod
    def stamp(self, address: str) -> tuple[int, str]:
        """The file's size in bytes and a text that changes with its content.

        Raises:
            Broken: As ``read``.
        """

    @abstractmethod
    def kind(self, address: str) -> str:
        """``file``, ``folder``, ``other`` (a device, a pipe), or nothing where there is none.

        Raises:
            Broken: It cannot be told.
        """

    @abstractmethod
    def files(self, address: str) -> Found:
        """What a folder holds.

        Raises:
            Broken: It cannot be read.
        """

    def opened(self, address: str) -> io.BufferedReader:
        """A file to read and seek in."""
        size, _ = self.stamp(address)
        return io.BufferedReader(_Parts(self, address, size), _BUFFER)


class Disk(Storage):
    """The file system."""

    def read(self, address: str) -> bytes:
        """See ``Storage``; a pipe or a device is not waited for."""
        ask_fence(address)
        with _told(), _regular(address) as handle:
            return _all(handle, os.fstat(handle).st_size)

    def part(self, address: str, start: int, size: int) -> bytes:
        """See ``Storage``."""
        ask_fence(address)
        with _told(), _regular(address) as handle:
            return os.pread(handle, size, start)

    def stamp(self, address: str) -> tuple[int, str]:
        """Size, and the time of the last change in nanoseconds."""
        ask_fence(address)
        with _told():
            found = Path(address).stat()
        return found.st_size, str(found.st_mtime_ns)

    def kind(self, address: str) -> str:
        """See ``Storage``."""
        ask_fence(address)
        try:
            mode = Path(address).stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            raise Broken(f"the file cannot be read: {error.strerror}") from None
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"

    def files(self, address: str) -> Found:
        """See ``Storage``. Links to folders are followed, each real folder is read once."""
        ask_fence(address)
        walk = _Walk(address)
        with _told():
            walk.folder("")
        walk.links()
        return walk.found()

    def opened(self, address: str) -> io.BufferedReader:
        """The file itself."""
        ask_fence(address)
        with _told():
            return Path(address).open("rb")


@contextmanager
def _regular(address: str) -> Iterator[int]:
    """The handle of a regular file; anything else is closed at once, and opening it did not wait."""
    handle = os.open(address, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Broken("not a regular file")
        yield handle
    finally:
        os.close(handle)


def _all(handle: int, size: int) -> bytes:
    """The rest of an open file: in one call where its size is what it said."""
    read = os.read(handle, size + 1)
    if len(read) == size:
        return read
    parts = [read]
    while parts[-1]:
        parts.append(os.read(handle, 1 << 20))
    return b"".join(parts)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the operating system's refusals into a reason."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, Broken):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)  # a name with a zero byte is a ValueError
        raise Broken(f"the file cannot be read: {reason}") from None


class _Walk:
    """One walk through a folder of the disk: real folders first, then those that links lead to."""

    def __init__(self, root: str) -> None:
        self._root, self._seen = root, set[tuple[int, int]]()
        self._files: dict[tuple[str, ...], list[str]] = {}
        self._rejected: list[tuple[str, str]] = []
        self._links: list[str] = []

    def folder(self, start: str) -> None:
        """A folder and all real folders in it."""
        waiting = [start]
        while waiting:
            name = waiting.pop()
            path = os.path.join(self._root, name) if name else self._root  # noqa: PTH118 - a million of them
            try:
                status = os.stat(path)  # noqa: PTH116
                place = status.st_dev, status.st_ino
                entries = [] if place in self._seen else list(os.scandir(path))
            except OSError as error:
                if not name:
                    raise
                self._rejected.append((name, f"the folder cannot be read: {error.strerror}"))
                continue
            if place in self._seen:
                self._rejected.append((name, "a link to a folder that was read already"))
                continue
            self._seen.add(place)
            waiting += self._sorted(f"{name}/" if name else "", entries)

    def _sorted(self, prefix: str, entries: list[os.DirEntry[str]]) -> list[str]:
        """Note a folder's files; its real folders."""
        folders, files = [], []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not is_text(entry.name):
                self._rejected.append((prefix + entry.name, "the name is not valid UTF-8; rename it"))
            elif entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(prefix + entry.name)
            elif entry.is_symlink() and _leads_to(entry) == stat.S_IFDIR:
                self._links.append(prefix + entry.name)
            elif entry.is_symlink() and _leads_to(entry) in {stat.S_IFREG, 0}:  # one to nothing is a broken row
                files.append(entry.name)
            else:
                self._rejected.append((prefix + entry.name, "not a regular file"))
        if files:
            self._files[tuple(prefix.split("/")[:-1])] = sorted(files)
        return folders

    def links(self) -> None:
        """The folders that links lead to, and those that links in them lead to."""
        while self._links:
            waiting, self._links = sorted(self._links), []
            for name in waiting:
                self.folder(name)

    def found(self) -> Found:
        """A folder's files before those of the folders in it, both in the order of their names."""
        names = ["/".join((*parts, name)) for parts in sorted(self._files) for name in self._files[parts]]
        return Found(names, sorted((printable(name), reason) for name, reason in self._rejected))


def _leads_to(entry: os.DirEntry[str]) -> int:
    """The type of file that a link leads to, 0 for nothing or itself."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return 0


def is_text(name: str) -> bool:
    """Whether a file's name can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file's name with what cannot be written as UTF-8 spelt out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Parts(io.RawIOBase):
    """A file on the network, read part by part."""

    def __init__(self, storage: Storage, address: str, size: int) -> None:
        self._storage, self._address, self._size, self._at = storage, address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        part = self._storage.part(self._address, self._at, size)
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def retried(read: Callable[[], T]) -> T:
    """What ``read`` returns; after an error of the network that may pass it is called again, at most ``TRIES`` times.

    The waits double and are drawn at random below that, so that many workers do not come back at once.

    Raises:
        Broken: The last error, without any address or credentials in it.
    """
    for attempt in range(TRIES):
        try:
            return read()
        except Broken:
            raise
        except Exception as error:  # storage libraries have errors of their own each
            again = transient(error)
            if not again or attempt == TRIES - 1:
                tries = f" (tried {TRIES} times)" if again else ""
                raise Broken(f"the file cannot be read: {_reason(error)}{tries}") from None
        time.sleep(_FIRST_WAIT * 2**attempt * random.uniform(0.5, 1))  # waits decide no result
    raise AssertionError("the last try returns or raises")


def transient(error: BaseException) -> bool:
    """Whether an error of the network may be gone the next time."""
    status = _status(error)
    if status is not None:
        return status in RETRIED
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException):
        return True
    return any(kind.__name__ in _TRANSIENT for kind in type(error).__mro__)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error of ours, botocore, aiohttp or gcsfs, or in the one that it was made from."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(code, int):
                return code
        for name in ("status", "code"):
            code = getattr(error, name, None)
            if isinstance(code, str) and code.isdigit():
                code = int(code)
            if isinstance(code, int):
                return code
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """An error in words that hold no address: it may be signed."""
    status = _status(error)
    if status is not None:
        return f"HTTP {status} {http.client.responses.get(status, '')}".strip()
    for kind, words in ((FileNotFoundError, "no such file"), (PermissionError, "permission denied"),
                        (TimeoutError, "the server did not answer in time")):  # fmt: skip
        if isinstance(error, kind):
            return words
    if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
        return "no credentials in the environment; ?anonymous=true reads a public bucket"
    return (error.strerror if isinstance(error, OSError) and error.errno is not None else None) or type(error).__name__


@contextmanager
def on_opening(address: str) -> Iterator[None]:
    """Turn a file that cannot be read into the error of an address that cannot be opened."""
    try:
        yield
    except Broken as error:
        raise DataError(f"{shown(address)} cannot be opened: {error}.") from None
