"""Shards in processes of this machine: pools of one process each, so that a process that dies takes one shard along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import LifoQueue
from threading import Thread
from types import ModuleType
from typing import Any

from dinoforge.base.errors import RunError, UserError
from dinoforge.base.hardware import cores
from dinoforge.curate.executors.seam import Engine, Lost, Opened, Wanted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Process(SpawnProcess):
    """Begins without the user's script, which would otherwise run a second time unless it guards itself."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - the library's name
        main, masked = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)


class _Spawn(SpawnContext):
    Process = _Process


class Processes(Executor):
    """Standard pools of one process; one that broke is replaced. Takes as many calls at once as there are processes."""

    def __init__(self, count: int) -> None:
        self._free = LifoQueue["ProcessPoolExecutor | None"]()  # those that were begun first
        for _ in range(count):
            self._free.put(None)  # begun when it is needed
        self._leash, self._ours = multiprocessing.Pipe(duplex=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **words: Any) -> Future[Any]:
        """Call in a process that is free."""
        pool = self._free.get()
        try:
            pool = pool or ProcessPoolExecutor(1, mp_context=_Spawn(), initializer=_begin, initargs=(self._leash,))
            future = pool.submit(fn, *args, **words)
        except BrokenProcessPool:  # it died while it had nothing to do
            self._free.put(None)
            return self.submit(fn, *args, **words)
        except BaseException:  # no process, no memory: the place is free for another try
            self._free.put(None)
            raise
        future.add_done_callback(lambda done: self._back(pool, done))
        return future

    def _back(self, pool: ProcessPoolExecutor, done: Future[Any]) -> None:
        broken = done.cancelled() or isinstance(done.exception(), BrokenProcessPool)
        # A broken pool ends by itself. It must not be shut down here: since Python 3.12.1 it holds its lock as it calls this.
        self._free.put(None if broken else pool)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all processes now, whatever they are at: shards are whole or absent."""
        self._ours.close()
        self._leash.close()


def _begin(leash: Connection) -> None:
    """A process leaves signals to the main one, and ends with it, or when that lets go of the leash."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([leash, parent.sentinel])
    os._exit(0)


@contextmanager
def _opened(wanted: Wanted) -> Iterator[Opened]:
    count = wanted.workers or cores()
    pool = Processes(count)
    try:
        yield Opened(executor=pool, at_once=count, processes=count, local=True)
    finally:
        pool.shutdown()


def explain(error: BaseException) -> Lost | UserError:
    """What an error of a pool's means."""
    if isinstance(error, BrokenProcessPool):
        return Lost("its process died")
    if isinstance(error, OSError):
        return RunError(
            f"engine=processes: a process cannot be started: {error.strerror or error}. Take fewer workers."
        )
    return Lost(f"{type(error).__name__}: {error}")


PROCESSES = Engine(about="processes of this machine", open=_opened, takes=frozenset({"workers"}), explain=explain)
