"""Reading the recorded numbers: files by pattern, configuration from the files themselves, nothing hard-coded.

Every module of this folder asks for its files by ``files(pattern)`` when it is imported; ``test_coverage.py`` fails on a
recorded file that nobody asked for. Every test opens its share of a file by ``Case``, which fails on a tensor nobody read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

ROOT = Path(os.environ.get("DINOFORGE_GOLDEN", Path(__file__).parents[2] / ".." / "shared" / "golden")).resolve()
needs_recordings = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"no recorded numbers at {ROOT}; name their folder by DINOFORGE_GOLDEN"
)
ASKED_FOR: set[str] = set()


def recorded_names() -> list[str]:
    """Every recorded file, relative to the root; the index and the description are none."""
    if not ROOT.is_dir():
        return []
    every = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return sorted(name for name in every if name not in {"MANIFEST.json", "README.md"})


def files(pattern: str) -> list[Path]:
    """The recorded files that match a pattern such as ``01_vit/*_p*.safetensors``."""
    names = [name for name in recorded_names() if fnmatch(name, pattern)]
    ASKED_FOR.update(names)
    return [ROOT / name for name in names]


@cache
def config(path: Path) -> Any:
    """The configuration a file was recorded with."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"])


@cache
def names(path: Path) -> tuple[str, ...]:
    with safe_open(path, "pt") as file:
        return tuple(file.keys())


def items(pattern: str, split: Callable[[Any, tuple[str, ...]], Iterable[str]]) -> list[Any]:
    """One pytest parameter ``(path, prefix)`` a recorded case; a tensor that belongs to no case is an item that fails."""
    found = []
    for path in files(pattern):
        prefixes = list(split(config(path), names(path)))
        lost = [name for name in names(path) if not name.startswith(tuple(prefixes))]
        stem = path.relative_to(ROOT).with_suffix("").as_posix()
        found += [pytest.param(path, prefix, id=f"{stem}:{prefix}") for prefix in prefixes]
        found += [pytest.param(path, "no case:" + name, id=f"{stem}:unclaimed:{name}") for name in lost[:1]]
    return found


class Case:
    """The tensors of one file under a prefix; remembers which were read."""

    def __init__(self, path: Path, prefix: str = "", *, shared: tuple[str, ...] = ()) -> None:
        assert not prefix.startswith("no case:"), f"{path.name}: tensor {prefix[8:]} belongs to no test"
        self.path, self.prefix, self.config = path, prefix, config(path)
        self.names = [name[len(prefix) :] for name in names(path) if name.startswith(prefix)]
        self.names = [name for name in self.names if not name.startswith(shared)] if shared else self.names
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in names(self.path)

    def __getitem__(self, name: str) -> Tensor:
        """One tensor; half precision was only a way to store exact values, so it comes as float32."""
        self.read.add(name)
        with safe_open(self.path, "pt") as file:
            tensor = file.get_tensor(self.prefix + name)
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    def under(self, folder: str) -> dict[str, Tensor]:
        """All tensors below ``folder/``, by the rest of their names."""
        start = folder + "/"
        return {name[len(start) :]: self[name] for name in self.names if name.startswith(start)}


@contextmanager
def reading(path: Path, prefix: str = "", *, shared: tuple[str, ...] = ()):
    """A ``Case`` that must be read to the last tensor; names that begin with one of ``shared`` belong to other tests."""
    case = Case(path, prefix, shared=shared)
    yield case
    unread = sorted(set(case.names) - case.read)
    assert not unread, f"{path.name}: recorded but never compared: {unread}"


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the recorded tensor's largest value."""
    assert got.shape == want.shape, f"{tuple(got.shape)} is not {tuple(want.shape)}"
    scale = want.double().abs().max().item() if want.numel() else 0.0
    gap = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
    return gap / scale if scale else gap
