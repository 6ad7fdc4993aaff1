"""``embed``: images become features."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dinoforge.base.errors import ConfigError, RunError
from dinoforge.base.files import explained, put_back, replaceable
from dinoforge.base.interrupt import interruptible
from dinoforge.data.sources.table import open_source
from dinoforge.features.kept import beside, keep
from dinoforge.features.store import FILES, TOKENS
from dinoforge.features.unfinished import noted
from dinoforge.verbs.looking import whole
from dinoforge.verbs.opening import extraction, opened, told
from dinoforge.verbs.places import refuse_different, refuse_others, refuse_within

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
        out: Folder to write; features of the same backbone, address and tokens are replaced, others are refused.
        tokens: image (one vector an image) or patches (a grid of them).
        precision: auto, fp32 or bf16; auto stays with what finished shards have.
        shard: Images in a shard: at most so many are computed again after an interruption.
    """
    if tokens not in TOKENS:
        raise ConfigError(f"tokens must be {' or '.join(TOKENS)}; got {tokens!r}.")
    refuse_within(out, data, name="data")
    path, rows = _free(out), whole("shard", shard)
    with interruptible("what was computed so far is kept"):
        source, found = open_source(data), opened(backbone)
        _same(path, {"backbone": found.fingerprint, "address": source.address, "tokens": tokens})
        how = extraction(precision, (noted(beside(path)) or {}).get("precision"))
        kept = keep(path, source, found, how, kind=tokens, on_broken=told, rows=rows, facts={})
    return Embedded(kept.rows, found.module.width, kept.images_per_second, kept.reused, kept.quarantined, out)


def _same(path: Path, now: Mapping[str, str]) -> None:
    """See that features which are there are of the same words: pictures may have come and gone, all else is something else.

    Raises:
        ConfigError: They are of others.
        RunError: Nobody can tell of what they are.
    """
    file = path / "features.json"
    if not file.exists():
        return
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        before = {name: facts[name] for name in now}
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{file} cannot be read; give a new folder, or remove {path}.") from None
    refuse_different(path, "features", before, now)


def _free(out: str) -> Path:
    """See that nothing is lost by writing features there.

    Raises:
        ConfigError: Something else is there, or it is no name for a folder.
    """
    path = Path(out)
    if len(os.fsencode(path.name)) > _LONGEST:
        raise ConfigError(f"out={out} has a name of more than {_LONGEST} bytes; give a shorter one.")
    with explained(path):
        put_back(replaceable(path))
        if path.exists() and not (path / "features.json").exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"out={out} exists and holds no features; give a new folder.")
        refuse_others(path, FILES)
    return path
