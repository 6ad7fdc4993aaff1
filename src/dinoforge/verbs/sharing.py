"""What verbs that cut their work into shards share: which engine runs these, from what was typed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from dinoforge.base.errors import ConfigError, unknown
from dinoforge.curate.executors.run import Shards, running
from dinoforge.curate.executors.seam import Wanted
from dinoforge.curate.executors.table import EXECUTORS
from dinoforge.verbs.reading import worker_count


def engine_for(engine: str, folder: Path, *, workers: str | int | None) -> AbstractContextManager[Shards]:
    """An engine, to be opened.

    Args:
        folder: For what is sent to all its processes.

    Raises:
        ConfigError: No such engine, a value that is none, or a setting that it would ignore.
    """
    if engine not in EXECUTORS:
        raise unknown("engine", engine, EXECUTORS)
    chosen = EXECUTORS[engine]
    if workers is not None and "workers" not in chosen.takes:
        takers = ", ".join(other for other, one in EXECUTORS.items() if "workers" in one.takes)
        raise ConfigError(f"workers={workers} has no effect with engine={engine}; it is for {takers}.")
    return running(chosen, Wanted(folder, None if workers is None else worker_count(workers)))
