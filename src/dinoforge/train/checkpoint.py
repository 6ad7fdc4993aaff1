"""Checkpoints: whole or absent, free of code, newest few kept.

A checkpoint is a folder ``step_000001200/`` with ``state.safetensors`` (student, teacher, centres, optimiser moments, by name)
and ``state.json`` (step, images, what the run is, what it has seen so far).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dinoforge.base.errors import RunError
from dinoforge.base.files import new_folder, write_json, write_tensors
from dinoforge.base.log import say
from dinoforge.train.optim import load_named_state, named_state

_OPTIMIZER = "optimizer:"


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
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def all(self) -> list[Saved]:
        """Every readable checkpoint, oldest first; an unreadable one is named and passed over."""
        found = []
        for path in sorted(self.folder.glob("step_*")):
            try:
                facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
                found.append(Saved(path, facts))
            except (OSError, ValueError):
                say(f"Passing over checkpoint {path}: it is not whole.")
        return found

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> Path:
        """Write the state after ``facts["step"]`` steps, then remove the oldest beyond ``keep``.

        Raises:
            RunError: The disk is full or cannot be written; earlier checkpoints stay untouched.
        """
        path = self.folder / f"step_{facts['step']:09d}"
        tensors = dict(module.state_dict())
        tensors |= {_OPTIMIZER + name: value for name, value in named_state(optimizer, module.named_parameters())}
        with new_folder(path) as folder:
            write_tensors(folder / "state.safetensors", tensors)
            write_json(folder / "state.json", facts)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old.folder, ignore_errors=True)
        return path

    def load(self, saved: Saved, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put a checkpoint's state into a module and its optimiser.

        Raises:
            RunError: The file is damaged, or holds other tensors than this run has.
        """
        path = saved.folder / "state.safetensors"
        try:
            tensors = load_file(path)
        except Exception as error:
            raise RunError(
                f"Checkpoint {path} cannot be read ({error}). Remove its folder to go on from the one before."
            ) from None
        moments = {
            name.removeprefix(_OPTIMIZER): tensors.pop(name) for name in list(tensors) if name.startswith(_OPTIMIZER)
        }
        wrong = _misfits(module.state_dict(), tensors)
        if wrong:
            raise RunError(f"Checkpoint {path} belongs to other networks: {'; '.join(wrong[:4])}.")
        module.load_state_dict(tensors)
        load_named_state(optimizer, module.named_parameters(), moments)
        if moments:
            raise RunError(
                f"Checkpoint {path} holds optimiser state for unknown parameters: {', '.join(sorted(moments)[:4])}."
            )


def _misfits(want: dict[str, Tensor], got: dict[str, Tensor]) -> list[str]:
    """What is missing, unknown or of another shape."""
    missing = [f"{name} is missing" for name in want if name not in got]
    unknown = [f"{name} is unknown" for name in got if name not in want]
    shapes = [
        f"{name} is {list(got[name].shape)}, not {list(want[name].shape)}"
        for name in want
        if name in got and got[name].shape != want[name].shape
    ]
    return missing + unknown + shapes
