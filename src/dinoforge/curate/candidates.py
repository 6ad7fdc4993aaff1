"""Pairs that are worth a close look, in files: their number grows faster than that of the images.

Axes: P pairs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dinoforge.base.errors import RunError
from dinoforge.base.files import clear_leftovers, explained
from dinoforge.curate.flat import read_columns, write_columns
from dinoforge.features.pairs import Candidates

_RECORD = np.dtype([("left", "<i8"), ("right", "<i8"), ("flip", "?")])


def write_candidates(folder: Path, found: Iterable[Candidates], *, each: int) -> int:
    """Write what was proposed, each once, sorted by left, right and flip, as columns (``flat``); how many there are.

    In memory is one part of what is found, or all candidates whose left rows are one part of the rows.

    Args:
        each: Rows of such a part.

    Raises:
        RunError: They cannot be written.
    """
    scratch = folder.parent / f".{folder.name}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    clear_leftovers(folder.parent, folder.name)
    with explained(folder), ExitStack() as after:
        scratch.mkdir(parents=True)
        after.callback(shutil.rmtree, scratch, ignore_errors=True)
        for some in found:
            _spread(some, scratch, each)
        files = sorted(scratch.iterdir())
        counts = [_once(file) for file in files]
        kinds = {name: ((), _RECORD[name]) for name in _RECORD.names or ()}
        parts = (_columns(np.fromfile(file, _RECORD)) for file in files)
        write_columns(folder, kinds, sum(counts), parts=parts, key="")
    return sum(counts)


def _spread(some: Candidates, scratch: Path, each: int) -> None:
    """Append candidates to the file of their part of the rows."""
    records = np.empty(len(some), _RECORD)
    for name in _RECORD.names or ():
        records[name] = getattr(some, name)
    place = some.left // each
    for number in np.unique(place).tolist():
        with (scratch / f"{number:08}").open("ab") as file:
            file.write(records[place == number].tobytes())


def _once(file: Path) -> int:
    """Sort the candidates of a file and leave each once; how many those are."""
    records = np.fromfile(file, _RECORD)
    records = records[np.lexsort((records["flip"], records["right"], records["left"]))]
    fresh = np.ones(len(records), bool)
    fresh[1:] = records[1:] != records[:-1]
    file.write_bytes(records[fresh].tobytes())  # NumPy's own way of writing does not tell of a full disk
    return int(fresh.sum())


def _columns(records: np.ndarray) -> dict[str, np.ndarray]:
    return {name: records[name] for name in _RECORD.names or ()}


def read_candidates(folder: Path, start: int, stop: int) -> Candidates:
    """Some of those that were written.

    Raises:
        RunError: They are not there.
    """
    held = read_columns(folder, _RECORD.names or ())
    if held is None:
        raise RunError(f"{folder} cannot be read; out= must lie where all machines see it.")
    left, right, flip = (np.array(held[name][start:stop]) for name in _RECORD.names or ())
    return Candidates(left, right, flip)
