"""Paths and addresses as they are given: text or a path, the home folder in them."""

from __future__ import annotations

import os
import reprlib
from pathlib import Path

from dinoforge.base.errors import ConfigError


def at_home(path: str | Path) -> Path:
    """A path with ``~`` and ``~user`` replaced.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path} names the home of a user who is not known here.") from None


def as_text(value: object, name: str) -> str:
    """A path or an address as text.

    Args:
        name: Of the setting that it is the value of.

    Raises:
        ConfigError: It is neither text nor a path.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ConfigError(f"{name} takes text or a path; got {' '.join(reprlib.repr(value).split())}.")
    return text
