"""What a run came to, and its ``summary.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinoforge.base.files import read_lines, write_json
from dinoforge.base.hardware import versions
from dinoforge.recipes.quality import LABEL_FREE
from dinoforge.train.observe import comparable


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What a run came to."""

    steps: int
    images: int
    events: list[str]
    resumed_from: int
    """Steps that earlier starts of the same run had done."""
    quarantined: int
    """Images that could not be used."""
    backbone: str
    seconds: float
    """Wall time of the steps, quality probes and checkpoints, over all starts whose steps count."""
    images_per_second: float
    peak_memory_bytes: int
    """The most that the main process of a rank held (on a GPU: that torch took there) in this start."""
    losses: dict[str, float] = field(default_factory=dict)
    """Of the last step."""
    knn: dict[str, float] | None = None
    """First, last and best accuracy of the probe as it is now set, ``best`` not of backbones that the run went on without: the
    disk refused them, or it went back beyond where they would be known; null without a labelled probe."""
    rank: float | None = None
    """Effective rank of the features after the last step."""
    uniformity: float | None = None
    """How evenly the features lie on the sphere then; lower is more even."""
    smoothness: float | None = None
    """How much more alike neighbouring patches are then than others of the same image."""
    stability: float | None = None
    """Share of nearest neighbours that the last two looks have in common."""
    retention: dict[str, float] | None = None
    """What was left of old skill at the last look, where that is watched (``continuation.retention``)."""


def concluded(out: Path, history: Sequence[dict[str, Any]], done: Pretrained) -> Pretrained:
    """The same with what was measured on the way; all of it is written into the run's folder.

    Args:
        history: What was measured, oldest first.
    """
    rows = read_lines(out / "metrics.jsonl")
    last = history[-1] if history else {}
    compared = comparable(history, last.get("protocol", ""))
    knn = [row["knn"] for row in compared]
    kept = [row["knn"] for row in compared if row.get("kept", True)]
    label_free: dict[str, Any] = {name: last.get(name) for name in LABEL_FREE}
    done = replace(
        done,
        losses=rows[-1]["losses"] if rows else {},
        knn={"first": knn[0], "last": knn[-1], "best": max(kept or knn)} if knn else None,
        retention={name: value for name, value in last.items() if name.startswith("retention_")} or None,
        **label_free,
    )
    facts = {name: getattr(done, name) for name in Pretrained.__slots__}
    write_json(out / "summary.json", {**facts, "history": history, "versions": versions()})
    return done
