"""All engines of a curation."""

from __future__ import annotations

from dinoforge.curate.executors.dask import DASK
from dinoforge.curate.executors.inline import INLINE
from dinoforge.curate.executors.processes import PROCESSES
from dinoforge.curate.executors.ray import RAY
from dinoforge.curate.executors.seam import Engine
from dinoforge.curate.executors.slurm import SLURM

EXECUTORS: dict[str, Engine] = {
    "processes": PROCESSES,
    "inline": INLINE,
    "ray": RAY,
    "dask": DASK,
    "slurm": SLURM,
}
