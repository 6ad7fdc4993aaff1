"""Near copies of evaluation images go."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.curate.leaks import leaks
from dinoforge.curate.stages.pairs import pairs_found
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.pairs import LAYOUT_LEAK


class LeaksConfig(Config):
    """When an image of the pool is a copy of one in ``keep_out``."""

    threshold: float = Field(default=LAYOUT_LEAK, ge=0, lt=1)
    """Aligned similarity above which it is: less than among the pool's own, so that more goes (the paper has 0.45 and 0.6)."""
    direct_only: bool = False
    """Take only what is itself like an evaluation image, not all that is linked to one by other images of the pool."""


def _run(state: State, config: LeaksConfig) -> Result:
    assert state.keep_out is not None
    pairs = pairs_found(state).above(config.threshold)
    # Images that went as near copies still link: the one that stays for them may be less like the evaluation image.
    found = leaks(pairs, pool=len(state.pool), evaluation=len(state.keep_out), direct_only=config.direct_only)
    here = np.isin(found.row, state.alive)
    dropped = Dropped(found.row[here], found.reason[here], found.against[here], found.similarity[here], found.stage)
    return Result(dropped, facts={"keep_out": len(state.keep_out.whole)})


def _absent(settings: Any) -> str | None:
    return "keep_out= names no evaluation images" if settings.keep_out is None else None


LEAKS = Stage(
    about="near copies of evaluation images", run=_run, config=LeaksConfig, needs=("pairs",), absent=_absent,
)  # fmt: skip
