"""``embed``: images become features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dinoforge.base.errors import ConfigError
from dinoforge.base.files import append_line
from dinoforge.base.log import track
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import extract
from dinoforge.features.store import TOKENS, write_features
from dinoforge.verbs.opening import extraction, opened, told


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was embedded."""

    rows: int
    width: int
    images_per_second: float
    quarantined: int
    out: str


def embed(*, backbone: str, data: str, out: str, tokens: str = "image", precision: str = "auto") -> Embedded:
    """Write the features of every image: features.npy (any NumPy reads it), ids.parquet, features.json.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER or timm:NAME.
        data: Images: a folder, a Parquet file, toy://species.
        out: Folder to write; one that holds features is replaced.
        tokens: image (one vector an image) or patches (a grid of them).
        precision: auto, fp32 or bf16.
    """
    if tokens not in TOKENS:
        raise ConfigError(f"tokens must be {' or '.join(TOKENS)}; got {tokens!r}.")
    path = Path(out)
    if path.exists() and not (path / "features.json").exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"out={out} exists and holds no features; give a new folder.")
    source, found = open_source(data), opened(backbone)
    how = extraction(precision)
    broken: list[dict[str, str]] = [{"id": name, "reason": reason} for name, reason in source.rejected]

    def set_aside(name: str, reason: str) -> None:
        told(name, reason)
        broken.append({"id": name, "reason": reason})

    parts = extract(found.module.to(how.device), source, found.preprocessing, how, on_broken=set_aside)
    facts = {"backbone": found.fingerprint, "data": source.fingerprint, "address": data, "precision": how.precision}
    began = time.perf_counter()
    total = -(-len(source) // how.rows_at_once)
    rows = write_features(
        path, track(parts, "embed", total, unit="batches"), columns=source.columns, tokens=tokens, facts=facts
    )
    rate = rows / (time.perf_counter() - began)
    for line in broken:
        append_line(path / "quarantine.jsonl", line)
    return Embedded(rows=rows, width=found.module.width, images_per_second=rate, quarantined=len(broken), out=out)
