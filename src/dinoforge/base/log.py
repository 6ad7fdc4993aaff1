"""What a person sees while a verb runs: plain lines and a progress bar on standard error, never on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dinoforge.base import dist

T = TypeVar("T")

_speaker = ContextVar("speaker", default="")

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """Of several that work in turns, the one whose lines those are: they begin with its name."""
    before = _speaker.set(f"{name}: ")
    try:
        yield
    finally:
        _speaker.reset(before)


def say(text: str) -> None:
    """One line for the person at the terminal; of several ranks only the first one speaks."""
    if dist.rank() == 0:
        print(_speaker.get() + text, file=sys.stderr, flush=True)


@runtime_checkable
class Ticker(Protocol):
    """What a progress display understands."""

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` of the total is finished; ``note`` is shown beside it."""


@contextmanager
def progress(title: str, total: int, *, unit: str = "images", start: int = 0, shows: bool = True) -> Iterator[Ticker]:
    """A bar with rate and time left on a terminal, a line every ten seconds elsewhere; nothing on ranks but the first.

    Args:
        shows: Of several that work in turns, whether it is the one that shows how far all are.
    """
    if dist.rank() or not shows:
        yield lambda _done, _note="": None
        return
    began = time.monotonic()

    def rate(done: int) -> float:
        return (done - start) / max(time.monotonic() - began, 1e-9)

    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=start, rate="", note="")
            yield lambda done, note="": bar.update(task, completed=done, rate=f"{rate(done):.0f} {unit}/s", note=note)
        return

    last = began

    def line(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        left = (total - done) / max(rate(done), 1e-9)
        say(f"{title}: {done:,}/{total:,} {unit}, {rate(done):.1f}/s, {clock(left)} left{'  ' + note if note else ''}")

    yield line


def track(items: Iterable[T], title: str, total: int, *, unit: str = "images") -> Iterator[T]:
    """Yield ``items`` while showing how many are done."""
    with progress(title, total, unit=unit) as tick:
        for done, item in enumerate(items, start=1):
            yield item
            tick(done)


def clock(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``; of less than 10 s two digits are told."""
    whole = round(seconds)
    if 0 < seconds < 9.95:
        return f"{seconds:.2g} s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
