"""What a curation leaves behind: the manifest of what is in, with the reasons, and the table of what went, with the reasons.

Axes: N rows of the pool, n of them that are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinoforge.base.files import write_atomic
from dinoforge.curate.engine import Done
from dinoforge.curate.images import Images
from dinoforge.curate.stages.safety import boxes_of
from dinoforge.curate.state import State
from dinoforge.data.manifest import BLUR, BOXES, SCHEMA, Manifest, keys
from dinoforge.data.sources.numbers import agreed

REASONS = {"samples": "neighbour of a seed", "clusters": "cluster of seeds", "all": "kept"}
"""By way of retrieval: why an image is in. ``seed`` for a seed, ``kept`` where nothing was retrieved."""
EXTRA = pa.schema(
    [
        ("seed_set", pa.string()),
        ("rank", pa.int32()),
        ("drawn_from", pa.int64()),
        (BOXES, pa.list_(pa.float32())),
        (BLUR, pa.bool_()),
    ]
)
"""Columns of a curated manifest behind the usual ones: the seed set and the rank that go with ``seed`` and ``similarity``,
the cluster that balance drew the image from, and what a filter for safety found in it (see ``data/manifest.py``).
``cluster`` is that of the pool that held seeds enough."""
BROKEN = "broken file"


def manifest_table(state: State, *, include_seeds: bool) -> tuple[Any, list[str]]:
    """The manifest's rows, and which of ``label`` and ``group`` are numbers that stand for names.

    Seeds, where they are rows, come first to last after the pool's; an id that is taken already gets their address before it.
    """
    parts = [state.pool, *(state.seeds if include_seeds else ())]
    if len(parts) > 1:
        parts = [
            replace(images, source=source)
            for images, source in zip(parts, agreed([images.source for images in parts]), strict=True)
        ]
    tables = [_kept(state, parts[0])]
    tables += [_seeds(images) for images in parts[1:]]
    table = pa.concat_tables(tables)
    if len(parts) > 1 and table["weight"].null_count < len(table):  # a seed counts once
        place = SCHEMA.get_field_index("weight")
        table = table.set_column(place, SCHEMA.field(place), pc.fill_null(table["weight"], 1.0))
    sources = [images.source for images in parts]
    by_name = [
        name for name in ("label", "group") if all(name in s.by_name for s in sources if name in s.columns)
        and any(name in s.columns for s in sources)
    ]  # fmt: skip
    return _unique(table), by_name


def _unique(table: Any) -> Any:
    ids = table["id"].to_pylist()
    taken: set[str] = set()
    for row, (name, source) in enumerate(zip(ids, table["source"].to_pylist(), strict=True)):
        ids[row] = f"{source}:{name}" if name in taken else name
        taken.add(ids[row])
    return table.set_column(0, SCHEMA.field("id"), pa.array(ids, pa.string()))


def _kept(state: State, pool: Images) -> Any:
    """The rows of the pool that are in."""
    alive = state.alive
    manifest = pool.manifest(alive).replaced("copy_of", None)
    columns = {"reason": np.full(len(alive), "kept", dtype=object), "times": np.ones(len(alive), np.int64)}
    columns |= _retrieved(state)
    columns |= _found(state)
    if "balance" in state.results:
        arrays = state.results["balance"].arrays
        place = np.searchsorted(arrays["row"], alive)
        columns["drawn_from"] = arrays["top"][place]
        columns["times"] = columns["times"] * arrays["times"][place]
    return _with(manifest, columns)


def _found(state: State) -> dict[str, np.ndarray]:
    """The boxes of the rows that are in, and whether they are to be blurred."""
    known = boxes_of(state)
    if not known:
        return {}
    boxes, blur = (np.full(len(state.alive), None, dtype=object) for _ in range(2))
    for place, row in enumerate(state.alive.tolist()):
        if row in known:
            boxes[place], blur[place] = known[row][0].ravel(), known[row][1]
    return {BOXES: boxes, BLUR: blur}


def _retrieved(state: State) -> dict[str, np.ndarray]:
    """What retrieval knows of the rows that are in."""
    if "retrieval" not in state.results:
        return {}
    result = state.results["retrieval"]
    place = np.searchsorted(result.arrays["row"], state.alive)
    found = {name: column[place] for name, column in result.arrays.items()}
    methods = np.asarray([REASONS[one["method"]] for one in result.facts["sets"]], dtype=object)
    names = np.full(len(place), None, dtype=object)
    sets = np.asarray([images.source.address for images in state.seeds], dtype=object)[found["seed_set"]]
    for number, images in enumerate(state.seeds):
        mine = (found["seed_set"] == number) & (found["seed"] >= 0)
        names[mine] = images.source.columns["id"][found["seed"][mine]].astype(object)
    return {
        "reason": methods[found["seed_set"]], "seed_set": sets, "seed": names, "rank": found["rank"],
        "similarity": found["similarity"], "cluster": found["cluster"], "times": found["times"],
    }  # fmt: skip


def _seeds(images: Images) -> Any:
    manifest = images.manifest().replaced("copy_of", None).replaced("reason", "seed")
    sets = np.full(len(manifest), images.source.address, dtype=object)
    return _with(manifest, {"seed_set": sets})


def _with(manifest: Manifest, columns: Mapping[str, np.ndarray]) -> Any:
    """A manifest's table with these columns, -1 and NaN as null, and those of ``EXTRA`` behind its own."""
    times = columns.get("times")
    table = manifest.table.select(SCHEMA.names)
    for field in [*SCHEMA, *EXTRA]:
        if field.name in columns:
            column = _nullable(columns[field.name], field.type)
        elif field.name == "weight" and times is not None and (times > 1).any():
            own = manifest.column("weight")
            column = pa.array(np.where(np.isnan(own), 1.0, own) * times, pa.float64())
        elif field.name in EXTRA.names:
            column = pa.nulls(len(manifest), field.type)
        else:
            continue
        place = table.schema.get_field_index(field.name)
        table = table.append_column(field, column) if place < 0 else table.set_column(place, field, column)
    return table


def _nullable(values: np.ndarray, kind: Any) -> Any:
    if values.dtype.kind == "i":
        return pa.array(values, kind, mask=values < 0)
    return pa.array(values, kind, from_pandas=True)


DROPPED = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("against", pa.string()),
        ("against_source", pa.string()),
        ("similarity", pa.float32()),
    ]
)
"""``against``: the id of the image that stays for it, or of the evaluation image that it copies, in ``against_source``."""


def dropped_table(state: State, done: Sequence[Done]) -> Any:
    """All rows of the pool that are not in, stage after stage, each once."""
    pool = state.pool
    broken = np.setdiff1d(np.arange(len(pool)), pool.whole)
    tables = [_gone(pool, broken, "read", np.full(len(broken), BROKEN), detail=pool.broken[broken])]
    for one in done:
        gone = one.result.dropped
        by = state.keep_out if one.name == "leaks" else pool
        tables.append(
            _gone(
                pool, gone.row, one.name, gone.reason, near=gone.similarity, by=by, against=gone.against,
                detail=one.result.arrays.get("detail"),
            )
        )  # fmt: skip
    return pa.concat_tables(tables)


def _gone(
    pool: Images, rows: np.ndarray, stage: str, reason: np.ndarray, *, detail: np.ndarray | None = None,
    near: np.ndarray | None = None, by: Images | None = None, against: np.ndarray | None = None,
) -> Any:  # fmt: skip
    names = keys(pool.source.columns["id"])
    columns: dict[str, Any] = {
        "id": [None if name is None else str(name) for name in names.take(pa.array(rows)).to_pylist()],
        "source": [pool.source.address] * len(rows),
        "sha256": [key or None for key in pool.sha256[rows].tolist()],
        "stage": [stage] * len(rows),
        "reason": reason.tolist(),
    }
    columns["uri"] = columns["id"]
    if detail is not None:
        columns["detail"] = detail.tolist()
    if by is not None and against is not None and near is not None:
        ids = by.source.columns["id"]
        columns["against"] = [None if row < 0 else str(ids[row]) for row in against.tolist()]
        columns["against_source"] = [None if row < 0 else by.source.address for row in against.tolist()]
        columns["similarity"] = near
    return pa.table(
        [
            pa.array(columns[field.name], field.type, from_pandas=True)
            if field.name in columns
            else pa.nulls(len(rows), field.type)
            for field in DROPPED
        ],
        schema=DROPPED,
    )


def write_dropped(path: Path, table: Any) -> None:
    """Write ``dropped.parquet``, whole or not at all.

    Raises:
        RunError: It cannot be written.
    """
    write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd"))


def counted(table: Any) -> dict[str, int]:
    """How many rows went for each reason, in order of the stages."""
    return dict(Counter(table["reason"].to_pylist()))
