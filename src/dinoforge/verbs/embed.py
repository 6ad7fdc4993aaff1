"""``embed``: images become features."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.files import clear_leftovers, explained, locked, put_back
from dinoforge.base.interrupt import interruptible
from dinoforge.base.log import progress, say
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, NoneUsable, extract_tokens
from dinoforge.features.store import TOKENS, write_features
from dinoforge.features.unfinished import Some, Unfinished, noted
from dinoforge.model.weights import Backbone
from dinoforge.verbs.looking import whole
from dinoforge.verbs.opening import extraction, opened, told

_LONGEST = 230
"""Bytes in the name of the output; what is written beside it has a name some longer, and 255 is the most that is allowed."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was embedded."""

    rows: int
    width: int
    images_per_second: float
    """Of the images that were computed in this start."""
    reused: int
    """Images whose features an earlier start had computed."""
    quarantined: int
    out: str


def embed(
    *, backbone: str, data: str, out: str, tokens: str = "image", precision: str = "auto", shard: str | int = 1024
) -> Embedded:
    """Write the features of every image: features.npy (any NumPy reads it), ids.parquet, features.json.

    Interrupted, the same command goes on: shards of images that are finished are kept beside out until all are.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER or timm:NAME.
        data: Images: a folder, a Parquet file, toy://species.
        out: Folder to write; one that holds features is replaced.
        tokens: image (one vector an image) or patches (a grid of them).
        precision: auto, fp32 or bf16; auto stays with what finished shards have.
        shard: Images in a shard: at most so many are computed again after an interruption.
    """
    if tokens not in TOKENS:
        raise ConfigError(f"tokens must be {' or '.join(TOKENS)}; got {tokens!r}.")
    path, rows = _free(out), whole("shard", shard)
    beside = path.parent / f".{path.name}.embed"
    with interruptible("what was computed so far is kept"):
        source, found = open_source(data), opened(backbone)
        how = _in_shards(extraction(precision, (noted(beside) or {}).get("precision")), rows)
        facts = {"tokens": tokens, "backbone": found.fingerprint, "data": source.fingerprint,
                 "address": source.address, "precision": how.precision}  # fmt: skip
        about = {**facts, "files": _files(source), "preprocessing": found.preprocessing.model_dump(mode="json")}
        with locked(beside):
            clear_leftovers(path.parent, path.name)
            shards = Unfinished(beside, about, images=len(source), rows=rows)
            try:
                reused, rate = _compute(shards, source, found, how, tokens)
                aside = [{"id": name, "reason": reason} for name, reason in source.rejected]
                aside += [{"id": str(source.columns["id"][row]), "reason": reason} for row, reason in shards.broken()]
                count = write_features(path, shards, columns=source.columns, facts=facts, set_aside=aside)
            finally:
                if not shards.shards:
                    shards.remove()
    return Embedded(count, found.module.width, rate, reused, len(aside), out)


def _free(out: str) -> Path:
    """See that nothing is lost by writing features there.

    Raises:
        ConfigError: Something else is there, or it is no name for a folder.
    """
    path = Path(out)
    if len(os.fsencode(path.name)) > _LONGEST:
        raise ConfigError(f"out={out} has a name of more than {_LONGEST} bytes; give a shorter one.")
    with explained(path):
        put_back(path)
        if path.exists() and not (path / "features.json").exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"out={out} exists and holds no features; give a new folder.")
    return path


def _in_shards(how: Extraction, rows: int) -> Extraction:
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


def _files(source: Source) -> str | None:
    """16 hexadecimal digits that change when an image is changed in place; null where a source cannot tell."""
    digest, known = hashlib.sha256(), False
    for row in range(len(source)):
        stamp = source.stamp(row)
        known |= stamp is not None
        digest.update(f"{stamp}\n".encode())
    return digest.hexdigest()[:16] if known else None


def _compute(shards: Unfinished, source: Source, found: Backbone, how: Extraction, tokens: str) -> tuple[int, float]:
    """Compute the missing shards; images of those that were there, and images a second.

    Raises:
        NoneUsable: Not one image of all shards could be used; there are none then.
    """
    reasons: deque[str] = deque()

    def set_aside(name: str, reason: str) -> None:
        told(name, reason)
        reasons.append(reason)

    missing = shards.missing()
    todo = np.concatenate([np.asarray(shards.span(number)) for number in missing]) if missing else np.empty(0, np.int64)
    before = len(source) - len(todo)
    if before:
        say(f"{before:,} of {len(source):,} images are there from an earlier start.")
    parts = _of_source(
        extract_tokens(found.module.to(how.device), source.select(todo), found.preprocessing, how, tokens=tokens,
                       on_broken=set_aside), todo, before)  # fmt: skip
    began = time.perf_counter()
    with suppress(NoneUsable):
        shards.write(parts if missing else (), reasons)
    shards.write((), reasons)
    if not any(len(shards.usable(number)) for number in range(len(shards))):
        broken = shards.broken()
        shards.shards.clear()
        raise NoneUsable.of(source, broken)
    return before, len(todo) / (time.perf_counter() - began)


def _of_source(computed: Iterator[Some], todo: np.ndarray, before: int) -> Iterator[Some]:
    """Parts with the rows of the whole source, while it is shown how many images are done."""
    with progress("embed", before + len(todo), start=before) as tick:
        for rows, values in computed:
            yield todo[rows], values
            tick(before + int(rows[-1]) + 1)
