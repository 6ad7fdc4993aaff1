"""What verbs that read many images share: how many processes do it."""

from __future__ import annotations

from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import cores
from dinoforge.verbs.looking import whole


def worker_count(workers: str | int | None) -> int:
    """How many processes read; all cores where nothing is said.

    Raises:
        ConfigError: No whole number above 0.
    """
    if workers is None:
        return cores()
    count = whole("workers", workers)
    if not 1 <= count <= 1024:
        raise ConfigError(f"workers must be 1 to 1024; got {count}.")
    return count
