"""What a stage sees, what it gives, and what it is: the seam between the pipeline and its stages.

Axes: N rows of a pool, n of them that are still in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dinoforge.base.config import Config
from dinoforge.curate.embeddings import Embedder, Embeddings
from dinoforge.curate.executors.run import Shards, here
from dinoforge.curate.images import Images
from dinoforge.curate.why import Dropped


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage found. All of it can be written down and read back."""

    dropped: Dropped
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For later stages and for the manifest; axes are the stage's own."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the summary, as JSON has them."""
    lasting: bool = True
    """Whether another start would find the same; not where an image could not be read, or a shard was given up."""


@dataclass(frozen=True, slots=True)
class State:
    """What a stage is a function of, besides its settings."""

    pool: Images
    alive: Int[np.ndarray, " n"]
    """Rows of the pool that are still in, sorted."""
    seeds: Sequence[Images]
    keep_out: Images | None
    results: Mapping[str, Result]
    """Of the stages that ran before, by name."""
    embeddings: Embeddings
    parts: Path
    """A folder of the stage's own for what it makes piece by piece."""
    crew: Shards = field(default_factory=here)
    """Takes its shards; which one changes nothing of what it finds."""
    descriptions: Embeddings | None = None
    """Learnt descriptors of near copies; None takes those that need no weights."""
    background: Images | None = None
    """Images that are copies of nothing, to which learnt similarities are told relative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a curation."""

    about: str
    """What it does, for the report."""
    run: Callable[[State, Any], Result]
    """(state, settings) to what it found; the same for the same."""
    config: type[Config]
    needs: tuple[str, ...] = ()
    """Stages that must have run before."""
    depends: Callable[[State, Any], Any] = lambda _state, _config: None
    """What its result depends on besides the pool, the rows still in, its settings and what it needs: fingerprints."""
    files: Callable[[Any], Any] = lambda _settings: None
    """Keys of the files that these settings of the whole curation name."""
    absent: Callable[[Any], str | None] = lambda _settings: None
    """Why these settings of the whole curation leave it nothing to do; None where it has something."""
    ready: Callable[[Any, Embedder], None] = lambda _settings, _embedder: None
    """Raises where what these settings of the whole curation name cannot be used; asked before an image is read."""
    embeds: Callable[[Any], bool] = lambda _settings: False
    """Whether it goes by embeddings with these settings of the whole curation."""
    tidy: Callable[[Path], None] = lambda _parts: None
    """Removes from the folder of its parts what is of no use once its result lies on the disk."""
    safety: bool = False
    """Whether it is a filter for safety: without one the manifest says so."""
    version: int = 1
    """Another one is another result."""
