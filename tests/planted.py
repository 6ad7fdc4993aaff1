"""What a curation found of what was planted in its pool."""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

MILD = ("exact", "jpeg", "resize", "colour", "crop up to 30 %", "flip")
"""Kinds of copies that must be found. Of crops, those that keep 70 % of the area."""
POOL = "toy://{world}?images={images}&seed={seed}&copies=0.2&leaks=0.06&junk=0.1&imbalance=8&split={split}"


@dataclass
class Planted:
    copies: dict
    """Kind to (found, planted)."""
    merged: int
    """Images dropped as copies of another than the one that they were made of, or as copies where they are none."""
    dropped: int
    """As copies."""
    distinct: int
    """Different pictures in the pool."""
    leaks: dict
    """Kind to (removed, planted)."""
    plain_as_leaks: int
    plain: int
    junk: tuple
    """(dropped, planted)."""
    plain_as_junk: int

    @property
    def precision(self):
        return 1 - self.merged / max(self.dropped, 1)

    def share(self, counts, kinds=MILD):
        found, planted = (sum(counts[kind][place] for kind in kinds if kind in counts) for place in (0, 1))
        return found / planted


def planted(out, columns):
    """Of a curation without retrieval and balance.

    Args:
        columns: Of the pool, as a toy world has them: ``role``, ``copy_of``, ``copy_kind``, ``copy_strength``. Where there is
            ``shows``, rows that are equal in it show the same; of rows whose role is ``unknown`` nothing is known.
    """
    ids, role = columns["id"].tolist(), columns["role"]
    at = {name: row for row, name in enumerate(ids)}
    gone = {line["id"]: line for line in pq.read_table(out / "dropped.parquet").to_pylist()}
    kept = set(pq.read_table(out / "manifest.parquet", columns=["id"])["id"].to_pylist())
    assert kept | gone.keys() == set(ids)
    assert not kept & gone.keys()
    stage = np.asarray([gone[name]["stage"] if name in gone else "" for name in ids])
    origin = np.asarray([of or name for name, of in zip(ids, columns["copy_of"].tolist(), strict=True)])
    kind = np.asarray(columns["copy_kind"], object)
    cut = kind == "crop"
    kind[cut] = np.where(columns["copy_strength"][cut] >= 0.7, "crop up to 30 %", "crop of more")

    stays = {row: at[gone[name]["against"]] for name, row in at.items() if stage[row] in {"exact", "hash", "copies"}}

    def root(row):
        while row in stays:
            row = stays[row]
        return row

    copies, leaks = {}, {}
    for row in np.flatnonzero(role == "copy").tolist():
        if stage[row] in {"read", "filters"} or stage[at[origin[row]]] in {"read", "filters"}:
            continue
        copies.setdefault(kind[row], []).append(root(row) == root(at[origin[row]]))
    for row in np.flatnonzero(role == "leak").tolist():
        leaks.setdefault(kind[row], []).append(ids[row] in gone)
    plain, junk, unknown = role == "plain", role == "junk", role == "unknown"
    shows = columns.get("shows", origin)
    judged = [(row, other) for row, other in stays.items() if not (unknown[row] or unknown[other])]
    return Planted(
        copies={name: (sum(hits), len(hits)) for name, hits in sorted(copies.items())},
        merged=sum(shows[row] != shows[other] for row, other in judged),
        dropped=len(judged),
        distinct=len(np.unique(shows[~junk & ~unknown])),
        leaks={name: (sum(hits), len(hits)) for name, hits in sorted(leaks.items())},
        plain_as_leaks=int(((stage == "leaks") & plain).sum()),
        plain=int(plain.sum()),
        junk=(int((junk & (stage != "")).sum()), int(junk.sum())),
        plain_as_junk=int((plain & np.isin(stage, ["read", "filters"])).sum()),
    )
