"""Every image becomes a vector, by which retrieval and balance go."""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoforge.base.config import Config
from dinoforge.base.errors import DataError
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped


class EmbeddingConfig(Config):
    """Nothing can be set; ``backbone=`` says what embeds."""


def _run(state: State, config: EmbeddingConfig) -> Result:
    known = state.embeddings
    usable, vectors = known.of(state.pool, state.alive)
    for images in state.seeds:
        theirs = known.of(images, images.whole)[1]
        if theirs.shape[1] != vectors.shape[1]:
            raise DataError(
                f"{images.source.address} has embeddings of {theirs.shape[1]} channels, the pool of {vectors.shape[1]}."
            )
    gone = np.setdiff1d(state.alive, usable)
    dropped = Dropped.alone(gone, np.full(len(gone), "cannot be embedded"), stage="embedding")
    lost = known.lost(state.pool, gone)
    detail = np.asarray([lost.get(row, "") for row in gone.tolist()], dtype=np.str_)
    facts = {"embedder": known.how.name, "width": int(vectors.shape[1])}
    return Result(dropped, {"detail": detail} if lost else {}, facts, known.lasting)


def depends(state: State, _config: Config) -> Any:
    """The weights that embed, and the seeds."""
    return [state.embeddings.how.fingerprint, [images.fingerprint for images in state.seeds]]


EMBEDDING = Stage(
    about="images become vectors", run=_run, config=EmbeddingConfig, depends=depends,
    embeds=lambda _settings: True,
)  # fmt: skip
