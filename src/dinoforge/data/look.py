"""Reading many images in processes that may die: a decoder that crashes or hangs costs one image, not the scan."""

from __future__ import annotations

import faulthandler
import hashlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from dinoforge.base.errors import RunError
from dinoforge.data.decode import Broken, Picture, open_picture
from dinoforge.data.sources.source import Source

PATIENCE = 120.0
"""Seconds that one image may take."""
_DEATHS = 2
"""So many processes must die over an image until it is to blame: one may have been killed for a neighbour's memory."""
_AT_ONCE = 32
_AHEAD = 64
"""Tasks for each process that may be done before the one that is waited for."""
_LOOKS_UP = 0.25


class Seen(NamedTuple):
    """What reading one image found. Sizes are those of the decoded picture."""

    sha256: str | None
    width: int | None
    height: int | None
    channels: int | None
    bytes: int | None
    broken: str | None
    """Why it cannot be used, in printable words."""
    lasting: bool
    """Whether the same file would be found the same again: not so where it could not be read at all."""
    more: Any = None
    """What else was asked of it, see ``Asking``."""


Asking = Callable[[Picture, Shaped[np.ndarray, "Y X C"]], Any]
"""Takes a picture and its pixels as they are in the file; what it gives travels between processes."""


def look(source: Source, row: int, also: Asking | None = None) -> Seen:
    """Read one image and decode all of it: only so is it known to be whole."""
    try:
        encoded = source.encoded(row)
    except Broken as error:
        return _broken(str(error), lasting=False)
    except Exception as error:  # whatever a library says of a damaged container
        return _broken(f"cannot be read: {type(error).__name__}: {error}", lasting=False)
    key, size = hashlib.sha256(encoded).hexdigest(), len(encoded)
    try:
        picture = open_picture(encoded)
        pixels = picture.pixels()
        more = None if also is None else also(picture, pixels)
    except Broken as error:
        return _broken(str(error), key, size)
    except MemoryError:
        return _broken("there is not enough memory to decode it", key, size, lasting=False)
    except Exception as error:
        return _broken(f"cannot be decoded: {type(error).__name__}: {error}", key, size)
    return Seen(key, picture.width, picture.height, picture.channels, size, None, lasting=True, more=more)


def _broken(reason: str, key: str | None = None, size: int | None = None, *, lasting: bool = True) -> Seen:
    return Seen(key, None, None, None, size, printable(reason), lasting=lasting)


def printable(text: str) -> str:
    """A text of one line that any terminal and any table takes."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


@dataclass(slots=True)
class _Task:
    """Some rows to look at; those over which a process died have their verdict already."""

    rows: list[int]
    verdicts: dict[int, Seen] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)

    def left(self) -> list[int]:
        return [row for row in self.rows if row not in self.verdicts]

    def joined(self, seen: list[Seen]) -> list[Seen]:
        own = iter(seen)
        return [self.verdicts[row] if row in self.verdicts else next(own) for row in self.rows]


class _Looker:
    """One process, and what it is at."""

    def __init__(self, source: Source, also: Asking | None, others: list[_Looker]) -> None:
        forks = "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if forks else "spawn")
        self.at = context.RawValue("q", -1)
        self.number: int | None = None
        self.task: _Task | None = None
        self.seen_at, self.waited = -1, 0.0
        self.connection, theirs = context.Pipe()
        strangers = [self.connection, *(other.connection for other in others)] if forks else []
        self.process = context.Process(target=_work, args=(source, also, theirs, self.at, strangers), daemon=True)
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a handler of ours must not run in there
        try:
            self.process.start()
        except OSError as error:
            raise RunError(f"No process can be started to read images: {error.strerror}. Try fewer workers.") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()

    def give(self, number: int, task: _Task) -> None:
        """Hand over a task; that the process is dead is found out when its answer is asked for."""
        self.number, self.task, self.waited, self.seen_at = number, task, 0.0, -1
        self.at.value = -1
        with suppress(OSError):
            self.connection.send(task.left())

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _work(source: Source, also: Asking | None, connection: Connection, at: Any, strangers: list[Connection]) -> None:
    """The life of a process: rows in, what they hold out, until nobody asks any more."""
    for number in _SIGNALS:  # they reach the whole group; the main process decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for other in strangers:  # held open here, their ends would never be seen to close
        other.close()
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what decoders written in C think of a file is in its reason
    while True:
        try:
            rows = connection.recv()
            found = []
            for row in rows:
                at.value = row
                found.append(look(source, row, also))
            at.value = -1
            connection.send(found)
        except (EOFError, OSError):
            return


class _Crew:
    """The processes, the tasks that wait, and the answers that wait for earlier ones."""

    def __init__(
        self, source: Source, rows: Int[np.ndarray, " n"], *, workers: int, patience: float, also: Asking | None
    ) -> None:
        self.source, self.patience, self.also = source, patience, also
        size = max(1, min(_AT_ONCE, len(rows) // (4 * workers)))
        self.tasks = (_Task(rows[start : start + size].tolist()) for start in range(0, len(rows), size))
        self.count = -(-len(rows) // size)
        self.again: deque[tuple[int, _Task]] = deque()
        self.done: dict[int, list[Seen]] = {}
        self.given, self.taken = 0, 0
        self.ahead = _AHEAD * workers
        self.blameless = 0
        self.lookers: list[_Looker] = []
        for _ in range(min(workers, self.count)):
            self.lookers.append(_Looker(source, also, self.lookers))
        self.watched = time.monotonic()

    def run(self) -> Iterator[list[Seen]]:
        """Answers in the order of the rows."""
        while self.taken < self.count:
            for looker in self.lookers:
                if looker.task is None:
                    self._employ(looker)
            self._watch()
            while self.taken in self.done:
                yield self.done.pop(self.taken)
                self.taken += 1

    def _employ(self, looker: _Looker) -> None:
        if self.again:
            looker.give(*self.again.popleft())
        elif self.given < min(self.count, self.taken + self.ahead):
            looker.give(self.given, next(self.tasks))
            self.given += 1

    def _watch(self) -> None:
        """Take the answers that are there; replace processes that died or take too long."""
        busy = {looker.connection: looker for looker in self.lookers if looker.task is not None}
        ready = set(wait(list(busy), timeout=_LOOKS_UP))
        now = time.monotonic()
        # While this process was stopped (Ctrl-Z), the others were too.
        passed, self.watched = min(now - self.watched, 4 * _LOOKS_UP), now
        for connection, looker in busy.items():
            if connection in ready:
                self._take(looker)
                continue
            at = looker.at.value
            looker.waited = looker.waited + passed if at == looker.seen_at else 0.0
            looker.seen_at = at
            if looker.waited > self.patience:
                self._replace(looker, f"reading and decoding it took more than {self.patience:g} s", hung=True)

    def _take(self, looker: _Looker) -> None:
        try:
            seen = looker.connection.recv()
        except Exception:  # an answer that was cut off may be anything
            self._replace(looker, "the decoder died", hung=False)
            return
        assert looker.task is not None
        assert looker.number is not None
        self.done[looker.number] = looker.task.joined(seen)
        looker.task = None

    def _replace(self, looker: _Looker, reason: str, *, hung: bool) -> None:
        """Put another process in the place of one, and its task back; the image that it was at gets the blame.

        Raises:
            RunError: Processes die without being at an image.
        """
        looker.end()
        task, at = looker.task, looker.at.value
        assert task is not None
        assert looker.number is not None
        task.deaths[at] = task.deaths.get(at, 0) + 1
        if at < 0:
            self.blameless += 1
            if self.blameless > 8:
                raise RunError("The processes that read images are killed before they begin; try fewer workers.")
        elif hung or task.deaths[at] >= _DEATHS:
            task.verdicts[at] = _broken(reason, lasting=not hung)
        self.again.append((looker.number, task))
        place = self.lookers.index(looker)
        rest = [other for other in self.lookers if other is not looker]
        self.lookers[place] = _Looker(self.source, self.also, rest)

    def end(self) -> None:
        for looker in self.lookers:
            looker.end()


def looked(
    source: Source, rows: Int[np.ndarray, " n"], *, workers: int, patience: float = PATIENCE, also: Asking | None = None
) -> Iterator[list[Seen]]:
    """What reading the given rows found, some at a time, in their order whatever the number of processes.

    Args:
        workers: Processes, at least 1.
        patience: Seconds that one image may take; after it its process is ended and the image is broken.
        also: Asked of each whole picture; see ``Seen.more``.

    Raises:
        RunError: Processes die without having begun.
    """
    crew = _Crew(source, rows, workers=workers, patience=patience, also=also)
    try:
        yield from crew.run()
    finally:
        crew.end()
