"""All engines of a curation."""

from __future__ import annotations

from dinoforge.curate.executors.inline import INLINE
from dinoforge.curate.executors.processes import PROCESSES
from dinoforge.curate.executors.seam import Engine

EXECUTORS: dict[str, Engine] = {
    "processes": PROCESSES,
    "inline": INLINE,
}
