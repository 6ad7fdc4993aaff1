"""Being stopped on request, by work that is kept as it goes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from dinoforge.base.errors import Interrupted


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """Turns SIGTERM and SIGINT into exit status 75, at once: what is done so far is on the disk.

    Args:
        kept: What is not lost, in words: ``what was scanned so far is kept``.
    """

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(f"{signal.Signals(number).name} received; {kept}. Run the same command to go on.")

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread: whoever owns it handles signals
        pass
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
