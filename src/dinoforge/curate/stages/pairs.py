"""Near copies as pairs: among the images of the pool, and between these and the evaluation images.

How candidates are sought depends on how many images there are (``searched``); what is found does not. They are settled part
after part; each part lies on the disk when it is done.

Axes: P pairs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.config import fingerprint, science
from dinoforge.base.errors import RunError
from dinoforge.base.log import say
from dinoforge.curate.candidates import read_candidates, write_candidates
from dinoforge.curate.components import merged
from dinoforge.curate.executors.run import Lost, Shard
from dinoforge.curate.executors.task import Held, Kept
from dinoforge.curate.images import Images, read_shard, write_shard, written
from dinoforge.curate.proposed import layout_by_tasks, layout_in_memory, learnt_by_tasks, learnt_in_memory
from dinoforge.curate.searched import QUERIES, Searches, share_of
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.features.compressed import Rows
from dinoforge.features.copies import NAME
from dinoforge.features.learnt import Measure, fit_measure
from dinoforge.features.mapped import Stacked, blocks, mapped
from dinoforge.features.pairs import LayoutConfig, Pairs, joined, settled

PART = 200_000
"""Candidates of a part: every one takes all its pictures apart again, so fewer parts are less work."""
_VERSION = 2
"""Of the comparison: another one settles all candidates again."""
_PARTS = 2
"""Of what a part holds: rows of the pool, and behind them those of the evaluation images."""


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


def _searches(state: State, config: PairsConfig) -> Searches | None:
    """Searches by tasks; None where this process searches by itself, see ``searched``."""
    asked = 0 if state.keep_out is None else len(state.keep_out.whole)
    share = share_of(len(state.alive), asked)
    if share is None:
        return None
    mark = fingerprint(
        [_VERSION, state.pool.fingerprint, state.alive.tolist(), _depends(state, config), config.whiten, share]
    )
    return Searches.begun(state.crew, state.parts, mark, config, share)


def _by_network(state: State, config: PairsConfig) -> Way:
    """By cosines of learnt descriptors."""
    assert state.descriptions is not None
    pool, rows, known = state.pool, state.alive, state.descriptions
    vectors = known.dense(pool, rows)
    others = None if state.background is None else known.dense(state.background, state.background.whole)
    asked = None if state.keep_out is None else known.dense(state.keep_out, state.keep_out.whole)
    measure = fit_measure(vectors, whiten=config.whiten, background=others)
    searches = _searches(state, config)
    if searches is None:
        found = learnt_in_memory(vectors, asked, measure, config)
    else:
        found = learnt_by_tasks(vectors, asked, measure, searches)
    within, recall = found[0]
    pairs = [Pairs(rows[within.left], rows[within.right], within.similarity)]
    for across, met in found[1:]:
        assert state.keep_out is not None
        pairs.append(joined(rows[across.left], state.keep_out.whole[across.right] + len(pool), across.similarity))
        recall = min(recall, met)
    facts = {
        "descriptor": f"{known.how.name}, learnt, width {vectors.shape[1]}", "learnt": True,
        "whitened": config.whiten, "normalised": others is not None,
    }  # fmt: skip
    return pairs, recall, facts, {f"measure.{name}": array for name, array in measure.arrays().items()}


def _by_layout(state: State, config: PairsConfig) -> Way:
    """By the descriptor that needs no weights."""
    searches = _searches(state, config)
    proposed = layout_in_memory(state, config) if searches is None else layout_by_tasks(state, searches)
    pairs, looked_at, recalls = [], [], []
    for name, (found, recall) in proposed.items():
        folder = state.parts.absolute() / f"{name}.candidates"
        looked_at.append(write_candidates(folder, found, each=QUERIES if searches is None else searches.share))
        pairs.append(_settled(folder, looked_at[-1], name, state, config))
        recalls.append(recall)
        shutil.rmtree(folder, ignore_errors=True)
    about = f"{NAME}: layout of colours and edges, compared in detail; needs no weights"
    return pairs, min(recalls), {"descriptor": about, "looked_at": looked_at[0]}, {}


def _settled(folder: Path, count: int, name: str, state: State, config: LayoutConfig) -> Pairs:
    """The near copies among the candidates. Parts that an earlier start settled are taken over."""
    keep_out = state.keep_out.fingerprint if state.keep_out is not None and name == "keep_out" else None
    made = fingerprint(
        [_VERSION, _PARTS, science(config), state.pool.fingerprint, keep_out, state.alive.tolist(), count, PART]
    )
    parts, kept = state.parts.absolute(), _thumbnails(state, both=name == "keep_out")
    jobs = [
        _Comparing(
            kept, folder, start, min(start + PART, count), config, parts / f"{name}-{start:012}.npz", f"{made} {start}"
        )
        for start in range(0, count, PART)
    ]
    found = [_there(job) for job in jobs]
    for job, part in zip(jobs, found, strict=True):
        if part is not None:
            say(f"{state.parts / job.file.name} is taken over.")
    places = [place for place, part in enumerate(found) if part is None]
    shards = [
        Shard(jobs[place].file.stem, jobs[place].stop - jobs[place].start, jobs[place], jobs[place].file)
        for place in places
    ]
    for number, lost in state.crew.each(_compare, shards, title=f"compare {name}", total=count, unit="pairs"):
        if isinstance(lost, Lost):
            raise RunError(
                f"pairs {shards[number].name} cannot be compared: {lost.why}. Is there memory left? Take fewer workers."
            )
        found[places[number]] = _pairs(written(jobs[places[number]].file, jobs[places[number]].mark))
    return merged([part for part in found if part is not None])


def _thumbnails(state: State, *, both: bool) -> Held[Rows]:
    """Those of the pool; on request, behind them those of the evaluation images."""
    images = [state.pool, *([state.keep_out] if both and state.keep_out is not None else [])]
    there = _Thumbnails(tuple(one.file("thumbnails") for one in images), " ".join(one.fingerprint for one in images))
    return Kept[Rows](there(), lambda: there)


@dataclass(frozen=True, slots=True)
class _Thumbnails:
    """Those in files, one behind the other."""

    files: tuple[Path, ...]
    made: str
    """Of what: a process that outlives this run knows them apart from those of another pool in the same place."""

    def __call__(self) -> Rows:
        return np.asarray(mapped(self.files[0])) if len(self.files) == 1 else Stacked(self.files)


@dataclass(frozen=True, slots=True)
class _Comparing:
    """A part to settle."""

    thumbnails: Held[Rows]
    candidates: Path
    start: int
    stop: int
    config: LayoutConfig
    file: Path
    mark: str


def _there(job: _Comparing) -> Pairs | None:
    held = read_shard(job.file)
    return None if held is None or str(held["mark"]) != job.mark else _pairs(held)


def _pairs(held: Mapping[str, np.ndarray]) -> Pairs:
    return Pairs(held["left"], held["right"], held["similarity"])


def _compare(job: _Comparing, processes: int) -> None:
    """Settle a part and write its pairs, unless a process that died then had written them."""
    if _there(job) is not None:
        return
    candidates = read_candidates(job.candidates, job.start, job.stop)
    pairs = settled(candidates, job.thumbnails.get(), config=job.config, workers=processes)
    arrays = {"left": pairs.left, "right": pairs.right, "similarity": pairs.similarity}
    write_shard(job.file, {"mark": np.asarray(job.mark), **arrays})


def _equal(pool: Images, rows: np.ndarray, keep_out: Images, asked: np.ndarray) -> Pairs:
    """Files with the same bytes, flat pictures too, which have no layout to compare."""
    keys = keep_out.sha256[asked].astype("S64")
    order = np.argsort(keys, kind="stable")
    asked, known = asked[order], keys[order]
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for some in blocks(rows) if len(known) else ():
        wanted = pool.sha256[some].astype("S64")
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        hit = known[at] == wanted
        left.append(some[hit])
        right.append(asked[at[hit]] + len(pool))
    both = np.concatenate(left), np.concatenate(right)
    return joined(*both, np.ones(len(both[0]), np.float32))


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


def _tidy(parts: Path) -> None:
    """Remove searches and candidates, those of a pool that was larger too. Until now a killed start could go on from them."""
    for pattern in ("search-*", "*.candidates", ".*.candidates.*"):
        for folder in parts.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def _depends(state: State, _config: PairsConfig) -> Any:
    """The evaluation images, and what describes."""
    return [
        state.keep_out and state.keep_out.fingerprint,
        state.descriptions and state.descriptions.how.fingerprint,
        state.background and state.background.fingerprint,
    ]


PAIRS = Stage(
    about="near copies are looked for", run=_run, config=PairsConfig, depends=_depends, tidy=_tidy, version=_VERSION,
)  # fmt: skip
