"""Images that are files of their own, each with a path or an address: a folder's, a list's, a table's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pyarrow as pa

from dinoforge.base.errors import ConfigError
from dinoforge.data.decode import Broken
from dinoforge.data.ground_truth import ground_truth
from dinoforge.data.sources.bucket import bucket
from dinoforge.data.sources.options import WEB, Options, scheme_of
from dinoforge.data.sources.source import Source, file_stamp
from dinoforge.data.sources.storage import Disk, Storage, ask_fence
from dinoforge.data.sources.web import Web


def storage(address: str, options: Options) -> Storage:
    """What reads an address.

    Raises:
        Broken: No storage of that scheme is known.
    """
    scheme = scheme_of(address)
    if not scheme:
        return Disk()
    return Web(options.allow_private) if scheme in WEB else bucket(address, anonymous=options.anonymous)


def joined(base: str, name: str) -> str:
    """The address of a file that is named relative to a folder. What the web lists lies on the web.

    Raises:
        Broken: A list from the web names something else, which might be a secret of this machine.
    """
    scheme, own = scheme_of(base), scheme_of(name)
    if scheme in WEB:
        if own and own not in WEB:
            raise Broken("a list from the web may name only web addresses")
        try:
            return urljoin(base if base.endswith("/") else f"{base}/", name)
        except ValueError as error:
            raise Broken(f"no address: {error}") from None
    if own:
        return name
    return f"{base.rstrip('/')}/{name}" if scheme else os.path.join(base, name)  # noqa: PTH118 - for each image


def read(base: str, name: str, options: Options) -> bytes:
    """A file that is named relative to a folder.

    Raises:
        Broken: It is not there or cannot be read.
    """
    address = joined(base, name)
    return storage(address, options).read(address)


def stamp_of(base: str, name: str) -> str | None:
    """Size and time of the last change of a file that is named relative to a folder; None where it lies on no disk of ours."""
    try:
        where = joined(base, name)
    except Broken:
        return None
    if scheme_of(where):
        return None
    ask_fence(where)
    return file_stamp(where)


def stamps_of(stamps: Mapping[str, str], names: Sequence[str]) -> pa.Array | None:
    """The stamps of files as their storage listed them, for ``Paths``; None where it lists none."""
    return pa.array([stamps.get(name) for name in names], pa.large_string()) if stamps else None


class Paths(Source):
    """Files by their paths.

    Args:
        base: Folder that relative paths start from.
        where: Path or address of each row's image.
        truths: The same for ``mask`` and ``depth``; empty where a row has none.
        stamps: Each row's stamp as its storage listed it, pyarrow texts; None for files that are asked for theirs one by one.
    """

    def __init__(
        self, address: str, base: str, where: np.ndarray, *, columns: Mapping[str, np.ndarray],
        options: Options, by_name: frozenset[str] = frozenset(), truths: Mapping[str, np.ndarray] | None = None,
        stamps: Any = None,
    ) -> None:  # fmt: skip
        self.address, self.columns, self.by_name = address, columns, by_name
        self._base, self._where, self._options, self._truths = base, where, options, truths or {}
        self._stamps = stamps

    def encoded(self, row: int) -> bytes:
        """The file's bytes."""
        name = str(self._where[row])
        if not name:
            raise Broken("the row names no file")
        try:
            return read(self._base, name, self._options)
        except ConfigError as error:
            raise Broken(str(error)) from None  # of this row alone: others may lie elsewhere

    @property
    def given(self) -> list[str]:
        """Path or address of each row's image, as it was given."""
        found: list[str] = self._where.tolist()
        return found

    def place(self, row: int) -> str:
        """The path or address of the file.

        Raises:
            Broken: The row names none, or one that a list from the web must not name.
        """
        name = str(self._where[row])
        if not name:
            raise Broken("the row names no file")
        return joined(self._base, name)

    def stamp(self, row: int) -> str | None:
        """Size and time of the last change of a file on the disk, size and tag of a listed one in object storage."""
        if self._stamps is not None:
            listed: str | None = self._stamps[row].as_py()
            return listed
        return stamp_of(self._base, str(self._where[row]))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The mask or depth map that the row names."""
        where = str(self._truths[name][row]) if name in self._truths else ""
        return ground_truth(read(self._base, where, self._options), name) if where else None
