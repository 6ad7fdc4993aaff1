"""Of files with the same bytes, the first stays."""

from __future__ import annotations

from dinoforge.base.config import Config
from dinoforge.curate.exact import copied
from dinoforge.curate.state import Result, Stage, State


class ExactConfig(Config):
    """Nothing can be set."""


def _run(state: State, config: ExactConfig) -> Result:
    return Result(copied(state.pool.keys(state.alive), state.alive))


EXACT = Stage(about="files with the same bytes as an earlier one", run=_run, config=ExactConfig)
