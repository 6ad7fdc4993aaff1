"""What happens in the process that a shard is sent to, and how what shards share gets there.

Addresses, numbers and settings travel, small answers come back; images and vectors lie on the disk that all machines see.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, Generic, Protocol, TypedDict, TypeVar, runtime_checkable

import cv2
import torch
from threadpoolctl import threadpool_limits

from dinoforge.base.errors import ConfigError, RunError, UserError
from dinoforge.base.hardware import versions

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MACHINES = (MemoryError, OSError, torch.cuda.OutOfMemoryError)
"""Faults of a machine."""
_ALIVE = 6
"""Shared things that a process keeps, the last ones that it needed."""


class Outcome(TypedDict):
    """What came of a shard, in plain types."""

    answer: Any
    error: UserError | None
    """What no shard can go on with; no fault of a machine, for which one line would do too."""
    fault: str | None
    """What only this shard met."""
    blame: bool
    """Whether a fault is the shard's own, not the machine's: no memory, a full or absent disk."""
    said: list[str]
    """Lines for the person at the terminal."""


@cache
def installed() -> dict[str, str]:
    """What must be the same wherever shards of one curation run: by name, the version."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    known = versions()
    names = ("torch", "numpy", "pillow", "opencv")
    optional = {name: _version(name) for name in ("simplejpeg", "tifffile", "onnxruntime", "onnxruntime-gpu")}
    return {
        "dinoforge": digest.hexdigest()[:12],
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{name: known[name].partition("+")[0] for name in names},  # +cpu and +cu are one version
        **{name.removesuffix("-gpu"): found for name, found in optional.items() if found},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def done(wanted: Mapping[str, str], folder: str, payload: bytes) -> Outcome:
    """Do a shard: ``payload`` holds (work, its job, processes that it may start), pickled.

    Args:
        wanted: ``installed`` of who asks; work of another version is not begun.
        folder: Which relative addresses are meant from.
    """
    said = StringIO()
    answer: Any = None
    fault: str | None = None
    blame = True
    error = _other(wanted) or _elsewhere(folder)
    if error is None:
        with redirect_stderr(said):
            try:
                work, job, processes = pickle.loads(payload)
                _settle(processes)
                answer = work(job, processes)
            except Exception as met:
                blame = not isinstance(met, _MACHINES)
                if isinstance(met, UserError) and blame:
                    error = met
                else:
                    fault = f"{type(met).__name__}: {' '.join(str(met).split())[:300]}"
    return Outcome(answer=answer, error=error, fault=fault, blame=blame, said=said.getvalue().splitlines())


def same_everywhere(executor: Executor, explain: Callable[[BaseException], Any], name: str) -> None:
    """See by a first task that a worker has the same package and the same folders.

    Raises:
        ConfigError: It has not.
        RunError: There is no answer.
    """
    payload = pickle.dumps((_nothing, None, 1))
    try:
        error = executor.submit(done, installed(), os.getcwd(), payload).result()["error"]  # noqa: PTH109
    except Exception as met:
        found = explain(met)
        error = (
            found if isinstance(found, UserError) else RunError(f"engine={name}: the first task failed, {found.why}.")
        )
    if error is not None:
        raise error


def _nothing(_job: None, _processes: int) -> None:
    """What the first task does."""


def _other(wanted: Mapping[str, str]) -> UserError | None:
    here = installed()
    differ = [
        f"{name} {here.get(name, 'none')} instead of {wanted.get(name, 'none')}" for name in {**wanted, **here}
        if here.get(name) != wanted.get(name)
    ]  # fmt: skip
    if not differ:
        return None
    return ConfigError(f"A worker on {socket.gethostname()} has {', '.join(differ)}; install the same on all machines.")


def _elsewhere(folder: str) -> UserError | None:
    try:
        if os.getcwd() != folder:  # noqa: PTH109 - as it is written in the call
            os.chdir(folder)
    except OSError as error:
        host = socket.gethostname()
        return RunError(f"A worker on {host} cannot enter {folder}: {error.strerror}; start where all machines see it.")
    return None


def _settle(threads: int) -> None:
    """Shards run side by side, so one of them takes its share of the cores."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    threadpool_limits(threads)


@runtime_checkable
class Held(Protocol[T_co]):
    """Something that all shards of a stage need."""

    def get(self) -> T_co:
        """The thing itself."""


class Kept(Generic[T]):
    """What all shards of a stage need: here as it is; another process makes its own, once for all its shards."""

    def __init__(self, value: T, sent: Callable[[], Callable[[], T]]) -> None:
        self._value, self._send = value, sent
        self._sent: Callable[[], T] | None = None

    def get(self) -> T:
        """The thing itself."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        if self._sent is None:
            self._sent = self._send()
        return _Made, (self._sent,)


_made: OrderedDict[bytes, Any] = OrderedDict()


@dataclass(frozen=True)
class _Made(Generic[T]):
    """The same in another process."""

    make: Callable[[], T]

    def get(self) -> T:
        key = pickle.dumps(self.make)
        if key not in _made:
            with redirect_stderr(StringIO()):  # what there is to say of it was said where it was first made
                _made[key] = self.make()
        _made.move_to_end(key)
        while len(_made) > _ALIVE:
            _made.popitem(last=False)
        found: T = _made[key]
        return found


@dataclass(frozen=True)
class Stored:
    """Something in a file that this run wrote; one that was changed since is not opened, for it could run any code."""

    path: Path
    sha256: str

    def __call__(self) -> Any:
        """Read it.

        Raises:
            RunError: It is gone, or another.
        """
        try:
            held = self.path.read_bytes()
        except OSError as error:
            raise RunError(f"{socket.gethostname()} cannot read {self.path}: {error.strerror}; out= must lie where all "
                           "machines see it.") from None  # fmt: skip
        if hashlib.sha256(held).hexdigest() != self.sha256:
            raise RunError(f"{self.path} was changed while it was in use; run again.")
        return pickle.loads(held)
