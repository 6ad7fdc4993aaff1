"""What is left out for what it is, and where its owner refuses."""

from __future__ import annotations

import numpy as np

from dinoforge.curate.filters import STAGE, FilterConfig, filtered, refused
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.mapped import blocks


class SourceConfig(FilterConfig):
    """What a picture must have, and what its owner must not have said."""

    noai: bool = True
    """Drop images whose owner refuses that machines learn from them: noai or noimageai in a column x_robots_tag, robots or
    noai of the source (X-Robots-Tag, robots meta), as crawlers keep it. Sources without such a column lose nothing."""


def _run(state: State, config: SourceConfig) -> Result:
    pool, rows = state.pool, state.alive
    reason = np.full(len(pool), "", dtype="<U24")
    for some in blocks(rows):
        looks = filtered(pool.measured(some), some, config=config)
        reason[looks.row] = looks.reason
    marks = pool.source.columns.get("robots")
    if config.noai and marks is not None:
        reason[rows[refused(marks[rows])]] = "owner refuses (noai)"
    gone = rows[reason[rows] != ""]
    return Result(Dropped.alone(gone, reason[gone], stage=STAGE), facts={"marks": marks is not None})


FILTERS = Stage(
    about="pictures that are too small, too long, flat, blurred, noise or pages of text; those whose owner refuses",
    run=_run,
    config=SourceConfig,
    depends=lambda state, _config: state.pool.column_fingerprint("robots"),
)
