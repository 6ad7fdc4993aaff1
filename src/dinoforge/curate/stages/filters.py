"""What is left out for what it is, and for where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dinoforge.base.errors import ConfigError
from dinoforge.base.files import sha256
from dinoforge.curate.filters import STAGE, FilterConfig, filtered, listed
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped


class FilterSettings(FilterConfig):
    """What a picture must have, and where it must not come from."""

    blocked: str | None = Field(default=None)
    """A text file of domains and addresses, one a line; images whose id is an address on it are dropped."""
    hashes: str | None = Field(default=None)
    """A text file of SHA-256 keys, one a line; files that have one of them are dropped."""


def _run(state: State, config: FilterSettings) -> Result:
    pool, rows = state.pool, state.alive
    reason = np.full(len(pool), "", dtype="<U24")
    looks = filtered(pool.measured(rows), rows, config=config)
    reason[looks.row] = looks.reason
    if config.hashes is not None:
        known = {line.lower() for line in _lines(config.hashes, "hashes")}
        reason[rows[np.isin(pool.sha256[rows], list(known))]] = "hash on a list"
    if config.blocked is not None:
        names = pool.source.columns["id"][rows].astype(np.str_)
        if not (np.char.find(names, "://") > 0).any():
            raise ConfigError(f"filters.blocked={config.blocked} has no effect: no id of the pool is an address.")
        reason[rows[listed(names, _lines(config.blocked, "blocked"))]] = "address on a list"
    gone = rows[reason[rows] != ""]
    return Result(Dropped.alone(gone, reason[gone], stage=STAGE))


def _lines(path: str, name: str) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"filters.{name}={path} cannot be read: {str(error).splitlines()[0]}") from None


def _files(settings: Any) -> dict[str, str]:
    """Keys of the lists that are read."""
    found = {}
    for name in ("blocked", "hashes"):
        path = getattr(settings.filters, name)
        if path is not None:
            if not Path(path).is_file():
                raise ConfigError(f"filters.{name}={path} does not exist.")
            found[name] = sha256(Path(path))
    return found


FILTERS = Stage(
    about="pictures that are too small, too long, flat, blurred, noise or pages of text; files and addresses on lists",
    run=_run,
    config=FilterSettings,
    files=_files,
)
