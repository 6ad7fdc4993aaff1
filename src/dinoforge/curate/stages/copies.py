"""Of near copies, linked to groups, one stays."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.curate.components import deduplicated, largest
from dinoforge.curate.stages.pairs import pairs_found, threshold_of
from dinoforge.curate.state import Result, Stage, State
from dinoforge.features.pairs import DUPLICATE, LAYOUT_DUPLICATE, Pairs, components


class CopiesConfig(Config):
    """When two images of the pool are copies, and which one stays."""

    threshold: float | None = Field(default=None, ge=0, lt=1)
    """Similarity above which they are. Null: 0.925 of the descriptor that needs no weights, cosine 0.6 of a learnt one."""
    keep: Literal["largest", "first"] = "largest"
    """Of a group the picture of most pixels stays, of equally large ones the first; or always the first."""


def _run(state: State, config: CopiesConfig) -> Result:
    pool = state.pool
    found = pairs_found(state).above(threshold_of(state, config.threshold, LAYOUT_DUPLICATE, DUPLICATE))
    inside = (found.right < len(pool)) & np.isin(found.left, state.alive) & np.isin(found.right, state.alive)
    pairs = Pairs(found.left[inside], found.right[inside], found.similarity[inside])
    size = pool.pixels if config.keep == "largest" else None
    dropped = deduplicated(pairs, images=len(pool), size=size)
    groups = components(pairs, images=len(pool))
    ids = pool.source.columns["id"]
    facts = {
        "groups": len(np.unique(groups[dropped.row])),
        "largest": [{"id": str(ids[row]), "images": count} for row, count in largest(groups, count=5)],
    }
    return Result(dropped, facts=facts)


COPIES = Stage(
    about="near copies: compressed, resized, recoloured, cropped or mirrored", run=_run, config=CopiesConfig,
    needs=("pairs",),
)  # fmt: skip
