"""``scan``: a source becomes a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dinoforge.base.errors import ConfigError
from dinoforge.base.log import track
from dinoforge.data.manifest import write_manifest
from dinoforge.data.scan import scan as scan_source
from dinoforge.data.sources.table import open_source


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a scan found."""

    images: int
    rejected: int
    exact_duplicates: int
    out: str


def scan(*, data: str, out: str) -> Scanned:
    """Look at every image once and write a manifest: size, key, label, exact copies. Broken ones are named in it.

    Args:
        data: Images: a folder, a Parquet file, toy://species.
        out: Manifest to write, a .parquet file.
    """
    path = Path(out)
    if path.suffix != ".parquet":
        raise ConfigError(f"out={out} must be a .parquet file.")
    source = open_source(data)
    rows, rejected = [], list(source.rejected)
    for seen in track(scan_source(source), "scan", len(source)):
        if seen.row is None:
            rejected.append((seen.name, seen.reason))
        else:
            rows.append(seen.row)
    made = {
        "verb": "scan", "data": data, "fingerprint": source.fingerprint,
        "rejected": [{"id": name, "reason": reason} for name, reason in rejected],
    }  # fmt: skip
    write_manifest(path, rows, made=made)
    copies = sum(bool(row["reason"]) for row in rows)
    return Scanned(images=len(rows), rejected=len(rejected), exact_duplicates=copies, out=out)
