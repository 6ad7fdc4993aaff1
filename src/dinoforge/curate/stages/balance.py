"""Evenly over a hierarchy of clusters, so many images are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from dinoforge.base.config import Count
from dinoforge.curate.balance import BalanceConfig, balanced, evenness, hierarchy
from dinoforge.curate.stages.embedding import depends
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Dropped


class DrawConfig(BalanceConfig):
    """A hierarchy of clusters, and how many images are drawn from it."""

    images: Count = Field(ge=1)
    """How many; all where there are fewer."""


def _run(state: State, config: DrawConfig) -> Result:
    rows, vectors = state.embeddings.of(state.pool, state.alive)
    tree = hierarchy(vectors, config=config)
    drawn, times = np.unique(balanced(tree, images=config.images, config=config), return_counts=True)
    top = tree.cluster(len(tree.levels) - 1)
    clusters = len(tree.levels[-1].centres)
    gone = np.setdiff1d(state.alive, rows[drawn])
    arrays = {
        "row": rows, "leaf": tree.cluster(0), "top": top,
        "times": np.bincount(drawn, weights=times, minlength=len(rows)).astype(np.int64),
    }  # fmt: skip
    facts = {
        "levels": [len(level.centres) for level in tree.levels],
        "evenness": {"before": evenness(top, classes=clusters), "after": evenness(top[drawn], classes=clusters)},
    }
    dropped = Dropped.alone(gone, np.full(len(gone), "not drawn"), stage="balance")
    return Result(dropped, arrays, facts, state.embeddings.lasting)


def _absent(settings: Any) -> str | None:
    return "balance.images and balance.levels are not given" if settings.balance is None else None


BALANCE = Stage(
    about="an even draw over clusters of clusters", run=_run, config=DrawConfig, needs=("embedding",),
    depends=depends, absent=_absent,
)  # fmt: skip
