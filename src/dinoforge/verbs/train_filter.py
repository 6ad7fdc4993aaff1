"""``curate train_filter=``: from images that were sorted into two folders, keep and drop, to a filter for safety."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.interrupt import interruptible
from dinoforge.base.log import say
from dinoforge.curate.embeddings import LAYOUT, Embeddings
from dinoforge.curate.executors.run import here
from dinoforge.curate.images import read_images
from dinoforge.curate.safety.trained import FACTS, FOLDS, WEIGHTS, fit, held_out, measured, write_filter
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.verbs.embedding import embedder
from dinoforge.verbs.reading import worker_count

_THRESHOLD = 0.5
KEYS = ("train_filter", "out", "backbone", "precision", "workers")
"""Keys of ``curate`` that have something to say here."""


@dataclass(frozen=True, slots=True)
class TrainedFilter:
    """A filter, and how well it tells images apart that it was not trained on."""

    images: int
    """Trained on, both kinds."""
    keep: int
    drop: int
    set_aside: int
    """Could not be used."""
    accuracy: float
    """Share of the images that is told right when held out."""
    precision: float
    """Of the images that it would drop, the share that lies in drop; NaN where it would drop none."""
    recall: float
    """Of the images in drop, the share that it would drop."""
    threshold: float
    """Score from which on an image is dropped."""
    embedder: str
    """What its images were embedded by; only a curation that embeds by the same can use it."""
    out: str


def train_filter(
    address: str, out: str, *, backbone: str | None, precision: str, workers: str | int | None
) -> TrainedFilter:
    """Train a filter and write it to a folder of its own.

    Raises:
        ConfigError: The folder holds something else.
        DataError: The images are not sorted into keep and drop, or too few.
    """
    count, folder = worker_count(workers), Path(out)
    _free(folder)
    source = open_source(address)
    bad = sorted_out(source)
    how = embedder(backbone, precision)
    if how is LAYOUT:
        say("Without backbone= images are told apart by colours and edges alone; kinds of things take a backbone.")
    with interruptible("nothing was written"), tempfile.TemporaryDirectory() as place:
        images = read_images(source, Path(place) / "read", name="images", crew=here(count))
        if not len(images.whole):
            raise DataError(f"{source.address} holds no image that can be used; the first: {images.broken[0]}.")
        rows, vectors = Embeddings(Path(place) / "embedded", how).of(images, images.whole)
    kinds = bad[rows]
    figures = measured(held_out(vectors, kinds), kinds, threshold=_THRESHOLD)
    counts = {"keep": int((~kinds).sum()), "drop": int(kinds.sum())}
    facts = {
        "embedder": how.known_as, "threshold": _THRESHOLD, **counts, "held_out": asdict(figures),
        "data": {"address": source.address, "fingerprint": source.fingerprint},
    }  # fmt: skip
    write_filter(folder, fit(vectors, kinds), facts)
    say(
        f"Held out in turn, one part of {FOLDS} at a time: of {counts['drop']:,} images to drop "
        f"{figures.recall:.1%} would be dropped, of {counts['keep']:,} to keep {_kept_wrong(figures, counts):.1%}. "
        f"Use it by safety.trained.folder={out}."
    )
    return TrainedFilter(
        images=len(rows), **counts, set_aside=len(source) - len(rows), **asdict(figures), threshold=_THRESHOLD,
        embedder=how.known_as, out=out,
    )  # fmt: skip


def _kept_wrong(figures: Any, counts: Mapping[str, int]) -> float:
    """Share of the images to keep that would be dropped."""
    wrong = (1 - figures.accuracy) * sum(counts.values()) - (1 - figures.recall) * counts["drop"]
    return max(0.0, wrong / counts["keep"]) if math.isfinite(wrong) else 0.0


def sorted_out(source: Source) -> Bool[np.ndarray, " N"]:
    """Which rows of a source lie in drop; the others lie in keep.

    Raises:
        DataError: Some lie in neither, or one of the two is empty.
    """
    names = np.char.lower(source.columns["label_name"].astype(np.str_)) if "label_name" in source.columns else None
    wanted = (
        f"{source.address} takes images sorted into two folders, keep and drop (or a column label with these names)"
    )
    if names is None:
        raise DataError(f"{wanted}; it has no labels.")
    kinds = set(names.tolist())
    if kinds != {"keep", "drop"}:
        told = ", ".join(repr(name) for name in sorted(kinds)[:5])
        raise DataError(f"{wanted}; it has {told}{' …' if len(kinds) > 5 else ''}.")
    return np.asarray(names == "drop")


def _free(folder: Path) -> None:
    """See that nothing else is written over.

    Raises:
        ConfigError: The folder holds something that is no filter.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder} is a file; give a folder.")
    strange = [path.name for path in folder.iterdir() if path.name not in {WEIGHTS, FACTS}] if folder.is_dir() else []
    if strange:
        raise ConfigError(f"out={folder} holds other files ({sorted(strange)[0]}); give a new folder.")


def refuse_other(given: Iterable[str]) -> None:
    """Refuse keys that say what is curated.

    Raises:
        ConfigError: There is one.
    """
    for name in given:
        if name not in KEYS:
            raise ConfigError(f"{name}= has no effect with train_filter=, which trains a filter and curates nothing.")
