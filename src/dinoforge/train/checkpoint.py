"""Checkpoints: whole or absent, free of code, newest few kept and a sound one, the same for any number of ranks.

A checkpoint is a folder ``step_000001200/``. Every rank that wrote it left a ``shard-00001-of-00004.safetensors`` with its part
of everything (student, teacher, both heads, centres, optimiser moments, by name) and where each part belongs; ``state.json``
says the rest: step, images, what the run is, what it has seen so far, and the files with their sizes.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoforge.base import dist
from dinoforge.base.errors import RunError
from dinoforge.base.files import UNFINISHED, explained, remove_folder, write_json
from dinoforge.base.log import say
from dinoforge.train.optim import load_named_state, named_state

# One process is no mistake.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_OPTIMIZER = "optimizer:"
_SCALAR = "step"
"""The one piece of AdamW's state that does not have its parameter's shape."""

Fitted = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Tensors of one stage's networks to those of another's, under the same names."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished checkpoint: where it lies and what it says of itself."""

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done when it was written."""
        return int(self.facts["step"])


class Checkpoints:
    """The checkpoints of one run. With several ranks all of them call everything here, in the same order.

    Args:
        background: Write while the training goes on, from a copy in main memory.
    """

    def __init__(self, folder: Path, *, keep: int, background: bool = False) -> None:
        self.folder, self.keep, self.background = folder, keep, background
        self._writing: Callable[[], None] | None = None

    def all(self) -> list[Saved]:
        """Every whole checkpoint, oldest first; one that is not is named and passed over."""
        found = []
        for path in sorted(self.folder.glob("step_*")):
            try:
                facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
                wrong = next((name for name, size in facts["files"].items() if _size(path / name) != size), None)
                int(facts["step"])  # whoever finds it asks for it
            except (OSError, ValueError, LookupError, AttributeError, TypeError):
                wrong = "state.json"
            if wrong is None:
                found.append(Saved(path, facts))
            else:
                say(f"Passing over checkpoint {path}: it is not whole ({wrong}).")
        return found

    def latest(self, wanted: Callable[[Saved], bool] = lambda _: True) -> Saved | None:
        """The newest whole one that is wanted, on which all ranks agree; None where there is none yet.

        Raises:
            RunError: There are some, and not one is whole: to begin again would be to lose what the run has done.
        """

        def newest() -> Saved | None:
            found = self.all()
            if not found and any(self.folder.glob("step_*")):
                raise RunError(f"No checkpoint in {self.folder} is whole. Remove that folder to begin the run again.")
            return next((saved for saved in reversed(found) if wanted(saved)), None)

        return dist.leading(newest)

    def remove(self, unwanted: Callable[[Saved], bool]) -> None:
        """Remove the whole ones that are not wanted any more. All ranks together."""

        def work() -> None:
            for saved in self.all():
                if unwanted(saved):
                    remove_folder(saved.folder)

        dist.leading(work)

    def amend(self, saved: Saved, facts: Mapping[str, Any]) -> None:
        """Write other facts into a checkpoint in place of those of the same name. All ranks together.

        Raises:
            RunError: The disk is full or cannot be written; it stays as it is.
        """
        dist.leading(lambda: write_json(saved.folder / "state.json", {**saved.facts, **facts}))

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> Path:
        """Write the state after ``facts["step"]`` steps, then remove the oldest beyond ``keep``, but for the newest of those up
        to ``facts["sound"]``: there the run goes back to if it falls ill.

        In the background this returns once the state is copied, and what goes wrong is raised by the next call or by ``wait``.

        Raises:
            RunError: The disk is full or cannot be written; earlier checkpoints stay untouched.
        """
        from dinoforge.train.shards import write

        self.wait()
        path = self.folder / f"step_{facts['step']:09d}"
        fresh = path.parent / f".{path.name}.{UNFINISHED}"

        def make_room() -> None:
            shutil.rmtree(fresh, ignore_errors=True)
            with explained(fresh):
                fresh.mkdir(parents=True)

        dist.leading(make_room)
        state = dict(module.state_dict())
        state |= {_OPTIMIZER + name: value for name, value in named_state(optimizer, module.named_parameters())}
        self._writing = write(
            state, fresh, finish=lambda: self._publish(fresh, path, facts), background=self.background
        )  # fmt: skip
        return path

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            RunError: The last checkpoint could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing()

    def _publish(self, fresh: Path, path: Path, facts: dict[str, Any]) -> None:
        """Give a checkpoint that every rank has written its name. On the first rank alone."""
        files = {file.name: file.stat().st_size for file in sorted(fresh.iterdir())}
        write_json(fresh / "state.json", {**facts, "files": files})
        remove_folder(path)  # passed over before, as it was not whole
        with explained(path):
            fresh.replace(path)
        there = self.all()
        sound = [saved.step for saved in there if saved.step <= facts.get("sound", facts["step"])]
        for old in there[: -self.keep]:
            if old.step not in sound[-1:]:
                remove_folder(old.folder)

    def load(self, saved: Saved, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put a checkpoint's state into a module and its optimiser; each rank reads what it needs.

        Raises:
            RunError: A file is damaged, or holds other tensors than this run has.
        """
        from dinoforge.train.shards import read, shapes

        state: dict[str, Tensor] = dict(module.state_dict())

        def check() -> list[str]:
            there = shapes(saved.folder)
            _refuse(saved, _misfits(state, _of_networks(there)))
            return sorted(name.removeprefix(_OPTIMIZER) for name in there if name.startswith(_OPTIMIZER))

        # A rank of its own may fail to read what the others can; then all say so.
        moments = dist.together(check)
        parameters = dict(module.named_parameters())
        unknown = [name for name in moments if name.rpartition("/")[0] not in parameters]
        if unknown:
            raise RunError(
                f"Checkpoint {saved.folder} holds optimiser state for unknown parameters: {', '.join(unknown[:4])}."
            )
        found = {name: _room(parameters, name) for name in moments}
        read(saved.folder, state | {_OPTIMIZER + name: value for name, value in found.items()})
        load_named_state(optimizer, module.named_parameters(), found)

    def begin_from(self, saved: Saved, module: nn.Module, fitted: Fitted) -> None:
        """Put the tensors of the stage before into a module whose images are of another size; whole, on every rank.

        There is nothing of the optimiser in it: what AdamW has gathered on a table of other positions means nothing here.

        Args:
            module: Not yet spread over ranks.
            fitted: Makes the tensors of that stage those of this one.

        Raises:
            RunError: A file is damaged, or holds other tensors than the run has.
        """
        from dinoforge.train.shards import read, shapes

        state: dict[str, Tensor] = dict(module.state_dict())

        def room() -> dict[str, Tensor]:
            there = _of_networks(shapes(saved.folder))
            _refuse(saved, _other_names(state, there))
            return {name: torch.empty(size, dtype=state[name].dtype) for name, size in there.items()}

        found = dist.together(room)
        read(saved.folder, found)
        found = fitted(found)
        _refuse(saved, _misfits(state, {name: tensor.shape for name, tensor in found.items()}))
        with torch.no_grad():
            for name, tensor in found.items():
                state[name].copy_(tensor)


def _of_networks(shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """What is not the optimiser's."""
    return {name: size for name, size in shapes.items() if not name.startswith(_OPTIMIZER)}


def _refuse(saved: Saved, wrong: Sequence[str]) -> None:
    if wrong:
        raise RunError(f"Checkpoint {saved.folder} belongs to other networks: {'; '.join(wrong[:4])}.")


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _room(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """Where a piece of optimiser state is read into: spread over the ranks as its parameter is."""
    parameter, _, kind = name.rpartition("/")
    return torch.zeros(()) if kind == _SCALAR else torch.zeros_like(parameters[parameter], requires_grad=False)


def _misfits(want: Mapping[str, Tensor], got: Mapping[str, Sequence[int]]) -> list[str]:
    """What is missing, unknown or of another shape."""
    return _other_names(want, got) + [
        f"{name} is {list(got[name])}, not {list(want[name].shape)}"
        for name in want
        if name in got and tuple(got[name]) != tuple(want[name].shape)
    ]


def _other_names(want: Collection[str], got: Collection[str]) -> list[str]:
    """What is missing or unknown."""
    missing = [f"{name} is missing" for name in want if name not in got]
    return missing + [f"{name} is unknown" for name in got if name not in want]
