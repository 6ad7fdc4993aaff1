"""``contains``: is this image, or a near copy of it, in a manifest?"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.interrupt import interruptible
from dinoforge.base.log import say
from dinoforge.curate.embeddings import Embedder, Embeddings
from dinoforge.curate.images import Images, read_images
from dinoforge.curate.stages.copies import CopiesConfig
from dinoforge.data.manifest import is_manifest, read_made, read_manifest
from dinoforge.data.sources.table import open_source
from dinoforge.features.copies import NAME, SIDE
from dinoforge.features.descriptors import Descriptors, Match, matches, read_descriptors
from dinoforge.features.pairs import DUPLICATE, LAYOUT_DUPLICATE, LayoutConfig
from dinoforge.recipes.settle import settle
from dinoforge.verbs.describing import describer
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
    count, path = worker_count(workers), _manifest(Path(in_))
    stored, near = _stored(path)
    for name, value in (("threshold", threshold), ("descriptor", descriptor)):
        if value is not None and not near:
            raise ConfigError(f"{name}={value} has no effect: {path} has no descriptors beside it.")
    finds = _describer(path, stored, descriptor, trust_sha256, precision)
    if limit is None:
        limit = LAYOUT_DUPLICATE if finds is None else DUPLICATE
    source = open_source(images)
    with interruptible("nothing was written"), tempfile.TemporaryDirectory() as folder:
        asked = read_images(source, Path(folder), name="images", workers=count)
        rows = asked.whole
        known = None if finds is None else Embeddings(Path(folder) / "described", finds)
        mine = _asked(asked, rows, near, known)
    found = matches(mine, stored, threshold=limit, config=LayoutConfig(), workers=count)
    ids = source.columns["id"]
    return Contained(
        images=len(source), contained=len({one.image for one in found}), rejected=len(source) - len(rows), near=near,
        matches=[_line(one, str(ids[rows[one.image]])) for one in found],
    )  # fmt: skip


def _line(match: Match, image: str) -> dict[str, Any]:
    return {**asdict(match), "image": image}


def _manifest(path: Path) -> Path:
    """The manifest that is meant.

    Raises:
        ConfigError: None is.
    """
    if not path.exists():
        raise ConfigError(f"in={path} does not exist; give a folder of curate, a manifest or a run.")
    if path.is_file():
        return path
    if (path / "manifest.parquet").exists():
        return path / "manifest.parquet"
    if (path / "config.yaml").exists():
        data = settle({"config": str(path / "config.yaml")}).recipe.data.source
        if data is not None and is_manifest(Path(data)):
            return Path(data)
        raise ConfigError(f"in={path} was trained on {data}, which is no manifest; give the manifest of its images.")
    raise ConfigError(f"in={path} holds neither manifest.parquet nor a run.")


def _stored(path: Path) -> tuple[Descriptors, bool]:
    """What is known of the manifest's images, and whether it is enough to find near copies."""
    manifest = read_manifest(path, columns=["id", "sha256"])
    ids, keys = manifest.column("id"), manifest.column("sha256")
    beside = read_made(path).get("descriptors")
    if not isinstance(beside, str):
        say(f"{path} has no descriptors beside it: only exact copies are found. `dinoforge curate` stores them.")
        nothing = np.zeros((len(ids), 0), np.float16)
        return Descriptors(ids, keys, np.zeros((len(ids), SIDE, SIDE, 3), np.uint8), nothing), False
    if Path(beside).name != beside:  # a manifest of unknown origin names no folder elsewhere
        raise DataError(f"{path} names descriptors outside its folder: {beside}.")
    found = read_descriptors(path.parent / beside)
    if not np.array_equal(found.ids, ids):
        raise DataError(f"{path.parent / beside} holds descriptors of another manifest; run `dinoforge curate` again.")
    return found, True


def _asked(images: Images, rows: np.ndarray, near: bool, known: Embeddings | None) -> Descriptors:
    values, name = np.zeros((len(rows), 0), np.float16), NAME
    if known is not None:
        values, name = known.dense(images, rows), known.how.name
    elif near:
        values = images.descriptors[rows]
    return Descriptors(images.source.columns["id"][rows], images.sha256[rows], images.thumbnails[rows], values, name)


def _describer(
    path: Path, stored: Descriptors, descriptor: str | None, trust_sha256: str | None, precision: str
) -> Embedder | None:
    """What describes the asked images as the stored ones were; None for the descriptor that needs no weights.

    Raises:
        ConfigError: Another one, one that is missing, or settings of one that is not used.
    """
    what = f"{path} has descriptors {stored.name!r} of width {stored.values.shape[1]} beside it"
    if stored.name == NAME:
        for name, value in (("descriptor", descriptor), ("trust_sha256", trust_sha256)):
            if value is not None:
                raise ConfigError(f"{name}={value} has no effect: {what}, which need no weights.")
        if precision != "auto":
            raise ConfigError(f"precision={precision} has no effect without descriptor=.")
        return None
    if descriptor is None:
        raise ConfigError(f"{what}; give descriptor= with the weights that made them.")
    found = describer(descriptor, precision, trust_sha256=trust_sha256)
    if found.name != stored.name:
        raise ConfigError(f"descriptor={descriptor} is {found.name!r}; {what}. Give the weights that made them.")
    return found
