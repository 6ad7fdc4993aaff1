"""Features of a source on their way to a folder, shard after shard; those that are there from an earlier start stay."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.files import clear_leftovers
from dinoforge.base.lock import locked
from dinoforge.base.log import progress, say
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction, NoneUsable, computed
from dinoforge.features.kinds import HALF, KINDS
from dinoforge.features.store import write_features
from dinoforge.features.unfinished import Some, Unfinished
from dinoforge.features.views import View, middle
from dinoforge.model.weights import Backbone


@dataclass(frozen=True, slots=True)
class Watch:
    """Who follows how far it is."""

    label: str = "embed"
    """What the progress is called."""
    tell: Callable[[int, int, str], None] | None = None
    """Is told how many images of how many are done, and the label; beside what is shown anyway."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was done for a folder of features; nothing where all was there."""

    rows: int
    reused: int
    """Images whose features an earlier start had computed."""
    quarantined: int
    images_per_second: float
    """Of the images that were computed in this start."""


_NOBODY = Watch()


def beside(path: Path) -> Path:
    """Where shards lie until the folder of features is whole."""
    return path.parent / f".{path.name}.embed"


def in_shards(how: Extraction, rows: int) -> Extraction:
    """With forward passes that no shard cuts in two: a part that is computed again is computed as it was.

    Raises:
        ConfigError: They cannot be.
    """
    if rows < 1:
        raise ConfigError(f"shard must be above 0; got {rows}.")
    at_once = min(how.rows_at_once, rows)
    if rows % at_once:
        below = rows // at_once * at_once
        raise ConfigError(
            f"shard={rows} is no multiple of {at_once}, the images of a forward pass; {below} or {below + at_once} would be."
        )
    return replace(how, rows_at_once=at_once)


def files_of(source: Source) -> str | None:
    """16 hexadecimal digits that change when an image is changed in place; null where a source cannot tell of every one."""
    digest = hashlib.sha256()
    for row in range(len(source)):
        stamp = source.stamp(row)
        if stamp is None:
            return None
        digest.update(f"{stamp}\n".encode())
    return digest.hexdigest()[:16]


def keep(  # noqa: PLR0913 - what it is of, and how it is done
    path: Path, source: Source, found: Backbone, how: Extraction, *, kind: str, on_broken: Callable[[str, str], None],
    rows: int, facts: Mapping[str, Any], view: View | None = None, watch: Watch = _NOBODY, unless_there: bool = False,
) -> Kept:  # fmt: skip
    """Write the features of every usable image into a folder, see ``features/store.py``.

    Interrupted, it goes on where it was: shards that are finished are kept beside the folder until all are.

    Args:
        rows: Images in a shard.
        facts: Whose features they are, beside what is put down anyway.
        view: What of a picture is seen, by default the middle that the preprocessing cuts out.
        unless_there: Leave a folder that is there as it is: another process has just finished it.

    Raises:
        NoneUsable: Not one image could be used.
        Busy: Another process is about it.
        RunError: The disk is full, or shards of other features are there; what is finished stays.
        ConfigError: A shard that forward passes do not fill.
    """
    how = in_shards(how, rows)
    with locked(beside(path)):  # before anything that takes long: whoever finds it held can do something else at once
        if unless_there and (path / "features.json").exists():
            shutil.rmtree(beside(path), ignore_errors=True)
            return Kept(0, 0, 0, 0.0)
        return _keep(
            path, source, found, how, kind=kind, on_broken=on_broken, rows=rows, facts=facts, view=view, watch=watch
        )


def _keep(
    path: Path, source: Source, found: Backbone, how: Extraction, *, kind: str, on_broken: Callable[[str, str], None],
    rows: int, facts: Mapping[str, Any], view: View | None, watch: Watch,
) -> Kept:  # fmt: skip
    """See ``keep``, whose lock is held."""
    facts = {"tokens": kind, "backbone": found.fingerprint, "data": source.fingerprint, "address": source.address,
             "precision": how.precision, **facts}  # fmt: skip
    seen = view or middle(found.preprocessing)
    about = {**facts, "files": files_of(source), "preprocessing": found.preprocessing.model_dump(mode="json")}
    about |= {"view": view.name} if view else {}
    clear_leftovers(path.parent, path.name)
    shards = Unfinished(beside(path), about, images=len(source), rows=rows, half=kind in HALF)
    try:
        reused, rate = _compute(shards, source, found, how, kind=kind, view=seen, on_broken=on_broken, watch=watch)
        aside = [{"id": name, "reason": reason} for name, reason in source.rejected]
        aside += [{"id": str(source.columns["id"][row]), "reason": reason} for row, reason in shards.broken()]
        count = write_features(path, shards, columns=source.columns, facts=facts, set_aside=aside)
    finally:
        if not shards.shards:
            shards.remove()
    return Kept(count, reused, len(aside), rate)


def _compute(
    shards: Unfinished, source: Source, found: Backbone, how: Extraction, *, kind: str, view: View,
    on_broken: Callable[[str, str], None], watch: Watch,
) -> tuple[int, float]:  # fmt: skip
    """Compute the missing shards; images of those that were there, and images a second.

    Raises:
        NoneUsable: Not one image of all shards could be used; there are none then.
    """
    reasons: deque[str] = deque()

    def set_aside(name: str, reason: str) -> None:
        on_broken(name, reason)
        reasons.append(reason)

    missing = shards.missing()
    todo = np.concatenate([np.asarray(shards.span(number)) for number in missing]) if missing else np.empty(0, np.int64)
    before = len(source) - len(todo)
    if before:
        say(f"{before:,} of {len(source):,} images are there from an earlier start.")
    parts = computed(
        found.module.to(how.device), source.select(todo), found.preprocessing, how, of=KINDS[kind], on_broken=set_aside,
        view=View(view.name, lambda pixels, row: view.of(pixels, int(todo[row]))),
    )  # fmt: skip
    values = ((rows, one.float().cpu().numpy()) for rows, one in parts)
    began = time.perf_counter()
    with suppress(NoneUsable):
        shards.write(_of_source(values, todo, before, watch) if missing else (), reasons)
    shards.write((), reasons)
    if not any(len(shards.usable(number)) for number in range(len(shards))):
        broken = shards.broken()
        shards.shards.clear()
        raise NoneUsable.of(source, broken)
    return before, len(todo) / (time.perf_counter() - began)


def _of_source(values: Iterator[Some], todo: np.ndarray, before: int, watch: Watch) -> Iterator[Some]:
    """Parts with the rows of the whole source, while it is shown how many images are done."""
    with progress(watch.label, before + len(todo), start=before) as tick:
        for rows, value in values:
            yield todo[rows], value
            tick(before + int(rows[-1]) + 1)
            if watch.tell is not None:
                watch.tell(before + int(rows[-1]) + 1, before + len(todo), watch.label)
