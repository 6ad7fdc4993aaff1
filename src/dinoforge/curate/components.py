"""Near copies as groups (``components`` of the graph of pairs), one image kept of each (DINOv2, sec. 3 and app. A).

Components can chain: a is like b and b like c, and c need not be like a. The paper accepts that; ``largest`` shows it.

Axes: N images, P pairs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from jaxtyping import Int, Num

from dinoforge.base.errors import DataError
from dinoforge.base.files import write_atomic
from dinoforge.curate.why import Dropped
from dinoforge.features.pairs import Pairs, components, joined

STAGE = "near copies"


def forest(component: Int[np.ndarray, " N"], *, first: int = 0) -> Pairs:
    """The fewest pairs with the same components: what a shard passes on, whatever the number of its pairs.

    Components of the pairs of all shards are those of all their forests together.

    Args:
        first: Added to every row.
    """
    row = np.flatnonzero(component != np.arange(len(component)))
    return joined(component[row] + first, row + first, np.full(len(row), np.nan, np.float32))


def merged(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several shards as one."""
    return joined(
        *(
            np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in (("left", np.int64), ("right", np.int64), ("similarity", np.float32))
        )
    )


def reduced(parts: Sequence[Pairs]) -> Pairs:
    """The fewest pairs with the same components as those of several shards together: what is passed on in their place.

    As ``forest``, but in memory and time of the pairs, whatever the number of images; each has its component's lowest row left.
    """
    if not sum(map(len, parts)):
        return joined(*_NO_PAIRS)
    left, right = (np.concatenate([getattr(part, name) for part in parts]) for name in ("left", "right"))
    rows, place = np.unique(np.concatenate([left, right]), return_inverse=True)
    local = joined(place[: len(left)], place[len(left) :], np.full(len(left), np.nan, np.float32))
    found = forest(components(local, images=len(rows)))
    return Pairs(rows[found.left], rows[found.right], found.similarity)


_NO_PAIRS = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def reduced_by(executor: Executor, files: Sequence[Path], *, folder: Path, fan: int = 16) -> Pairs:
    """The same of pairs in files of ``save_pairs``: some files a task, then what these gave, until there is one.

    Args:
        folder: Where tasks write; readable wherever they run.
        fan: Files of a task.

    Raises:
        DataError: A file that holds no pairs.
    """
    level, waiting = 0, list(files)
    while len(waiting) > 1 or level == 0:
        groups = [tuple(waiting[start : start + fan]) for start in range(0, len(waiting), fan)]
        into = [folder / f"pairs-{level:02}-{number:06}.npz" for number in range(len(groups))]
        waiting, level = list(executor.map(_reduced_in, groups, into)), level + 1
    return load_pairs(waiting[0]) if waiting else joined(*_NO_PAIRS)


def _reduced_in(files: tuple[Path, ...], into: Path) -> Path:
    save_pairs(into, reduced([load_pairs(file) for file in files]))
    return into


def save_pairs(path: Path, pairs: Pairs) -> None:
    """Write pairs, whole or not at all."""
    arrays = {"left": pairs.left, "right": pairs.right, "similarity": pairs.similarity}
    write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_pairs(path: Path) -> Pairs:
    """What ``save_pairs`` wrote.

    Raises:
        DataError: It is not there, or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return Pairs(held["left"], held["right"], held["similarity"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no pairs: {error}; make them again.") from None


def representatives(
    component: Int[np.ndarray, " N"], *, size: Num[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, " N"]:
    """For each image the one that is kept for it: the largest of its component, of equally large ones the lowest row.

    Args:
        size: Pixels of each image, or whatever else is better when larger; without it the lowest row is kept.
    """
    rank = np.zeros(len(component)) if size is None else size
    order = np.lexsort((np.arange(len(component)), -rank, component))
    at = np.searchsorted(component[order], component)
    return order[at]


def deduplicated(pairs: Pairs, *, images: int, size: Num[np.ndarray, " N"] | None = None) -> Dropped:
    """All images but the representative of each component.

    The reason is ``near copy`` where it was itself found to be like the one that stays, whose similarity is given then, else
    ``near copy of a copy``.
    """
    keeper = representatives(components(pairs, images=images), size=size)
    row = np.flatnonzero(keeper != np.arange(images))
    similarity = between(pairs, row, keeper[row])
    reason = np.where(np.isnan(similarity), "near copy of a copy", "near copy")
    return Dropped(row, reason, keeper[row], similarity, STAGE)


def between(pairs: Pairs, one: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]) -> Num[np.ndarray, " n"]:
    """The similarity of each two rows as the pairs have it; NaN where they are no pair."""
    found = np.full(len(one), np.nan, dtype=np.float32)
    if len(pairs) and len(one):
        span = int(max(pairs.right.max(), one.max(), other.max())) + 1
        known = pairs.left * span + pairs.right
        wanted = np.minimum(one, other) * span + np.maximum(one, other)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        hit = known[at] == wanted
        found[hit] = pairs.similarity[at[hit]]
    return found


def largest(component: Int[np.ndarray, " N"], *, count: int = 10) -> list[tuple[int, int]]:
    """The largest components as (lowest row, images), for the report: a very large one is a chain."""
    label, sizes = np.unique(component, return_counts=True)
    order = np.lexsort((label, -sizes))[:count]
    return [(int(label[at]), int(sizes[at])) for at in order if sizes[at] > 1]
