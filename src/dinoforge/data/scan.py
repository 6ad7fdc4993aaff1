"""Look at every image of a source once: is it whole, how large is it, was it seen before?

What an earlier scan found of an image is taken over where the source says that its bytes are the same (``Source.stamp``).
A change that leaves both the size of a file and the time of its last change as they were is not seen.

Axes: N rows of a source, n of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from dinoforge.base.log import Ticker
from dinoforge.data.journal import FACTS, Journal
from dinoforge.data.look import PATIENCE, Seen, looked, printable
from dinoforge.data.manifest import KNOWN, ROWS_AT_ONCE, SCHEMA, Manifest, firsts, keys, texts
from dinoforge.data.sources.source import Source

EARLIER = ("source", "uri", "stamp", "sha256", "width", "height", "channels", "bytes")
"""What is asked of an earlier manifest."""
_TICK = 0.05
"""Seconds by which the clocks of file systems advance, and more: a file that changes later shows it in its stamp."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a scan found of all N rows of a source."""

    source: Source
    facts: Any
    """A table of ``FACTS``."""
    place: Int[np.ndarray, " N"]
    """Where in ``facts`` a row is found; -1 for those in ``refused``."""
    refused: dict[int, str]
    """Rows that cannot be named, each with the reason."""
    kept: Int[np.ndarray, " n"]
    """Rows of the source that are whole images."""
    first: Int[np.ndarray, " n"]
    """For each of these, the first one with the same bytes, counted among them."""
    read: int
    reused: int
    new: int
    """Rows that the earlier manifest did not know."""
    changed: int
    """Rows that it knew with other bytes."""
    vanished: int
    """Images that it lists and the source holds no more."""

    @property
    def exact_duplicates(self) -> int:
        """Images whose bytes are those of an earlier one."""
        return int(np.count_nonzero(self.first != np.arange(len(self.first))))

    def rejected(self) -> list[dict[str, str]]:
        """Rows that are no images, each with ``id``, ``reason`` and, where the same file would be the same again, ``stamp``."""
        found: list[dict[str, str]] = []
        names = self.source.columns["id"]
        out = np.setdiff1d(np.arange(len(self.place)), self.kept)
        for row in out.tolist():
            if row in self.refused:
                found.append({"id": printable(str(names[row])), "reason": self.refused[row]})
                continue
            place = int(self.place[row])
            line = {"id": str(names[row]), "reason": self.facts["broken"][place].as_py()}
            stamp = self.facts["stamp"][place].as_py()
            found.append(line if stamp is None else {**line, "stamp": stamp})
        return found

    def tables(self) -> Iterator[Any]:
        """The manifest's rows, some at a time."""
        for start in range(0, len(self.kept), ROWS_AT_ONCE):
            some = slice(start, start + ROWS_AT_ONCE)
            yield self._table(self.kept[some], self.first[some], start)

    def _table(self, rows: Int[np.ndarray, " m"], first: Int[np.ndarray, " m"], start: int) -> Any:
        source = self.source
        facts = self.facts.take(pa.array(self.place[rows]))
        copied = first != np.arange(start, start + len(rows))
        originals = texts(source.columns["id"][self.kept[first]])
        columns = {name: facts[name] for name in FACTS.names if name in SCHEMA.names}
        columns |= {
            "id": texts(source.columns["id"][rows]), "uri": facts["id"],
            "source": pa.repeat(source.address, len(rows)), "reason": pa.repeat("", len(rows)),
            "copy_of": pc.if_else(pa.array(copied), originals, None),
        }  # fmt: skip
        if "weight" in source.columns:
            columns["weight"] = pa.array(source.columns["weight"][rows], from_pandas=True)
        columns |= {name: _known(source.columns[name][rows], name) for name in KNOWN if name in source.columns}
        return pa.table(
            [
                columns[field.name].cast(field.type) if field.name in columns else pa.nulls(len(rows), field.type)
                for field in SCHEMA
            ],
            schema=SCHEMA,
        )


def _known(values: np.ndarray, name: str) -> Any:
    """A source's column as one of the manifest, null where nothing is known."""
    if pa.types.is_integer(SCHEMA.field(name).type):
        whole = values if values.dtype.kind in "iu" else np.full(len(values), -1)
        return pa.array(whole, mask=whole == -1)
    found = texts(values.astype(np.str_))
    return pc.if_else(pc.equal(found, ""), None, found)


def scan(
    source: Source,
    *,
    earlier: Manifest | None,
    journal: Journal,
    workers: int,
    patience: float = PATIENCE,
    tick: Ticker | None = None,
) -> Found:
    """Look at every image that is not known from an earlier scan.

    Args:
        earlier: The manifest of an earlier scan of the same source.
        journal: What earlier starts of this scan found; what this one finds is added.
        workers: Processes that read; they change nothing of the result.
        patience: Seconds that one image may take.
        tick: Told how many rows are done.

    Raises:
        RunError: The journal cannot be written, or no process can be started.
    """
    ids, stamps = keys(source.columns["id"]), _stamps(source)
    refused = _refused(ids)
    before, listed = journal.found(), _listed(earlier, source.address)
    known = pa.concat_tables([before, listed]).select(["id", "stamp"])
    place = _places(ids, stamps, known, unstamped=len(before) if journal.same else 0)
    place[list(refused)] = -1
    unread = place < 0
    unread[list(refused)] = False
    rows = np.flatnonzero(unread)

    time.sleep(_TICK if len(rows) else 0)
    read, done = 0, len(source) - len(rows)
    names, marks = ids.take(pa.array(rows)), stamps.take(pa.array(rows))
    at = 0
    for some in looked(source, rows, workers=workers, patience=patience):
        here = slice(at, at + len(some))
        journal.add(_facts(names[here].to_pylist(), marks[here].to_pylist(), some))
        read += sum(seen.lasting or seen.sha256 is not None for seen in some)
        at += len(some)
        if tick is not None:
            tick(done + at)
    facts = pa.concat_tables([journal.found(), listed]).combine_chunks()
    place[place >= len(before)] += len(rows)
    place[rows] = len(before) + np.arange(len(rows))

    whole = place >= 0
    whole[whole] = pc.is_null(facts["broken"].take(pa.array(place[whole]))).to_numpy()
    kept = np.flatnonzero(whole)
    return Found(
        source, facts, place, refused, kept, firsts(facts["sha256"].take(pa.array(place[kept]))),
        read=read, reused=len(source) - len(rows) - len(refused),
        **_differences(ids, facts, place, listed),
    )  # fmt: skip


def _facts(names: list[str], stamps: list[str | None], seen: list[Seen]) -> list[tuple[Any, ...]]:
    """Rows of ``FACTS``. What may be found otherwise next time gets no stamp."""
    return [
        (name, stamp if one.lasting else None, one.sha256, one.width, one.height, one.channels, one.bytes, one.broken)
        for name, stamp, one in zip(names, stamps, seen, strict=True)
    ]


def _stamps(source: Source) -> Any:
    """The stamps of all rows. They are taken before the images are read, so a change in between is found the next time."""
    parts = [
        pa.array([source.stamp(row) for row in range(start, min(start + ROWS_AT_ONCE, len(source)))], pa.large_string())
        for start in range(0, len(source), ROWS_AT_ONCE)
    ]
    return pa.concat_arrays(parts) if parts else pa.array([], pa.large_string())


def _refused(ids: Any) -> dict[int, str]:
    """Rows that no manifest can name."""
    first = firsts(ids)
    nameless = pc.is_null(ids).to_numpy(zero_copy_only=False)
    found = {int(row): "its name is no Unicode text; rename it" for row in np.flatnonzero(nameless)}
    again = np.flatnonzero((first != np.arange(len(first))) & ~nameless)
    return found | {int(row): "its id and number are those of an earlier row" for row in again}


def _listed(earlier: Manifest | None, address: str) -> Any:
    """What a manifest says of the images of that source, those that were rejected included."""
    if earlier is None:
        return FACTS.empty_table()
    table = earlier.table.filter(pc.equal(earlier.table["source"], address))
    columns = {name: table[name].cast(FACTS.field(name).type) for name in FACTS.names if name != "broken"}
    columns |= {"id": table["uri"].cast(pa.large_string()), "broken": pa.nulls(len(table), pa.large_string())}
    lines = earlier.made.get("rejected", []) if earlier.made.get("data") == address else []
    broken = {
        "id": [line["id"] for line in lines],
        "stamp": [line.get("stamp") for line in lines],
        "broken": [line["reason"] for line in lines],
    }
    rest = [
        pa.array(broken[field.name], field.type) if field.name in broken else pa.nulls(len(lines), field.type)
        for field in FACTS
    ]
    return pa.concat_tables([pa.table([columns[name] for name in FACTS.names], schema=FACTS), pa.table(rest, FACTS)])


def _places(ids: Any, stamps: Any, known: Any, *, unstamped: int) -> Int[np.ndarray, " N"]:
    """Where in ``known`` a row is found with the same stamp, else -1.

    Args:
        unstamped: So many of the first rows of ``known`` count where there are no stamps too.
    """
    match = _index(ids, known["id"])
    place = pc.fill_null(match, -1).to_numpy().astype(np.int64)
    before = known["stamp"].combine_chunks().take(match)
    same = _true(pc.equal(stamps, before))
    neither = _true(pc.and_(pc.is_null(stamps), pc.is_null(before))) & (place < unstamped)
    return np.where((place >= 0) & (same | neither), place, -1)


def _index(values: Any, among: Any) -> Any:
    """Where in a column each value is first found, null where it is not."""
    among = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    return pc.index_in(values, value_set=among, skip_nulls=True)


def _true(column: Any) -> Bool[np.ndarray, " N"]:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)


def _differences(ids: Any, facts: Any, place: Int[np.ndarray, " N"], listed: Any) -> dict[str, int]:
    """How many rows an earlier manifest did not know, knew with other bytes, or knows in vain."""
    match = _index(ids, listed["id"])
    known = pc.is_valid(match).to_numpy(zero_copy_only=False)
    both = known & (place >= 0)
    was = listed["sha256"].take(match.filter(pa.array(both)))
    now = facts["sha256"].take(pa.array(place[both]))
    same = _true(pc.equal(was, now)) | _true(pc.and_(pc.is_null(was), pc.is_null(now)))
    images = pc.is_null(listed["broken"]).to_numpy()  # files of other kinds are among the rejected too
    images[match.drop_null().to_numpy()] = False
    return {
        "new": int(np.count_nonzero(~known & (place >= 0))),
        "changed": int(np.count_nonzero(~same)),
        "vanished": int(np.count_nonzero(images)),
    }
