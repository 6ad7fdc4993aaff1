"""The home folder in paths."""

from __future__ import annotations

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
