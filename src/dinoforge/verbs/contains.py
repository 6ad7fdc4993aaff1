"""``contains``: is this image, or a near copy of it, in a manifest?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.base.interrupt import interruptible
from dinoforge.curate.stages.copies import CopiesConfig
from dinoforge.data.sources.table import open_source
from dinoforge.features.described import stored_copies
from dinoforge.features.pairs import DUPLICATE, LAYOUT_DUPLICATE
from dinoforge.verbs.describing import describer_of
from dinoforge.verbs.manifests import stored_at
from dinoforge.verbs.reading import worker_count


@dataclass(frozen=True, slots=True)
class Contained:
    """What of the asked images is there."""

    images: int
    """Asked about."""
    contained: int
    """Of these, with a match."""
    rejected: int
    """Of these, that could not be read."""
    near: bool
    """Whether near copies were looked for: only where descriptors are stored."""
    matches: list[dict[str, Any]]
    """``image`` (the asked one's id), ``id`` (in the manifest), ``similarity``, ``kind`` (exact or near)."""


def contains(
    *, in_: str, images: str, threshold: str | float | None = None, descriptor: str | None = None,
    trust_sha256: str | None = None, precision: str = "auto", workers: str | int | None = None,
) -> Contained:  # fmt: skip
    """Say which images, or near copies of them, are in a manifest, from what `curate` stored with it.

    Args:
        in: A folder of curate, its manifest.parquet, or a run that was trained on one. One of scan knows exact copies alone.
        images: Images to ask about, any source.
        threshold: Similarity above which two are near copies [0.925; with descriptor= cosine 0.6].
        descriptor: The file or backbone that curate looked for copies with, where it had one.
        trust_sha256: SHA-256 of that file where it is TorchScript, a program that is run then.
        precision: Of the descriptor: auto, fp32 or bf16.
        workers: Processes that read; all cores by default.
    """
    limit = with_settings(CopiesConfig(), {} if threshold is None else {"threshold": threshold}).threshold
    count = worker_count(workers)
    path, stored = stored_at("in", Path(in_))
    near = stored.values.shape[1] > 0
    for name, value in (("threshold", threshold), ("descriptor", descriptor)):
        if value is not None and not near:
            raise ConfigError(f"{name}={value} has no effect: {path} has no descriptors beside it.")
    finds = describer_of(path, stored, descriptor, trust_sha256=trust_sha256, precision=precision)
    if limit is None:
        limit = LAYOUT_DUPLICATE if finds is None else DUPLICATE
    source = open_source(images)
    embed = None if finds is None else finds.embed
    with interruptible("nothing was written"):
        found, whole = stored_copies(source, stored, threshold=limit, embed=embed, workers=count)
    ids = source.columns["id"]
    return Contained(
        images=len(source), contained=len({one.image for one in found}), rejected=int((~whole).sum()), near=near,
        matches=[{**asdict(one), "image": str(ids[one.image])} for one in found],
    )  # fmt: skip
