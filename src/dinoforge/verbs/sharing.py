"""What verbs that cut their work into shards share: which engine runs these, from what was typed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from dinoforge.base.errors import ConfigError, unknown
from dinoforge.curate.executors.run import Shards, running
from dinoforge.curate.executors.seam import Wanted
from dinoforge.curate.executors.table import EXECUTORS
from dinoforge.verbs.reading import worker_count


def engine_for(
    engine: str, folder: Path, *, workers: str | int | None, address: str | None, gpus_per_task: str | float | None,
    networks: bool,
) -> AbstractContextManager[Shards]:  # fmt: skip
    """An engine, to be opened.

    Args:
        folder: For what is sent to all its processes.
        networks: Whether a shard runs a network that a GPU may run.

    Raises:
        ConfigError: No such engine, a value that is none, or a setting that it would ignore.
    """
    if engine not in EXECUTORS:
        raise unknown("engine", engine, EXECUTORS)
    chosen = EXECUTORS[engine]
    given = {"workers": workers, "address": address, "gpus_per_task": gpus_per_task}
    for name, value in given.items():
        if value is not None and name not in chosen.takes:
            takers = ", ".join(other for other, one in EXECUTORS.items() if name in one.takes)
            raise ConfigError(f"{name}={value} has no effect with engine={engine}; it is for {takers}.")
    if gpus_per_task is not None and not networks:
        raise ConfigError(
            f"gpus_per_task={gpus_per_task} has no effect: neither backbone= nor descriptor= names a network."
        )
    count = None if workers is None else worker_count(workers)
    return running(chosen, Wanted(folder, count, address, _gpus(gpus_per_task)))


def _gpus(given: str | float | None) -> float | None:
    if given is None:
        return None
    try:
        count = float(given)
    except ValueError:
        raise ConfigError(f"gpus_per_task takes a number; got {given!r}.") from None
    if not 0 < count <= 64 or (count > 1 and count != int(count)):
        raise ConfigError(f"gpus_per_task must be a share of one GPU, or a whole number of them up to 64; got {given}.")
    return count
