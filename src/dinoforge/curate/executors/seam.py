"""What a curation's shards run on: the seam between the stages and every engine that can call a function somewhere else.

An engine is a standard ``concurrent.futures.Executor`` and what is known of it. A new one is a file and a line in ``table.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dinoforge.base.errors import UserError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was said of an engine."""

    folder: Path
    """Of this run alone, that all machines see; for what an engine must write."""
    workers: int | None = None
    """Shards under way at once; None leaves it to the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An engine that takes shards."""

    executor: Executor
    at_once: int
    """Shards that are under way together."""
    processes: int = 1
    """That all shards together may start on this machine."""
    here: bool = False
    """Whether it is this process itself."""
    local: bool = False
    """Whether it is this machine: then this process does what is one shard in all, and keeps a GPU that is here."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A shard that came to nothing."""

    why: str
    blame: bool = True
    """Whether it may be the shard's own fault; if not (memory, a disk), it is never given up, the run ends instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A way of running shards."""

    about: str
    open: Callable[[Wanted], AbstractContextManager[Opened]]
    """Raises a ``UserError`` of one line, soon, where it cannot be had."""
    takes: frozenset[str] = frozenset()
    """Settings that have an effect: workers."""
    explain: Callable[[BaseException], Lost | UserError]
    """What it means that a shard's future failed: its worker is lost, or no shard can go on."""
