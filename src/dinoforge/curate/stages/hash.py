"""Of near-exact copies, found by their hashes, one stays."""

from __future__ import annotations

from typing import Literal

from dinoforge.curate.near_exact import HashConfig, hash_copies
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.mapped import Picked


class HashSettings(HashConfig):
    """When two pictures are one by their hashes, and which one stays."""

    keep: Literal["largest", "first"] = "largest"
    """Of a group the picture of most pixels stays, of equally large ones the first; or always the first."""


def _run(state: State, config: HashSettings) -> Result:
    pool, rows = state.pool, state.alive
    size = pool.pixels[rows] if config.keep == "largest" else None
    found = hash_copies(Picked(pool.descriptors, rows), size=size, config=config)
    return Result(Dropped(rows[found.row], found.reason, rows[found.against], found.similarity, found.stage))


HASH = Stage(
    about="near-exact copies: recompressed or resized a little, found by hashes", run=_run, config=HashSettings
)
