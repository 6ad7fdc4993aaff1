"""Paths and addresses as programs hand them over: text, or a path."""

from __future__ import annotations

import os
import reprlib

from dinoforge.base.errors import ConfigError


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
