"""Python pickles read as plain data: nothing in the file chooses what is called.

Of the ways of a pickle to make an object, only those of numbers and of arrays of numbers (numpy, all versions) are known, and
each of them leads to a few lines here, not to numpy's own: numpy trusts the state of an array that it restores, and a forged
one lets it read memory that is not its own.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.picture import first_line

_TYPE = re.compile(r"[biuf][1248]|[SUV]\d{1,4}")
"""Codes of numbers and texts. An object is none: its elements would be addresses of memory."""
_STEPS = {step.code: step for step in pickletools.opcodes}
_NESTING = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_MOST_NESTED = 20_000
"""Of those that hold others and are hashed: Python does so without a look at how deep it is."""


class _Type:
    """Stands for ``numpy.dtype``: a code, and the order of its bytes."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _TYPE.fullmatch(text) or text.startswith("V"):
            told = repr(text[:20]) if isinstance(text, str) else type(text).__name__
            raise DataError(f"holds numbers of the type {told}, which is none of those that are read")
        self.type = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        self.type = self.type.newbyteorder(">" if state[1] in {">", b">"} else "<")


class Array:
    """Stands for ``numpy.ndarray``; numpy takes it for one."""

    values: np.ndarray = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, raw = state
        self.values = _numbers(raw, kind, shape, "F" if by_column else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=bool(copy) or dtype is not None)


def _numbers(raw: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(kind, _Type):
        raise DataError("holds an array without a type of numbers")
    content = raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))  # Python 2 had no other bytes
    sides = tuple(int(side) for side in shape)
    if min(sides, default=0) < 0 or math.prod(sides) * kind.type.itemsize != len(content):
        raise DataError("holds an array of another size than it says")
    return np.frombuffer(content, kind.type).reshape(sides, order="F" if order == "F" else "C")


def _empty(*_how: Any) -> Array:
    """Stands for numpy's ``_reconstruct``: an array whose state comes afterwards."""
    return Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> Array:
    """Stands for numpy's ``_frombuffer`` (pickle protocol 5)."""
    found = Array()
    found.values = _numbers(raw, kind, shape, order)
    return found


def _scalar(kind: Any, raw: Any) -> Any:
    """Stands for numpy's ``scalar``: one number."""
    return _numbers(raw, kind, (), "C").item()


def _encoded(text: str, coding: str) -> bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""
    if coding != "latin1":
        raise DataError("holds bytes in another coding than latin1")
    return text.encode("latin1")


class _Maker:
    """A function or a class that a pickle may call, and not change."""

    __slots__ = ("_of",)

    def __init__(self, of: Callable[..., Any]) -> None:
        self._of = of

    def __call__(self, *given: Any) -> Any:
        return self._of(*given)

    def __setstate__(self, _state: Any) -> None:
        raise DataError("is a pickle that changes how its objects are made")


def _no_bytes() -> bytes:
    """Stands for ``bytes``, by which Python 3 writes empty bytes for Python 2. With a number it would make as many."""
    return b""


_MADE: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encoded}
for _home in ("numpy.core", "numpy._core"):
    _MADE[f"{_home}.multiarray", "_reconstruct"] = _empty
    _MADE[f"{_home}.multiarray", "scalar"] = _scalar
    _MADE[f"{_home}.numeric", "_frombuffer"] = _from_buffer
for _home in ("builtins", "__builtin__"):
    _MADE[_home, "set"] = set
    _MADE[_home, "frozenset"] = frozenset
    _MADE[_home, "bytes"] = _no_bytes
_MADE["numpy", "ndarray"] = Array
_MADE["numpy", "dtype"] = _Type
_MADE = {name: _Maker(made) for name, made in _MADE.items()}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        made = _MADE.get((module, name))
        if made is None:
            raise DataError(f"is a pickle with code ({module}.{name}"[:120] + "), which is not run")
        return made

    def persistent_load(self, _of: Any) -> Any:
        raise DataError("is a pickle that names something outside of itself")


def _operations(content: bytes) -> Iterator[tuple[str, Any]]:
    """Names and arguments of a pickle's steps, none of them taken.

    Texts of protocol 0 are passed over: ``pickletools.genops`` takes no others than ASCII, and Python 2 wrote arrays so.
    """
    file, code = io.BytesIO(content), b""
    while code != pickle.STOP:
        code = file.read(1)
        step = _STEPS.get(code.decode("latin1"))
        if step is None:
            raise DataError("is a damaged pickle: it has no end")
        if code == pickle.STRING:
            yield step.name, file.readline()
        else:
            yield step.name, step.arg.reader(file) if step.arg else None


def _scan(content: bytes) -> None:
    """Refuse a pickle that takes far more memory than it has bytes, or would be nested beyond Python's stack.

    Raises:
        DataError: It does.
    """
    nested = 0
    for name, value in _operations(content):
        if name in {"PUT", "BINPUT", "LONG_BINPUT"} and value > len(content):
            raise DataError(f"is a damaged pickle: it notes a value as number {value:,}, more than it has bytes")
        nested += name in _NESTING
    if nested > _MOST_NESTED:
        raise DataError(f"is a damaged pickle: it holds {nested:,} tuples; {_MOST_NESTED:,} are read")


def unpickled(content: bytes) -> Any:
    """What a pickle of plain data holds: dicts, lists, tuples, sets, texts, bytes, numbers, and arrays as ``Array``.

    Texts of Python 2 are read as latin1.

    Raises:
        DataError: It is damaged, or asks for anything else.
    """
    try:
        _scan(content)
        return _Plain(io.BytesIO(content), encoding="latin1").load()
    except DataError:
        raise
    except MemoryError:
        raise DataError("is a pickle that does not fit into memory") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"is a damaged pickle: {first_line(error)}") from None
