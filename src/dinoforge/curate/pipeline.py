"""A curation from opened sources to the files that it leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import DataError
from dinoforge.base.files import clear_leftovers, write_json
from dinoforge.base.log import say
from dinoforge.curate import shards
from dinoforge.curate.embeddings import Embedder, Embeddings
from dinoforge.curate.engine import Done, run_stages
from dinoforge.curate.executors.run import Shards
from dinoforge.curate.flat import spilled
from dinoforge.curate.images import SHARD, Images, read_images
from dinoforge.curate.output import BROKEN, counted, dropped_table, manifest_table, write_dropped
from dinoforge.curate.settings import Curation
from dinoforge.curate.stages.pairs import measure_of
from dinoforge.curate.state import State
from dinoforge.curate.table import CURATIONS
from dinoforge.data.manifest import BLUR, write_manifest
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.source import Source
from dinoforge.features.copies import NAME
from dinoforge.features.descriptors import Descriptors, write_descriptors

UNSAFE = "not safety-filtered"
"""Stands in manifest and summary where no filter for safety was chosen."""
FILES = ("manifest.parquet", "dropped.parquet", "summary.json", "report.html", "descriptors", "stages", shards.FOLDER)
"""What a curation leaves in its folder."""
SENT = "sent"
"""In ``stages``, while an engine works: what all its processes need."""


_MADE = ("fingerprint", "pool", "dropped", "safety", "safety_filters", "embedder", "settings")
"""What of the summary stands in the manifest too."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The sources of a curation."""

    pool: Source
    seeds: Sequence[Source]
    keep_out: Source | None
    background: Source | None = None


@dataclass(frozen=True, slots=True)
class Curated:
    """A finished curation."""

    state: State
    done: Sequence[Done]
    summary: dict[str, Any]


def curated(
    opened: Opened, settings: Curation, stages: Sequence[str], *, embedder: Embedder, out: Path, crew: Shards,
    describer: Embedder | None = None,
) -> Curated:  # fmt: skip
    """Read, run the stages, and write all but the report and the summary.

    Args:
        crew: Takes the shards of all stages.
        describer: What finds near copies; None takes the descriptor that needs no weights.

    Raises:
        DataError: A set of images without one that can be used, or no image of the pool is left.
        RunError: The folder cannot be written.
    """
    for name in stages:
        CURATIONS[name].ready(settings, embedder)
    clear_leftovers(out, *FILES)
    folder = out / "stages"
    state = _read(opened, folder, embedder, describer, crew)
    state, done = run_stages(state, settings, stages, folder)
    dropped = dropped_table(state, done)
    counts = counted(dropped)
    none_left = ""
    if not len(state.alive):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        none_left = f"No image of {opened.pool.address} is left: {reasons}."
        # An earlier curation is worth more than the reasons: its tars may be all that there is of its images.
        if (out / "manifest.parquet").exists():
            raise DataError(
                f"{none_left} What {out} holds of an earlier curation stays as it was; a new out= would get dropped.parquet, "
                "with every image's reason."
            )
    for name in ("summary.json", "report.html"):  # of an earlier curation: they tell of what is replaced now
        (out / name).unlink(missing_ok=True)
    write_dropped(out / "dropped.parquet", dropped)
    if none_left:
        raise DataError(f"{none_left} See {out / 'dropped.parquet'}; nothing else was written.")
    table, by_name = manifest_table(state, include_seeds=settings.include_seeds)
    files: list[str] = []
    if settings.shards.images is not None:
        table, files = _packed(out, table, _listed(state, settings), each=settings.shards.images, crew=crew)
        if BLUR in table.column_names and any(table[BLUR].to_pylist()):
            say(
                f"{out / shards.FOLDER} holds the files as they are: their places are blurred for who reads the manifest."
            )
    summary = {**_summary(state, done, settings, counts, table.num_rows), "shards": len(files)}
    made = {
        "verb": "curate", "by_name": by_name, "descriptors": "descriptors",
        **{name: summary[name] for name in _MADE},
    }  # fmt: skip
    write_descriptors(out / "descriptors", _descriptors(state, settings, table["id"].to_pylist(), folder))
    write_manifest(out / "manifest.parquet", [table], made=made)
    shards.tidy(out, files)
    return Curated(state, done, summary)


def finish(out: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary: the last file, for it says that all others are there."""
    write_json(out / "summary.json", dict(summary))


def _read(opened: Opened, folder: Path, embedder: Embedder, describer: Embedder | None, crew: Shards) -> State:
    def read(source: Source, name: str) -> Images:
        found = read_images(source, folder / "read" / name, name=name, crew=crew)
        bad = len(found) - len(found.whole)
        if bad and name != "pool":
            say(f"{source.address}: {bad:,} of {len(found):,} images cannot be used and are set aside.")
        if not len(found.whole):
            first = f"; the first: {found.broken[0]}" if len(found) else ""
            raise DataError(f"{source.address} holds no image that can be used{first}.")
        return found

    pool = read(opened.pool, "pool")
    seeds = [read(source, f"seeds-{number}") for number, source in enumerate(opened.seeds)]
    keep_out = None if opened.keep_out is None else read(opened.keep_out, "keep_out")
    background = None if opened.background is None else read(opened.background, "background")
    for images in seeds if keep_out is not None else ():
        assert keep_out is not None
        same = int(np.isin(images.sha256[images.whole], keep_out.sha256[keep_out.whole]).sum())
        if same:
            say(
                f"{same:,} seeds of {images.source.address} are files of {keep_out.source.address}; seeds are not dropped."
            )
    embeddings = Embeddings(folder / "embedding.parts", embedder, crew)
    known = None if describer is None else Embeddings(folder / "descriptor.parts", describer, crew)
    return State(pool, pool.whole, seeds, keep_out, {}, embeddings, folder, crew, known, background)


def _listed(state: State, settings: Curation) -> list[tuple[Images, np.ndarray]]:
    """Whose rows the manifest's are, in its order."""
    parts = [(state.pool, state.alive)]
    return parts + [(images, images.whole) for images in (state.seeds if settings.include_seeds else ())]


def _packed(
    out: Path, table: Any, parts: Sequence[tuple[Images, np.ndarray]], *, each: int, crew: Shards
) -> tuple[Any, list[str]]:
    """See ``shards.packed``. What is known of an image that has changed is forgotten, so that another start reads it."""
    read = _Files(parts)
    try:
        return shards.packed(out, table, each=each, read=read, crew=crew)
    except shards.Changed as error:
        part, row = read.place(error.row)
        parts[part][0].forget(row)
        raise


class _Files:
    """Gives the file of a row of the manifest."""

    def __init__(self, parts: Sequence[tuple[Images, np.ndarray]]) -> None:
        self._parts = [(images.source, rows) for images, rows in parts]
        self._starts = np.cumsum([0, *(len(rows) for _, rows in parts)])

    def __call__(self, row: int) -> bytes:
        """Read it."""
        part, own = self.place(row)
        return self._parts[part][0].encoded(own)

    def place(self, row: int) -> tuple[int, int]:
        """Which part it lies in, and its row of that one's source."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return part, int(self._parts[part][1][row - self._starts[part]])


def _together(parts: Sequence[tuple[np.ndarray, np.ndarray]], kind: Any, folder: Path) -> np.ndarray:
    """Some rows of several arrays, on the disk."""
    shape = (sum(len(rows) for _, rows in parts), *parts[0][0].shape[1:])
    some = (array[rows[at : at + SHARD]] for array, rows in parts for at in range(0, len(rows), SHARD))
    return spilled(folder, shape, kind, parts=some)


def _descriptors(state: State, settings: Curation, ids: list[str], folder: Path) -> Descriptors:
    """Of the manifest's rows, in its order."""
    parts = _listed(state, settings)
    measure, known = measure_of(state), state.descriptions
    learnt = measure is not None and known is not None
    vectors = [
        (known.dense(*part), np.arange(len(part[1]))) if learnt and known else (part[0].descriptors, part[1])
        for part in parts
    ]
    return Descriptors(
        np.asarray(ids, dtype=np.str_),
        _together([(images.sha256, rows) for images, rows in parts], "<U64", folder),
        _together([(images.thumbnails, rows) for images, rows in parts], np.uint8, folder),
        _together(vectors, np.float16, folder),
        known.how.name if learnt and known else NAME,
        measure,
    )


def _summary(
    state: State, done: Sequence[Done], settings: Curation, counts: dict[str, int], rows: int
) -> dict[str, Any]:
    facts = {one.name: one.result.facts for one in done}
    values = settings.model_dump(mode="json")
    values |= {
        "pool": shown(settings.pool),
        "seeds": [shown(address) for address in settings.seeds],
        **{
            name: None if getattr(settings, name) is None else shown(getattr(settings, name))
            for name in ("keep_out", "background")
        },
    }
    filters = [one for name, fact in facts.items() if CURATIONS[name].safety for one in fact["filters"]]
    return {
        "pool": len(state.pool),
        "kept": len(state.alive),
        "seeds": rows - len(state.alive),
        "dropped": counts,
        "retrieved": {one["set"]: one["retrieved"] for one in facts.get("retrieval", {}).get("sets", [])},
        "not_images": len(state.pool.source.rejected),
        "safety": _safety(filters, rows - len(state.alive)),
        "safety_filters": filters,
        "descriptor": facts.get("pairs", {}).get("descriptor"),
        "embedder": state.embeddings.how.name if "embedding" in facts else None,
        "evenness": facts.get("balance", {}).get("evenness"),
        "stages": _rows(state, done),
        "settings": values,
        "fingerprint": fingerprint([state.pool.fingerprint, [one.fingerprint for one in done], settings.include_seeds]),
    }


def _safety(filters: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """What was done for safety, in words."""
    if not filters:
        return UNSAFE
    text = f"safety-filtered by {', '.join(one['name'] for one in filters)}"
    return f"{text}, but for {seeds:,} seeds" if seeds else text


def _rows(state: State, done: Sequence[Done]) -> list[dict[str, Any]]:
    """The stages as rows of a table; reading is the first."""
    broken = len(state.pool) - len(state.pool.whole)
    rows: list[dict[str, Any]] = [
        {"name": "read", "about": "every image is opened once", "before": len(state.pool),
         "after": len(state.pool.whole), "dropped": {BROKEN: broken} if broken else {}, "reused": False, "facts": {}}
    ]  # fmt: skip
    for one in done:
        reasons, count = np.unique(one.result.dropped.reason, return_counts=True)
        rows.append(
            {
                "name": one.name,
                "about": CURATIONS[one.name].about,
                "before": one.before,
                "after": one.before - int(count.sum()),
                "dropped": dict(zip(map(str, reasons.tolist()), count.tolist(), strict=True)),
                "reused": one.reused,
                "facts": dict(one.result.facts),
            }
        )
    return rows
