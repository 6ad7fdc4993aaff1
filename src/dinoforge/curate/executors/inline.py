"""Shards one after another in this process: for a debugger, and for what is too small to share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from dinoforge.curate.executors.seam import Engine, Lost, Opened, Wanted


class Inline(Executor):
    """Calls at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **words: Any) -> Future[Any]:
        """Call, and give what came of it."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **words))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def opened(wanted: Wanted) -> Iterator[Opened]:
    """This process; ``workers`` are those that one shard may start to read and compare images."""
    yield Opened(executor=Inline(), at_once=1, processes=wanted.workers or 1, here=True, local=True)


INLINE = Engine(
    about="this process alone, for a debugger: a fault in it ends the run", open=opened,
    explain=lambda error: Lost(f"{type(error).__name__}: {error}"),
)  # fmt: skip
