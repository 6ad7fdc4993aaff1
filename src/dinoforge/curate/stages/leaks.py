"""Near copies of evaluation images go."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.curate.leaks import leaks
from dinoforge.curate.stages.pairs import pairs_found, threshold_of
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.pairs import LAYOUT_LEAK, LEAK


class LeaksConfig(Config):
    """When an image of the pool is a copy of one in ``keep_out``."""

    threshold: float | None = Field(default=None, ge=0, lt=1)
    """Similarity above which it is, less than among the pool's own, so that more goes. Null: 0.89 of the descriptor that
    needs no weights, cosine 0.45 of a learnt one."""
    direct_only: bool = False
    """Take only what is itself like an evaluation image, not all that is linked to one by other images of the pool."""


def _run(state: State, config: LeaksConfig) -> Result:
    assert state.keep_out is not None
    pairs = pairs_found(state).above(threshold_of(state, config.threshold, LAYOUT_LEAK, LEAK))
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
