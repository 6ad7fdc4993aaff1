"""How tensors that are spread over ranks reach the disk, and come back to any number of ranks.

torch's distributed checkpointing plans who writes and who reads what. Its own file of metadata would be a pickle, so every
rank's file is written here, in the layout of its reader of safetensors. Torch takes a second to import it: whoever needs this
module imports it then.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult

from dinoforge.base import dist
from dinoforge.base.errors import RunError, UserError
from dinoforge.base.files import write_tensors

# One process is no mistake.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def write(
    state: dict[str, Tensor], folder: Path, *, finish: Callable[[], None], background: bool
) -> Callable[[], None] | None:
    """Write each rank's part of ``state`` into a file of its own, then call ``finish`` on the first rank.

    Args:
        background: Return as soon as the state is copied.

    Returns:
        What waits for the end, where it happens in the background.

    Raises:
        RunError: A rank could not write; in the background it is raised by what waits.
    """
    how: dict[str, Any] = {
        "storage_writer": _Writer(folder, finish),
        "process_group": dist.files(),
        "no_dist": not dist.active(),
    }
    if not background:
        with _plainly():
            dcp.save(state, **how)
        return None
    writing: Any = dcp.async_save(state, **how)

    def wait() -> None:
        with _plainly():
            writing.result()

    return wait


def shapes(folder: Path) -> dict[str, torch.Size]:
    """Names and shapes of the whole tensors in a folder.

    Raises:
        RunError: A file is damaged.
    """
    try:
        listed: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        return {name: facts.size for name, facts in listed.items()}
    except Exception as error:
        raise _unreadable(folder, error) from None


def read(folder: Path, state: dict[str, Tensor]) -> None:
    """Fill tensors with what a folder holds under their names, each rank its own part.

    Raises:
        RunError: A file is damaged.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        dcp.load(state, storage_reader=reader, process_group=dist.files(), no_dist=not dist.active())
    except dcp.CheckpointException as error:  # a rank that is gone meanwhile says nothing against the files
        raise _unreadable(folder, _first(error)) from None


class _Writer(StorageWriter):
    """Writes each rank's part in one file, from where the tensors lie.

    Args:
        finish: Called on the first rank when every rank has written.
    """

    def __init__(self, folder: Path, finish: Callable[[], None]) -> None:
        self.folder, self._finish = folder, finish
        self._name = (
            f"shard-{dist.rank() + 1:05d}-of-{dist.world():05d}.safetensors"  # in the background there is no team
        )

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        tensors: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
        offsets = {
            item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            for item in plan.items
            if item.tensor_data
        }
        write_tensors(
            self.folder / self._name, tensors, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)}, flush=True
        )
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result([])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._finish()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _unreadable(folder: Path, error: BaseException) -> RunError:
    """What to do about a checkpoint whose files are damaged."""
    return RunError(f"Checkpoint {folder} cannot be read ({error}). Remove it to go on from the one before.")


@contextmanager
def _plainly() -> Iterator[None]:
    """Raise what went wrong on one rank instead of torch's collection of what went wrong on all."""
    try:
        yield
    except dcp.CheckpointException as error:  # no Exception, so it would pass by every handler
        raise _first(error) from None


def _first(error: dcp.CheckpointException) -> BaseException:
    """What went wrong on the lowest rank that failed; a user's error says which."""
    rank, (reason, _) = min(error.failures.items())
    if isinstance(reason, UserError) and dist.active():
        reason.rank = rank
    return reason
