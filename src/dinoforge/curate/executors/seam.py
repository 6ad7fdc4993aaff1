"""What a curation's shards run on: the seam between the stages and every engine that can call a function somewhere else.

An engine is a standard ``concurrent.futures.Executor`` and what is known of it. A new one is a file and a line in ``table.py``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dinoforge.base.errors import ConfigError, RunError, UserError

_REACHED = 5.0
"""Seconds in which whoever listens at an address answers."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was said of an engine."""

    folder: Path
    """Of this run alone, that all machines see; for what an engine must write."""
    workers: int | None = None
    """Shards under way at once; None leaves it to the engine."""
    address: str | None = None
    gpus: float | None = None
    """Of each task that runs a network."""


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
    networks: Executor | None = None
    """Takes the shards that run a network; None for the same."""
    networks_at_once: int | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A shard that came to nothing."""

    why: str
    blame: bool = True
    """Whether it may be the shard's own fault; if not (memory, time, a node), it is never given up, the run ends instead."""
    node: bool = False
    """Whether a whole machine was lost, with all that it had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A way of running shards."""

    about: str
    open: Callable[[Wanted], AbstractContextManager[Opened]]
    """Raises a ``UserError`` of one line, soon, where it cannot be had."""
    takes: frozenset[str] = frozenset()
    """Settings that have an effect: address, gpus_per_task, workers."""
    explain: Callable[[BaseException], Lost | UserError]
    """What it means that a shard's future failed: its worker is lost, or no shard can go on."""


def need(module: str, extra: str) -> None:
    """See that a library is there.

    Raises:
        ConfigError: It is not.
    """
    if find_spec(module) is None:
        raise ConfigError(f"engine={extra} needs a library that is not installed: pip install 'dinoforge[{extra}]'.")


def place_of(address: str, *, port: int) -> tuple[str, int]:
    """Host and port of ``[scheme://]host[:port]``.

    Raises:
        ConfigError: It is something else.
    """
    rest = address.partition("://")[2] or address
    host, colon, number = rest.rpartition(":")
    if not colon:
        host, number = rest, str(port)
    if not host or not number.isdigit() or not 0 < int(number) < 65_536 or "/" in rest:
        raise ConfigError(f"address takes HOST or HOST:PORT; got {address!r}.")
    return host.strip("[]"), int(number)


def whole(address: str, *, port: int) -> str:
    """An address with its port.

    Raises:
        ConfigError: It is none.
    """
    host, number = place_of(address, port=port)
    scheme, mark, _ = address.rpartition("://")
    return f"{scheme}{mark}[{host}]:{number}" if ":" in host else f"{scheme}{mark}{host}:{number}"


def reached(address: str, *, port: int, hint: str) -> None:
    """See that somebody listens.

    Raises:
        ConfigError: It is no address.
        RunError: Nobody answers.
    """
    host, number = place_of(address, port=port)
    try:
        socket.create_connection((host, number), timeout=_REACHED).close()
    except OSError as error:
        why = error.strerror or str(error) or "no answer"
        raise RunError(f"address={address} cannot be reached: {why}. {hint}") from None


def beyond_here(address: str, *, port: int) -> bool:
    """Whether an address is one that other machines may reach too: any but the loopback's."""
    host, _ = place_of(address, port=port)
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
