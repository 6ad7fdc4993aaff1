"""Runs the stages: each once, its result on the disk, taken over where all that it depends on is as it was.

``OUT/stages/NAME`` holds a stage's result and what it was made from, ``OUT/stages/NAME.parts`` what it made piece by piece,
``OUT/stages/read`` what was read of the images. Everything is whole or absent; killed at any moment, the same command goes on.

Axes: N rows of the pool, n of them that are still in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dinoforge.base.config import Config, differences, fingerprint, science
from dinoforge.base.files import clear_leftovers, new_folder, write_json
from dinoforge.base.log import say
from dinoforge.curate.images import read_shard, write_shard
from dinoforge.curate.settings import Curation, group
from dinoforge.curate.state import Result, State
from dinoforge.curate.table import CURATIONS
from dinoforge.curate.why import Dropped


@dataclass(frozen=True, slots=True)
class Done:
    """A stage after it ran."""

    name: str
    before: int
    """Images that were in."""
    result: Result
    fingerprint: str
    reused: bool
    """Whether its result was there already."""


def run_stages(state: State, settings: Curation, stages: Sequence[str], folder: Path) -> tuple[State, list[Done]]:
    """Run the named stages in their order, as long as there are images; what is left, and what each did.

    Raises:
        RunError: The folder cannot be written.
        UserError: What a stage raises.
    """
    clear_leftovers(folder, *CURATIONS)
    done: list[Done] = []
    lasting = True
    prints: dict[str, str] = {}
    for name in stages:
        stage, config = CURATIONS[name], group(settings, name)
        here = replace(state, parts=folder / f"{name}.parts")
        made = _ingredients(name, here, config, settings, prints)
        mark = fingerprint(made)
        result = _stored(folder / name, made, mark)
        reused = result is not None
        if result is None:
            result = stage.run(here, config)
            lasting = lasting and result.lasting  # what comes after one that is not may lack what that one lacks
            if lasting:
                _store(folder / name, result, made, mark)
        if reused or lasting:
            stage.tidy(here.parts)
        before, state = len(state.alive), _after(state, name, result)
        prints[name] = mark
        done.append(Done(name, before, result, mark, reused))
        say(f"{name}: {before:,} -> {len(state.alive):,} images{', as before' if reused else ''}")
        if not len(state.alive):
            break
    return state, done


def _after(state: State, name: str, result: Result) -> State:
    alive = state.alive[~np.isin(state.alive, result.dropped.row)]
    return replace(state, alive=alive, results={**state.results, name: result})


def _ingredients(
    name: str, state: State, config: Config, settings: Curation, prints: Mapping[str, str]
) -> dict[str, Any]:
    """All that a stage's result depends on."""
    stage = CURATIONS[name]
    return {
        "stage": f"{name} {stage.version}",
        "settings": {name: science(config)},
        "files": stage.files(settings),
        "pool": state.pool.fingerprint,
        "images before": hashed(state.alive),
        "needs": {need: prints[need] for need in stage.needs},
        "depends": stage.depends(state, config),
    }


def hashed(rows: Int[np.ndarray, " n"]) -> str:
    """16 hexadecimal digits of rows."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


def _stored(folder: Path, made: Mapping[str, Any], mark: str) -> Result | None:
    """A result that was made of the same; None where there is none, and a word where it was made of something else."""
    try:
        about = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        before, known = about["made"], about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if known != mark:
        # The comparison is of what JSON holds on both sides.
        changed = differences(before, json.loads(json.dumps(made)))
        say(f"{folder.name}: made anew, for it was made of something else: {'; '.join(changed)}")
        return None
    held = read_shard(folder / "result.npz")
    if held is None:
        say(f"{folder.name}: made anew, for {folder / 'result.npz'} is damaged")
        return None
    row, reason, against, similarity = (held.pop(f"dropped.{column}") for column in _COLUMNS)
    dropped = Dropped(row, reason, against, similarity, about["dropped_by"])
    return Result(dropped, held, about["facts"])


_COLUMNS = ("row", "reason", "against", "similarity")


def _store(folder: Path, result: Result, made: Mapping[str, Any], mark: str) -> None:
    columns = {f"dropped.{column}": getattr(result.dropped, column) for column in _COLUMNS}
    with new_folder(folder) as new:
        write_shard(new / "result.npz", {**result.arrays, **columns})
        about = {"fingerprint": mark, "made": made, "dropped_by": result.dropped.stage, "facts": result.facts}
        write_json(new / "stage.json", about)
