"""Near copies as pairs: among the images of the pool, and between these and the evaluation images.

Pairs are settled part after part; each part lies on the disk when it is done.

Axes: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.config import fingerprint, science
from dinoforge.base.errors import RunError
from dinoforge.base.log import say
from dinoforge.curate.components import merged
from dinoforge.curate.executors.run import Lost, Shard
from dinoforge.curate.executors.task import Held
from dinoforge.curate.images import Images, read_shard, write_shard, written
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.copies import NAME
from dinoforge.features.learnt import Measure, fit_measure, learnt_across, learnt_pairs
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


class PairsConfig(LayoutConfig):
    """How near copies are found."""

    whiten: bool = False
    """Whether learnt descriptors are whitened by the principal directions of the pool's, as published for SSCD."""


def _run(state: State, config: PairsConfig) -> Result:
    """Rows of pairs are those of the pool, and behind them those of the evaluation images."""
    pairs, recall, more, arrays = (_by_layout if state.descriptions is None else _by_network)(state, config)
    if state.keep_out is not None:
        pairs.append(_equal(state.pool, state.alive, state.keep_out, state.keep_out.whole))
    every = merged(pairs)
    arrays |= {"left": every.left, "right": every.right, "similarity": every.similarity}
    nothing = Dropped.alone(np.zeros(0, np.int64), np.zeros(0, "<U1"), stage="pairs")
    return Result(nothing, arrays, {**more, "pairs": len(every), "recall": recall})


Way = tuple[list[Pairs], float, dict[str, Any], dict[str, np.ndarray]]
"""Pairs, the lowest recall of a search, facts, and arrays that others need."""


def _by_network(state: State, config: PairsConfig) -> Way:
    """By cosines of learnt descriptors."""
    assert state.descriptions is not None
    pool, rows, known = state.pool, state.alive, state.descriptions
    vectors = known.dense(pool, rows)
    others = None if state.background is None else known.dense(state.background, state.background.whole)
    measure = fit_measure(vectors, whiten=config.whiten, background=others)
    count = config.neighbours
    within, recall = learnt_pairs(vectors, measure, above=config.candidate, config=config.search, count=count)
    pairs = [Pairs(rows[within.left], rows[within.right], within.similarity)]
    if state.keep_out is not None:
        asked = state.keep_out.whole
        across = learnt_across(
            vectors,
            known.dense(state.keep_out, asked),
            measure,
            above=config.candidate,
            config=config.search,
            count=count,
        )
        pairs.append(joined(rows[across.left], asked[across.right] + len(pool), across.similarity))
        recall = min(recall, across.recall)
    facts = {
        "descriptor": f"{known.how.name}, learnt, width {vectors.shape[1]}", "learnt": True,
        "whitened": config.whiten, "normalised": others is not None,
    }  # fmt: skip
    return pairs, recall, facts, {f"measure.{name}": array for name, array in measure.arrays().items()}


def _by_layout(state: State, config: PairsConfig) -> Way:
    """By the descriptor that needs no weights."""
    pool, rows = state.pool, state.alive
    within = self_candidates(pool.descriptors[rows], config=config)
    found = [_settled(within, pool.thumbnails[rows], "pool", state, config)]
    pairs = [Pairs(rows[found[0].left], rows[found[0].right], found[0].similarity)]
    recall = within.recall
    if state.keep_out is not None:
        asked = state.keep_out.whole
        centre = centre_of(pool.descriptors[rows])
        own, others = (
            x.astype(np.float32) - centre for x in (pool.descriptors[rows], state.keep_out.descriptors[asked])
        )
        across = cross_candidates(own, others, config=config)
        shifted = Candidates(across.left, across.right + len(rows), across.flip, across.recall)
        both = np.concatenate([pool.thumbnails[rows], state.keep_out.thumbnails[asked]])
        cross = _settled(shifted, both, "keep_out", state, config)
        pairs.append(Pairs(rows[cross.left], asked[cross.right - len(rows)] + len(pool), cross.similarity))
        recall = min(recall, across.recall)
    about = f"{NAME}: layout of colours and edges, compared in detail; needs no weights"
    return pairs, recall, {"descriptor": about, "looked_at": len(within)}, {}


def _settled(candidates: Candidates, thumbnails: np.ndarray, name: str, state: State, config: LayoutConfig) -> Pairs:
    """The near copies among the candidates. Parts that an earlier start settled are taken over."""
    order = np.lexsort((candidates.right, candidates.left))
    candidates = Candidates(candidates.left[order], candidates.right[order], candidates.flip[order])
    keep_out = state.keep_out.fingerprint if state.keep_out is not None and name == "keep_out" else None
    made = fingerprint(
        [_VERSION, science(config), state.pool.fingerprint, keep_out, state.alive.tolist(), len(candidates), PART]
    )
    parts, kept = state.parts.absolute(), state.crew.mapped(thumbnails)
    jobs = [
        _Comparing(kept, candidates.part(slice(start, start + PART)), config, parts / f"{name}-{start:012}.npz",
                   f"{made} {start}")
        for start in range(0, len(candidates), PART)
    ]  # fmt: skip
    found = [_there(job) for job in jobs]
    for job, part in zip(jobs, found, strict=True):
        if part is not None:
            say(f"{state.parts / job.file.name} is taken over.")
    places = [place for place, part in enumerate(found) if part is None]
    shards = [
        Shard(jobs[place].file.stem, len(jobs[place].candidates), jobs[place], jobs[place].file) for place in places
    ]
    for number, lost in state.crew.each(_compare, shards, title=f"compare {name}", total=len(candidates), unit="pairs"):
        if isinstance(lost, Lost):
            raise RunError(
                f"pairs {shards[number].name} cannot be compared: {lost.why}. Is there memory left? Take fewer workers."
            )
        found[places[number]] = _pairs(written(jobs[places[number]].file, jobs[places[number]].mark))
    return merged([part for part in found if part is not None])


@dataclass(frozen=True, slots=True)
class _Comparing:
    """A part to settle."""

    thumbnails: Held[np.ndarray]
    candidates: Candidates
    config: LayoutConfig
    file: Path
    mark: str


def _there(job: _Comparing) -> Pairs | None:
    held = read_shard(job.file)
    return None if held is None or str(held["mark"]) != job.mark else _pairs(held)


def _pairs(held: Mapping[str, np.ndarray]) -> Pairs:
    return Pairs(held["left"], held["right"], held["similarity"])


def _compare(job: _Comparing, processes: int) -> None:
    """Settle a part and write its pairs."""
    pairs = settled(job.candidates, job.thumbnails.get(), config=job.config, workers=processes)
    arrays = {"left": pairs.left, "right": pairs.right, "similarity": pairs.similarity}
    write_shard(job.file, {"mark": np.asarray(job.mark), **arrays})


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


def threshold_of(state: State, given: float | None, layout: float, learnt: float) -> float:
    """What was given, else the one of the two that belongs to the descriptor that found the pairs."""
    if given is not None:
        return given
    return learnt if state.results["pairs"].facts.get("learnt") else layout


def measure_of(state: State) -> Measure | None:
    """How learnt descriptors were compared; None where they were not."""
    if "pairs" not in state.results or not state.results["pairs"].facts.get("learnt"):
        return None
    arrays = state.results["pairs"].arrays
    return Measure.of(
        {name.removeprefix("measure."): held for name, held in arrays.items() if name.startswith("measure.")}
    )


def _depends(state: State, _config: PairsConfig) -> Any:
    """The evaluation images, and what describes."""
    return [
        state.keep_out and state.keep_out.fingerprint,
        state.descriptions and state.descriptions.how.fingerprint,
        state.background and state.background.fingerprint,
    ]


PAIRS = Stage(about="near copies are looked for", run=_run, config=PairsConfig, depends=_depends, version=_VERSION)
