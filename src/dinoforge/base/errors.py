"""Errors by cause, and the one form in which a user reads them: what, which value, what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. Shown as one plain line, exit status 2, never with a traceback."""

    rank: int | None = None
    """Of several processes that run together, the one it happened to, once all of them know of it."""


class ConfigError(UserError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(UserError, ValueError):
    """A data source is missing, empty or not what it says it is."""


class WeightsError(UserError, ValueError):
    """A weights file is unsafe, damaged, or belongs to another architecture."""


class RunError(UserError, RuntimeError):
    """A run folder is in use, holds another run, or cannot be written."""


class RankLost(UserError, RuntimeError):
    """Another of the processes that run together is gone."""


class Interrupted(BaseException):
    """Stopped on request; what was done is kept, and the same command goes on. Exit status 75.

    No ``Exception``, as ``KeyboardInterrupt`` is none: it may come while a picture is decoded, which would be called damaged.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        # State of its own: of exceptions without any, Python 3.11 changes the text where they come inside a codec.
        self.text = text


class SentinelStop(Exception):
    """The run was not healthy and was stopped. Exit status 3."""


def closest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` where a known name is near, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is in no table: ``Unknown recipe 'vit_smal'. Did you mean …? Known: …``."""
    names = sorted(known)
    if not names:
        return ConfigError(f"Unknown {kind} {name!r}: no {kind} is taken here.")
    return ConfigError(f"Unknown {kind} {name!r}.{closest(name, names)} Known: {', '.join(names)}.")
