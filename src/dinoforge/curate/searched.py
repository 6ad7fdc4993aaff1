"""Searches for near copies as tasks on the engine of the curation.

A pool of at most ``QUERIES`` images, with no more evaluation images, is searched in the memory of this process: that takes
some hundred megabytes. A larger one is not: its vectors lie in files, each task seeks the neighbours of a share of them, and
what these propose is sorted part after part (``candidates``). What is found is the same, pair for pair
(``features/sharded.py``).

Axes: N rows, D channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.errors import RunError
from dinoforge.base.files import clear_leftovers
from dinoforge.curate.executors.run import Lost, Shard, Shards
from dinoforge.curate.flat import write_array
from dinoforge.features.compressed import Rows
from dinoforge.features.exact import ROWS_AT_ONCE
from dinoforge.features.pairs import LayoutConfig
from dinoforge.features.sharded import Each, ShardedConfig, ShardedNeighbours, sharded_search, sharded_self_search

QUERIES = 16_384
"""Images whose neighbours a task seeks: their vectors, neighbours and candidates are some hundred megabytes."""
_TASKS = 4_096
"""At most: every one reads the codes of the whole pool. So the shares of more than 67 million images are larger."""


def share_of(*counts: int) -> int | None:
    """Images whose neighbours a task seeks, whole blocks; None where the largest set of images is not more than one share."""
    most = max(counts)
    return None if most <= QUERIES else -(-max(QUERIES, most // _TASKS) // ROWS_AT_ONCE) * ROWS_AT_ONCE


def tasks(crew: Shards, title: str) -> Each:
    """What runs the tasks of a search on an engine: one that fails is tried again, as any shard. Answers come as they are.

    Raises:
        RunError: A task is given up.
    """

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        shards = [Shard(f"{number} of {len(jobs)}", 1, (work, job)) for number, job in enumerate(jobs, start=1)]
        for place, found in crew.each(_called, shards, title=title, total=len(jobs), unit="parts"):
            if isinstance(found, Lost):
                raise RunError(
                    f"{title}: part {shards[place].name} is given up: {found.why}. Is there memory left? Take fewer workers."
                )
            yield found

    return each


def _called(job: tuple[Callable[[Any], Any], Any], _processes: int) -> Any:
    work, what = job
    return work(what)


@dataclass(frozen=True, slots=True)
class Searches:
    """Searches by tasks, for what one configuration asks for."""

    crew: Shards
    folder: Path
    """Of vectors, and of what tasks leave; all that it holds is of one pool."""
    config: LayoutConfig
    share: int

    @classmethod
    def begun(cls, crew: Shards, parts: Path, mark: str, config: LayoutConfig, share: int) -> Searches:
        """With what an earlier start left of the same; that of others goes.

        Args:
            mark: Of the pool and of all else that vectors depend on.
        """
        folder = parts.absolute() / f"search-{mark}"
        for other in set(parts.absolute().glob("search-*")) - {folder}:
            shutil.rmtree(other, ignore_errors=True)
        if folder.exists():
            clear_leftovers(folder, "*")
        return cls(crew, folder, config, share)

    def vectors(self, name: str, rows: Rows) -> list[Path]:
        """The rows in float32, one file a share; written unless they are there.

        Raises:
            RunError: They cannot be written.
        """
        paths = []
        for start in range(0, len(rows), self.share):
            stop = min(start + self.share, len(rows))
            paths.append(self.folder / f"{name}-{start:012}.npy")
            if not paths[-1].exists():
                # In blocks of all rows: what is a product of matrices is rounded as where they are in memory.
                parts = (rows[at : min(at + ROWS_AT_ONCE, stop)] for at in range(start, stop, ROWS_AT_ONCE))
                write_array(paths[-1], (stop - start, *rows.shape[1:]), np.float32, parts=parts)
        return paths

    def within(self, vectors: Sequence[Path]) -> ShardedNeighbours:
        """The nearest others of all."""
        return sharded_self_search(
            vectors, count=self.config.neighbours, threshold=self.config.candidate, config=self.config.search,
            sharded=ShardedConfig(queries=self.share), folder=self.folder, each=tasks(self.crew, "search pool"),
        )  # fmt: skip

    def among(
        self, queries: Sequence[Path], database: Sequence[Path], title: str, *, count: int | None = None,
        threshold: float | None = None,
    ) -> ShardedNeighbours:  # fmt: skip
        """The nearest of a database.

        Args:
            title: For the person at the terminal.
            count: Of each; as many as copies are sought of by default.
            threshold: Cosine above which none must be missed; that of copies by default.
        """
        return sharded_search(
            queries, database, count=count or self.config.neighbours,
            threshold=self.config.candidate if threshold is None else threshold, config=self.config.search,
            sharded=ShardedConfig(queries=self.share), folder=self.folder, each=tasks(self.crew, f"search {title}"),
        )  # fmt: skip
