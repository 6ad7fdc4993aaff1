"""What must not be learned from goes, by the filters that are chosen; of some it is only blurred.

Filters that need the pictures judge shard after shard; each shard lies on the disk when it is done.

Axes: n rows of the pool, b boxes of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, create_model

from dinoforge.base.config import Config, fingerprint, science
from dinoforge.base.errors import ConfigError, DataError, WeightsError
from dinoforge.base.log import say
from dinoforge.curate.embeddings import Embedder
from dinoforge.curate.executors.run import Lost, Shard
from dinoforge.curate.executors.task import Held, Kept
from dinoforge.curate.images import SHARD, colours_of, read_shard, write_shard, written
from dinoforge.curate.safety.filter import LONGEST, NEEDS, Asked, Filter, Judged, about
from dinoforge.curate.safety.table import SAFETY
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped
from dinoforge.data.decode import Broken
from dinoforge.data.look import printable
from dinoforge.data.sources.source import Source

UNJUDGED = "cannot be judged"
"""Why an image goes that a filter could not look at: what nobody looked at is not safe."""
_AT_ONCE = 32
"""Images that are judged together; bounds memory, changes no result."""


class SafetyConfig(Config):
    """The filters for safety: each runs where its settings are given."""


if not TYPE_CHECKING:
    SafetyConfig = create_model(
        "SafetyConfig", __base__=SafetyConfig, __doc__=SafetyConfig.__doc__,
        **{
            name: (kind.config | None, Field(None, description=f"Drop {kind.about}; null leaves the filter out."))
            for name, kind in SAFETY.items()
        },
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """What a filter said of rows of the pool, all of them."""

    keep: np.ndarray
    reason: np.ndarray
    lost: np.ndarray
    """Why a row could not be read, or its shard was given up; empty where neither is so."""
    scores: np.ndarray
    counts: np.ndarray
    """Boxes of each row."""
    boxes: np.ndarray
    """``[b, 4]``, those of the first row first."""

    @classmethod
    def joined(cls, parts: list[Found]) -> Found:
        """Of some rows and those behind them."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    @classmethod
    def of(cls, judged: Judged) -> Found:
        """In plain arrays, that can be written."""
        boxes = judged.boxes if judged.boxes is not None else [np.zeros((0, 4), np.float32)] * len(judged.keep)
        every = np.concatenate([np.zeros((0, 4), np.float32), *(box.reshape(-1, 4) for box in boxes)])
        reason = np.where(judged.keep, "", judged.reason).astype(np.str_)
        counts = np.asarray([len(box) for box in boxes], np.int64)
        lost = np.full(len(reason), "", dtype=np.str_)
        return cls(
            judged.keep, reason, lost, judged.scores.astype(np.float32), counts, every.clip(0, 1).astype(np.float32)
        )


def _chosen(config: Any) -> dict[str, Config]:
    """Settings of the filters that run, the cheapest first."""
    return {name: getattr(config, name) for name in SAFETY if getattr(config, name) is not None}


def _made(config: Any) -> dict[str, Filter]:
    found = {name: SAFETY[name].make(settings) for name, settings in _chosen(config).items()}
    return dict(sorted(found.items(), key=lambda item: NEEDS.index(item[1].needs)))


def _run(state: State, config: Any) -> Result:
    filters = _made(config)
    _check(filters, state.embeddings.how)
    pool, rows = state.pool, state.alive
    reason = np.full(len(pool), "", dtype="<U64")
    detail = np.full(len(pool), "", dtype=object)
    lasting = True
    boxes: list[tuple[np.ndarray, np.ndarray, bool]] = []
    told: list[dict[str, Any]] = []
    for name, one in filters.items():
        before = len(rows)
        found = _judged(name, one, state, rows, getattr(config, name))
        gone = rows[~found.keep]
        reason[gone] = found.reason[~found.keep]
        told_of = zip(found.scores[~found.keep].tolist(), found.lost[~found.keep].tolist(), strict=True)
        detail[gone] = [f"{name}, {why}" if why else _detail(name, score) for score, why in told_of]
        lasting = lasting and not (found.lost != "").any()
        boxes.append((np.repeat(rows, found.counts), found.boxes, one.blurs))
        told.append(
            {"name": name, **about(one), "judged": before, "dropped": len(gone), "boxes": len(found.boxes),
             "images_with_boxes": int((found.counts > 0).sum())}
        )  # fmt: skip
        rows = rows[found.keep]
    gone = np.flatnonzero(reason != "")
    dropped = Dropped.alone(gone, reason[gone], stage="safety")
    arrays = {"detail": detail[gone].astype(np.str_), **_places(boxes)}
    return Result(dropped, arrays, {"filters": told}, lasting)


def _detail(name: str, score: float) -> str:
    return name if np.isnan(score) else f"{name}, score {score:.4g}"


def _places(found: list[tuple[np.ndarray, np.ndarray, bool]]) -> dict[str, np.ndarray]:
    """The boxes of all filters by row of the pool."""
    row = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _, _ in found)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(some for _, some, _ in found)])
    blurred = np.concatenate([np.zeros(0, bool), *(np.full(len(rows), blurs) for rows, _, blurs in found)])
    order = np.argsort(row, kind="stable")
    return {"box_row": row[order], "boxes": boxes[order], "blurred": blurred[order]}


def _judged(name: str, one: Filter, state: State, rows: np.ndarray, settings: Config) -> Found:
    """What a filter says of the rows. Shards that an earlier start judged are taken over."""
    if one.needs == "url":
        return Found.of(one.judge(_asked(state, rows)))
    if one.needs == "embedding":
        return _by_embedding(one, state, rows)
    mark = fingerprint([name, science(settings), about(one)])
    kept, source = Kept(one, lambda: partial(_filter, name, settings, about(one))), state.crew.kept(state.pool.source)
    jobs = []
    for number in np.unique(rows // SHARD):
        some = rows[rows // SHARD == number]
        file = state.parts.absolute() / f"{name}-{int(number) * SHARD:010}.npz"
        asked = _asked(state, some)
        made = fingerprint([mark, some.tolist(), asked.url.tolist(), asked.sha256.tolist()])
        jobs.append(_Looking(kept, source, some, asked, file, made))
    parts = [_there(job) for job in jobs]
    places = [place for place, part in enumerate(parts) if part is None]
    shards = [
        Shard(f"{jobs[at].asked.url[0]} to {jobs[at].asked.url[-1]}", len(jobs[at].rows), jobs[at], jobs[at].file)
        for at in places
    ]
    for number, found in state.crew.each(_look_at, shards, title=name, total=len(rows)):
        job = jobs[places[number]]
        parts[places[number]] = (
            _given_up(job, found) if isinstance(found, Lost) else _found(written(job.file, job.mark))
        )
    return Found.joined([Found.of(_NONE), *(part for part in parts if part is not None)])


_NONE = Judged.of(np.zeros(0, bool), "")


def _given_up(job: _Looking, lost: Lost) -> Found:
    why = f"its shard failed twice: {printable(lost.why)}"
    return replace(_all_of(job.rows, job.rows[:0], _NONE), lost=np.full(len(job.rows), why))


def _filter(name: str, settings: Config, known: dict[str, Any]) -> Filter:
    """The same filter in another process.

    Raises:
        WeightsError: It is made of other files there.
    """
    found = SAFETY[name].make(settings)
    if about(found) != known:
        raise WeightsError(f"safety.{name} is made of other files on {gethostname()}; give the same to all machines.")
    return found


@dataclass(frozen=True, slots=True)
class _Looking:
    """A shard to judge."""

    one: Held[Filter]
    source: Held[Source]
    rows: np.ndarray
    asked: Asked
    """All rows, without what is to be read of them."""
    file: Path
    mark: str


def _there(job: _Looking) -> Found | None:
    """What an earlier start, or another process, found; None where there is nothing, or of other images, or where some of them
    could not be read."""
    held = read_shard(job.file)
    return None if held is None or str(held["mark"]) != job.mark or (held["lost"] != "").any() else _found(held)


def _found(held: Mapping[str, np.ndarray]) -> Found:
    return Found(**{name: held[name] for name in Found.__slots__})


def _look_at(job: _Looking, _processes: int) -> None:
    """Judge a shard and write what was found, unless a process that died then had written it."""
    if _there(job) is not None:
        return
    found = Found.joined([_looked(job, slice(at, at + _AT_ONCE)) for at in range(0, len(job.rows), _AT_ONCE)])
    write_shard(job.file, {"mark": np.asarray(job.mark), **{name: getattr(found, name) for name in Found.__slots__}})


def _by_embedding(one: Filter, state: State, rows: np.ndarray) -> Found:
    usable, vectors = state.embeddings.of(state.pool, rows)
    asked = _asked(state, usable, embeddings=vectors)
    lost = state.embeddings.lost(state.pool, np.setdiff1d(rows, usable))
    why = np.asarray([lost.get(row, "") for row in rows.tolist()], dtype=np.str_)
    return replace(_all_of(rows, usable, _answer(one, asked)), lost=why)


def _looked(job: _Looking, batch: slice) -> Found:
    """What a filter says of a batch that is read for it, the next image while one is decoded."""
    one, source, rows = job.one.get(), job.source.get(), job.rows[batch]
    read: Callable[[int], Any] = source.encoded if one.needs == "bytes" else lambda row: colours_of(
        source.picture(row), longest=LONGEST
    )  # fmt: skip

    def held(row: int) -> Any:
        try:
            return read(row)
        except Broken as error:  # it was whole when it was looked at first
            say(f"{source.columns['id'][row]} {UNJUDGED}, and goes: {error}")
            return error

    with ThreadPoolExecutor(max_workers=1) as ahead:
        things = list(ahead.map(held, rows.tolist()))
    lost = np.asarray([printable(str(thing)) if isinstance(thing, Broken) else "" for thing in things], dtype=np.str_)
    good = np.asarray([not isinstance(thing, Broken) for thing in things], dtype=bool)
    known = [thing for thing in things if not isinstance(thing, Broken)]
    word = "files" if one.needs == "bytes" else "images"
    asked = Asked(job.asked.url[batch][good], job.asked.sha256[batch][good], **{word: known})  # type: ignore[arg-type]
    return replace(_all_of(rows, rows[good], _answer(one, asked)), lost=lost)


def _answer(one: Filter, asked: Asked) -> Judged:
    """What the filter says, for every image once.

    Raises:
        DataError: It says too little or too much: a mistake of whoever wrote it.
    """
    found = one.judge(asked)
    sizes = {len(found.keep), len(found.reason), len(found.scores), len(asked if found.boxes is None else found.boxes)}
    if sizes != {len(asked)}:
        raise DataError(
            f"A safety filter ({type(one).__name__}) was asked about {len(asked)} images and answered of {sizes}."
        )
    return found


def _all_of(rows: np.ndarray, judged: np.ndarray, answer: Judged) -> Found:
    """With the rows that could not be judged, which go."""
    some = Found.of(answer)
    place = np.searchsorted(rows, judged)
    keep, reason = np.zeros(len(rows), bool), np.full(len(rows), UNJUDGED, dtype="<U64")
    scores, counts = np.full(len(rows), np.nan, np.float32), np.zeros(len(rows), np.int64)
    keep[place], reason[place], scores[place], counts[place] = some.keep, some.reason, some.scores, some.counts
    return Found(keep, reason, np.full(len(rows), "", dtype=np.str_), scores, counts, some.boxes)


def _asked(state: State, rows: np.ndarray, **things: Any) -> Asked:
    columns = state.pool.source.columns
    url = columns["id"][rows].astype(np.str_)
    if "url" in columns:
        known = columns["url"][rows].astype(np.str_)
        url = np.where(known == "", url, known)
    return Asked(url, state.pool.sha256[rows], **things)


def boxes_of(state: State) -> dict[int, tuple[np.ndarray, bool]]:
    """By row of the pool that has some: its boxes ``[b, 4]``, see ``Judged``, and whether they are to be blurred.

    Where some of a row's are, these alone: what another filter only noted there is left out.
    """
    if "safety" not in state.results:
        return {}
    arrays = state.results["safety"].arrays
    rows, start = np.unique(arrays["box_row"], return_index=True)
    ends = [*start.tolist()[1:], len(arrays["box_row"])]
    found = {}
    for row, first, last in zip(rows.tolist(), start.tolist(), ends, strict=False):
        boxes, blur = arrays["boxes"][first:last], arrays["blurred"][first:last]
        found[row] = (boxes[blur] if blur.any() else boxes, bool(blur.any()))
    return found


def _check(filters: dict[str, Filter], how: Embedder) -> None:
    """Refuse a filter that knows embeddings of another kind.

    Raises:
        ConfigError: There is one.
    """
    for name, one in filters.items():
        if one.embedder is not None and one.embedder != how.known_as:
            raise ConfigError(
                f"safety.{name} was trained on embeddings by {one.embedder}, this curation embeds by {how.known_as}; give that "
                "backbone as backbone=, or train the filter anew (curate train_filter=)."
            )


def _ready(settings: Any, how: Embedder) -> None:
    _check(_made(settings.safety), how)


def _files(settings: Any) -> Any:
    return {name: [file.sha256 for file in one.files] for name, one in _made(settings.safety).items()}


def _depends(state: State, config: Any) -> Any:
    """The weights that embed, where a filter goes by them, and the addresses that every filter is told."""
    how, urls = state.embeddings.how.fingerprint if embeds(config) else None, state.pool.column_fingerprint("url")
    return how if urls is None else [how, urls]


def embeds(config: Any) -> bool:
    """Whether a filter that is chosen judges by embeddings."""
    return any(one.needs == "embedding" for one in _made(config).values())


def _absent(settings: Any) -> str | None:
    if _chosen(settings.safety):
        return None
    return f"no filter for safety is chosen (safety.NAME.…; known: {', '.join(SAFETY)})"


SAFETY_STAGE = Stage(
    about="what must not be learned from: lists, models, faces", run=_run, config=SafetyConfig, files=_files, depends=_depends,
    absent=_absent, ready=_ready, embeds=lambda settings: embeds(settings.safety), safety=True,
)  # fmt: skip
