"""Near copies as pairs: among the images of the pool, and between these and the evaluation images.

Pairs are settled part after part; each part lies on the disk when it is done.

Axes: P pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoforge.base.config import fingerprint, science
from dinoforge.base.log import progress, say
from dinoforge.curate.components import merged
from dinoforge.curate.images import Images, read_shard, write_shard
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.copies import NAME
from dinoforge.features.pairs import (
    Candidates,
    LayoutConfig,
    Pairs,
    centre_of,
    cross_candidates,
    joined,
    self_candidates,
    settled,
)

PART = 200_000
"""Candidates of a part: every one takes all its pictures apart again, so fewer parts are less work."""
_VERSION = 2
"""Of the comparison: another one settles all candidates again."""


def _run(state: State, config: LayoutConfig) -> Result:
    """Rows of pairs are those of the pool, and behind them those of the evaluation images."""
    pool, rows = state.pool, state.alive
    within = self_candidates(pool.descriptors[rows], config=config)
    found = [_settled(within, pool.thumbnails[rows], "pool", state, config)]
    pairs = [Pairs(rows[found[0].left], rows[found[0].right], found[0].similarity)]
    recall = within.recall
    if state.keep_out is not None:
        asked = state.keep_out.whole
        across = cross_candidates(
            pool.descriptors[rows], state.keep_out.descriptors[asked],
            centre=centre_of(pool.descriptors[rows]), config=config,
        )  # fmt: skip
        shifted = Candidates(across.left, across.right + len(rows), across.flip, across.recall)
        both = np.concatenate([pool.thumbnails[rows], state.keep_out.thumbnails[asked]])
        cross = _settled(shifted, both, "keep_out", state, config)
        pairs.append(Pairs(rows[cross.left], asked[cross.right - len(rows)] + len(pool), cross.similarity))
        pairs.append(_equal(pool, rows, state.keep_out, asked))
        recall = min(recall, across.recall)
    every = merged(pairs)
    arrays = {"left": every.left, "right": every.right, "similarity": every.similarity}
    nothing = Dropped.alone(np.zeros(0, np.int64), np.zeros(0, "<U1"), stage="pairs")
    facts = {
        "descriptor": f"{NAME}: layout of colours and edges, compared in detail; needs no weights",
        "pairs": len(every), "looked_at": len(within), "recall": recall,
    }  # fmt: skip
    return Result(nothing, arrays, facts)


def _settled(candidates: Candidates, thumbnails: np.ndarray, name: str, state: State, config: LayoutConfig) -> Pairs:
    """The near copies among the candidates. Parts that an earlier start settled are taken over."""
    order = np.lexsort((candidates.right, candidates.left))
    candidates = Candidates(candidates.left[order], candidates.right[order], candidates.flip[order])
    keep_out = state.keep_out.fingerprint if state.keep_out is not None and name == "keep_out" else None
    made = fingerprint([_VERSION, science(config), state.pool.fingerprint, keep_out, state.alive.tolist(), len(candidates), PART])
    found = []
    with progress(f"compare {name}", len(candidates), unit="pairs") as tick:
        for start in range(0, len(candidates), PART):
            some = candidates.part(slice(start, start + PART))
            mark = f"{made} {start}"
            file = state.parts / f"{name}-{start:012}.npz"
            held = read_shard(file)
            if held is None or str(held["mark"]) != mark:
                pairs = settled(some, thumbnails, config=config)
                held = {
                    "mark": np.asarray(mark), "left": pairs.left, "right": pairs.right, "similarity": pairs.similarity
                }  # fmt: skip
                write_shard(file, held)
            else:
                say(f"{file} is taken over.")
            found.append(Pairs(held["left"], held["right"], held["similarity"]))
            tick(start + len(some))
    return merged(found)


def _equal(pool: Images, rows: np.ndarray, keep_out: Images, asked: np.ndarray) -> Pairs:
    """Files with the same bytes, flat pictures too, which have no layout to compare."""
    order = asked[np.argsort(keep_out.sha256[asked], kind="stable")]
    known = keep_out.sha256[order]
    at = np.minimum(np.searchsorted(known, pool.sha256[rows]), max(len(known) - 1, 0))
    hit = known[at] == pool.sha256[rows] if len(known) else np.zeros(len(rows), bool)
    return joined(rows[hit], order[at[hit]] + len(pool), np.ones(int(hit.sum()), np.float32))


def pairs_found(state: State) -> Pairs:
    """What this stage found."""
    arrays = state.results["pairs"].arrays
    return Pairs(arrays["left"], arrays["right"], arrays["similarity"])


def _depends(state: State) -> Any:
    return None if state.keep_out is None else state.keep_out.fingerprint


PAIRS = Stage(about="near copies are looked for", run=_run, config=LayoutConfig, depends=_depends, version=_VERSION)
