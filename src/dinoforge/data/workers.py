"""Worker processes that make groups, and what happens when one of them dies or hangs: named, retried, set aside."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from dinoforge.base.errors import DataError, UserError
from dinoforge.base.log import say

if TYPE_CHECKING:
    from dinoforge.data.loader import Group, Groups

_TICK = 1.0
"""Seconds between two looks at the workers while nothing comes."""
_PATIENCE = 8
"""Workers lost one after another, without a group in between, before the run gives up."""


def ship(
    groups: Groups, numbers: Sequence[int], *, workers: int, ahead: int, pin: bool, stall_seconds: float
) -> Generator[Group | UserError]:
    """The groups of these numbers in their order, made by so many processes; by this one where ``workers`` is 0.

    A worker that dies, or makes nothing for ``stall_seconds``, is replaced. The image it was reading is read once more; the
    second time it is set aside with the reason, and another takes its place.

    Args:
        ahead: Groups that are made before they are asked for.
        pin: Ship in memory from which a GPU copies without waiting.

    Raises:
        DataError: One worker after another is lost.
    """
    if not workers:
        yield from (groups[number] for number in numbers)
        return
    done, lost, blamed = 0, 0, Counter[int]()
    groups.watched = torch.full((workers,), -1).share_memory_()
    while done < len(numbers):
        crew = _Crew(groups, numbers[done:], workers=workers, ahead=ahead, pin=pin, stall_seconds=stall_seconds)
        try:
            for group in crew:
                done, lost = done + 1, 0
                yield group
            if done < len(numbers):
                raise DataError(f"The workers ended {len(numbers) - done} groups too early.")
        except _Lost as loss:
            lost += 1
            _blame(groups, loss, blamed)
            if lost == _PATIENCE:
                raise DataError(
                    f"{lost} workers in a row were lost reading {groups.source.address}; the last {loss}. "
                    "Is there memory left? Take fewer speed.workers, or a longer speed.stall_seconds for a slow source."
                ) from None
        finally:
            crew.dismiss()


def _blame(groups: Groups, loss: _Lost, blamed: Counter[int]) -> None:
    """Say what happened; set the image aside that it happened to twice."""
    if loss.row < 0:
        say(f"A worker {loss}; a new one goes on.")
        return
    name = groups.source.columns["id"][loss.row]
    blamed[loss.row] += 1
    if blamed[loss.row] == 1:
        say(f"A worker {loss} while reading {name}; it is read once more.")
    else:
        say(f"A worker {loss} while reading {name}, again; the image is set aside.")
        groups.aside[loss.row] = f"reading it twice ended a worker, which {loss}"


class _Lost(Exception):
    """A worker died or hangs; the text says which of the two."""

    def __init__(self, what: str, row: int) -> None:
        super().__init__(what)
        self.row = row
        """The row it was reading, or -1."""


class _Crew:
    """Torch's loader, watched: its own way of telling a worker's death would raise in the middle of a step."""

    def __init__(
        self, groups: Groups, numbers: Sequence[int], *, workers: int, ahead: int, pin: bool, stall_seconds: float
    ) -> None:
        self._groups, self._stall, self._count = groups, stall_seconds, workers
        assert groups.watched is not None
        groups.watched.fill_(-1)
        loader: DataLoader[Any] = DataLoader(
            groups, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=max(2, -(-ahead // workers)),
            worker_init_fn=_quiet, collate_fn=_as_it_is, pin_memory=pin, timeout=min(_TICK, stall_seconds),
        )  # fmt: skip
        self._shipped: Any = iter(loader)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._delivered, self._failed, self._pin = 0, False, pin
        atexit.register(self._kill)  # an error that is kept keeps this; workers, deaf to SIGTERM, would be waited for

    def __iter__(self) -> Iterator[Group | UserError]:
        asked = time.monotonic()
        while True:
            try:
                group = next(self._shipped)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader"):  # what a worker itself raised
                    raise
                # nothing came for a tick, or a worker is gone
                self._look(time.monotonic() - asked)
                continue
            except (OSError, EOFError):
                # What a worker ships is fetched from itself. Where it dies meanwhile, its end shows a moment later.
                if not self._ended():
                    raise
                self._look(time.monotonic() - asked)
            self._delivered += 1
            yield group
            asked = time.monotonic()

    def _ended(self) -> bool:
        """Whether a worker is dead, or is within a tick."""
        end = time.monotonic() + _TICK
        while time.monotonic() < end:
            if any(worker.exitcode is not None for worker in self._shipped._workers):
                return True
            time.sleep(0.01)
        return False

    def _look(self, waited: float) -> None:
        """Find out why nothing comes.

        Raises:
            _Lost: A worker is dead, or the one whose turn it is has been at it for too long.
        """
        watched = self._groups.watched
        assert watched is not None
        for number, worker in enumerate(self._shipped._workers):
            if worker.exitcode is not None:
                self._failed = True
                raise _Lost(_how(worker.exitcode), int(watched[number]))
        if waited >= self._stall:
            # Groups are dealt out in turn, so the oldest that is missing is with this one.
            turn = self._delivered % self._count
            self._shipped._workers[turn].kill()
            self._failed = True
            raise _Lost(f"made nothing for {waited:.0f} seconds", int(watched[turn]))

    def dismiss(self) -> None:
        """End all processes, those too that no longer listen."""
        if self._failed and not self._pin:  # a pinning thread would wait for ever for the rest of what one was sending
            self._kill()
        self._shipped._shutdown_workers()
        self._kill()
        atexit.unregister(self._kill)

    def _kill(self) -> None:
        for worker in self._shipped._workers:
            worker.kill()


def _how(status: int) -> str:
    """How a process ended, in words: a negative status is the number of a signal."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


def _as_it_is(group: Any) -> Any:
    return group


def _quiet(_worker: int) -> None:
    """A worker leaves threads and signals to the main process.

    Ctrl-C, and a scheduler's SIGTERM, reach the whole process group; the main process still needs batches to finish its step.
    Workers end when it tells them to, or within seconds of its death: torch's workers watch for that.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
