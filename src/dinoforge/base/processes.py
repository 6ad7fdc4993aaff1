"""Work spread over forked processes whose results come in order and do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from dinoforge.base.errors import RunError

Job = TypeVar("Job")
Answer = TypeVar("Answer")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def spread(work: Callable[[Job], Answer], jobs: Sequence[Job], *, workers: int) -> Iterator[Answer]:
    """What ``work`` makes of every job, in the order of the jobs.

    Processes are forked, so ``work`` may hold anything, large arrays too, and nothing of it is copied; answers travel back.
    Every process has its share from the start. With one worker or one job, and where nothing can be forked, this process
    does it all.

    Args:
        workers: Processes at most.

    Raises:
        RunError: A process cannot be started, or ended before its work was done.
    """
    count = min(workers, len(jobs))
    if count < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, jobs)
        return
    context: Any = multiprocessing.get_context("fork")
    crew: list[tuple[Any, Connection]] = []
    try:
        for number in range(count):
            crew.append(_started(context, work, jobs, slice(number, None, count), [ours for _, ours in crew]))
        yield from _collected(crew, len(jobs))
    finally:
        for process, ours in crew:
            process.kill()
            process.join()
            ours.close()


def _started(
    context: Any, work: Callable[[Job], Answer], jobs: Sequence[Job], share: slice, others: list[Connection]
) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_do, args=(work, jobs, share, theirs, [ours, *others]), daemon=True)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a handler of ours must not run in there
    try:
        process.start()
    except OSError as error:
        ours.close()
        raise RunError(f"No process can be started to share the work: {error.strerror}. Try fewer workers.") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        theirs.close()
    return process, ours


def _do(
    work: Callable[[Any], Any], jobs: Sequence[Any], share: slice, theirs: Connection, strangers: list[Any]
) -> None:
    """The life of a process: its share of the jobs. Where nobody listens any more, it ends with its next answer."""
    for number in _SIGNALS:  # they reach the whole group; the main process decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for other in strangers:  # held open here, their ends would never be seen to close
        other.close()
    try:
        for place in range(len(jobs))[share]:
            try:
                answer: tuple[int, Any, BaseException | None] = (place, work(jobs[place]), None)
            except Exception as error:
                answer = (place, None, error)
            theirs.send(answer)
    except OSError:
        os._exit(1)


def _collected(crew: list[tuple[Any, Connection]], jobs: int) -> Iterator[Any]:
    done: dict[int, Any] = {}
    wanted, listening = 0, {ours: process for process, ours in crew}
    while wanted < jobs:
        for ours in wait(list(listening)):
            assert isinstance(ours, Connection)
            try:
                place, answer, error = ours.recv()
            except EOFError:
                process = listening.pop(ours)
                process.join()
                if process.exitcode:
                    raise RunError(
                        f"A process that shared the work ended with status {process.exitcode}; was there memory enough? "
                        "Try fewer workers."
                    ) from None
                continue
            if error is not None:
                raise error
            done[place] = answer
        while wanted in done:
            yield done.pop(wanted)
            wanted += 1
