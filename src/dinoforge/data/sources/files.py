"""What lies at a path or an address: a folder, one file, or all that a pattern fits; on the disk, in storage, on the web."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.log import say
from dinoforge.data.decode import SUFFIXES
from dinoforge.data.manifest import is_manifest
from dinoforge.data.sources.columns import by_folder, with_split
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.table import layout_of
from dinoforge.data.sources.lists import open_list, open_table
from dinoforge.data.sources.manifest import Listed
from dinoforge.data.sources.options import ACCESS, COLUMNS, WEB, Options, options_of, scheme_of, shown
from dinoforge.data.sources.parquet import Parquet
from dinoforge.data.sources.paths import Paths, at_home, joined, stamps_of, storage
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.shards import Tar
from dinoforge.data.sources.source import Opener, Source
from dinoforge.data.sources.storage import Found, on_opening

MANY: dict[str, Callable[[str, str, Options], Source]] = {".parquet": Parquet, ".tar": Tar}
"""By suffix, files with many images. They are read wherever they lie: in a folder among images too."""
NAMING: dict[str, Callable[[str, str, Options], Source]] = {
    ".txt": open_list, ".lst": open_list, ".csv": open_table, ".tsv": open_table,
}  # fmt: skip
"""By suffix, files that name images; in a folder they are not looked at, for they are more often notes."""
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_TAKES = "data takes a folder of images, a Parquet file or toy://species"
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000  # files that braces may stand for


def open_files(address: str, given: Mapping[str, str], opened: Opener) -> Source:
    """The images at a path or an address.

    Args:
        given: Options as texts.
        opened: Opens the addresses that a manifest names.

    Raises:
        DataError: Nothing there, no image in it, or it cannot be read.
        ConfigError: An unknown option, one that has no effect here, or a column that is not there.
    """
    options = options_of(given)
    scheme = scheme_of(address)
    address = address if scheme else str(at_home(address))
    if scheme in WEB:
        return _on_the_web(address, options)
    with on_opening(address):
        kind = storage(address, options).kind(address)
    if not kind:
        return _pattern(address, options)
    if kind == "folder":
        with on_opening(address):
            found = storage(address, options).files(address)
        plain = options_of({name: value for name, value in given.items() if name != "layout"})
        published = _published(Folder(address, found, plain), found, options.layout)
        return published or _collected(address, found, plain)
    if kind == "other":
        raise DataError(f"{shown(address)} is not a regular file; {_TAKES}.")
    if not scheme and is_manifest(Path(address)):
        options.only(of="a manifest")
        return Listed(Path(address), opened)
    return _one(address, _name(address), options)


def _name(address: str) -> str:
    return PurePosixPath(shown(address).partition("?")[0]).name


def _suffix(name: str) -> str:
    """As of a path, in small letters; a path for each of a million files would take ten seconds."""
    stem, _, end = name.rpartition("/")[2].rpartition(".")
    return f".{end.lower()}" if stem and end else ""


def _one(address: str, name: str, options: Options) -> Source:
    """A single file.

    Raises:
        DataError: It is of no known kind.
    """
    suffix = _suffix(name)
    if suffix in SUFFIXES:
        options.only(*ACCESS, of="an image")
        columns = with_split({"id": np.asarray([name])}, name)
        return Paths(shown(address), "", np.asarray([address]), columns=columns, options=options)
    known = MANY | NAMING
    if suffix not in known:
        raise DataError(
            f"{shown(address)} is a file but no Parquet file, tar, list or image; known are "
            f"{', '.join(sorted(known))} and {', '.join(sorted(SUFFIXES))}."
        )
    return known[suffix](address, name, options)


def _images(root: str, names: list[str], options: Options, stamps: Mapping[str, str]) -> Paths:
    """Image files of a folder; the relative path is the id, a file's folder its label unless that is a split."""
    where = np.asarray(names, dtype=np.str_)
    columns = {"id": where, **by_folder(names)}
    by_name = frozenset({"label"} & columns.keys())
    return Paths(
        shown(root), root, where, columns=columns, options=options, by_name=by_name, stamps=stamps_of(stamps, names)
    )


def _collected(root: str, found: Found, options: Options) -> Source:
    """A folder's image files, Parquet files and tars as one source; the rest is ``rejected``.

    Raises:
        DataError: No image in it.
        ConfigError: An option that has no effect on what is there, or a column that is not.
    """
    images, holders, rejected = [], [], list(found.rejected)
    for name in found.names:
        suffix = _suffix(name)
        if suffix in MANY:
            holders.append(name)
        elif suffix in SUFFIXES:
            images.append(name)
        else:
            rejected.append((name, _why(name, suffix)))
    options.only(*(COLUMNS + ACCESS if holders else ACCESS if scheme_of(root) else ()), of="a folder of image files")
    parts: list[Source] = [_images(root, images, options, found.stamps)] if images else []
    for name in sorted(holders, key=lambda name: name.split("/")):
        address = joined(root, name)
        try:
            parts.append(MANY[_suffix(name)](address, name, options))
        except DataError as error:
            rejected.append((name, str(error).removeprefix(f"{shown(address)} ")))
    if not parts:
        seen = "; it is empty"
        if rejected:
            name, reason = rejected[0]
            seen = f"; {len(rejected)} other files are in it, the first {name}: {reason.rstrip('.')}"
        known = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{shown(root)} holds no image{seen}. Known are {known}, {' and '.join(MANY)}.")
    whole = parts[0] if len(parts) == 1 else Several(shown(root), parts)
    whole.address, whole.rejected = shown(root), [*rejected, *(line for part in parts for line in part.rejected)]
    return whole


def _published(folder: Folder, found: Found, asked: str | None) -> Source | None:
    """A folder in the published form of a set that is known, or asked for.

    The images that its lists do not name are told by their number; they are not ``rejected`` one by one, for nothing is wrong
    with them.

    Raises:
        ConfigError: An unknown form, or options that have no effect on one.
        DataError: The folder's lists are damaged, or name files that are not there.
    """
    layout = layout_of(folder, asked)
    if layout is None:
        return None
    folder.options.only("layout", *(ACCESS if scheme_of(folder.address) else ()), of=f"the lists of {layout.title}")
    source = layout.opened(folder)
    known = folder.used.union(source.columns["id"].tolist())
    left = [(name, _suffix(name)) for name in found.names if name not in known]
    images = sum(suffix in SUFFIXES for _, suffix in left)
    if images:
        _left_out(shown(folder.address), layout.title, images)
    source.rejected = [
        *found.rejected,
        *((n, f"{layout.title} does not name it" if s in MANY else _why(n, s)) for n, s in left if s not in SUFFIXES),
    ]
    return source


@lru_cache(maxsize=64)
def _left_out(address: str, title: str, images: int) -> None:
    """Say it once: an evaluation opens a folder more than once."""
    say(f"{address}: {images:,} images that the lists of {title} do not name are left out.")


def _why(name: str, suffix: str) -> str:
    if name.lower().endswith(_PACKED):
        return "a compressed archive has no random access; unpack it to a plain .tar"
    if suffix in NAMING:
        return f"{suffix} is no image format known here; a list of images is given by its own path"
    return f"{suffix or 'no suffix'} is no image format known here"


def _pattern(address: str, options: Options) -> Source:
    """All files that ``*``, ``**/``, ``[ab]``, ``{a,b}`` and ``{000..009}`` in an address fit.

    Raises:
        DataError: No such file, or one that braces name is missing.
    """
    special = min((address.find(mark) for mark in "*[{" if mark in address), default=-1)
    if special < 0:
        raise DataError(f"{shown(address)} does not exist; {_TAKES}.")
    cut = address.rfind("/", 0, special) + 1
    place, pattern = address[:cut].rstrip("/") or ("/" if cut else "."), address[cut:]
    with on_opening(place):
        if storage(place, options).kind(place) != "folder":
            raise DataError(f"{shown(address)} does not exist: there is no folder {shown(place)}.")
        found = storage(place, options).files(place)
    there, wanted = set(found.names), set(_braces(pattern))
    literal = {name for name in wanted if not set(name) & {"*", "["}}
    if literal - there:
        name = min(literal - there)
        raise DataError(
            f"{shown(address)} is not all there: {len(literal - there)} files are missing, the first {name}."
        )
    try:
        fits = [re.compile(_expression(name)) for name in wanted - literal]
    except re.error as error:
        raise ConfigError(f"{shown(address)} is no pattern: {error}.") from None
    names = [name for name in found.names if name in literal or any(part.fullmatch(name) for part in fits)]
    if not names:
        raise DataError(f"{shown(address)} fits none of the {len(found.names):,} files in {shown(place)}.")
    source = _collected(place, Found(names, stamps=found.stamps), options)
    source.address = shown(address)
    return source


def _on_the_web(address: str, options: Options) -> Source:
    """One file, or each of those that braces name: the web has no folder to look in."""
    place, mark, query = address.partition("?")
    addresses = sorted(f"{name}{mark}{query}" for name in _braces(place))
    parts = [_one(part, _name(part), options) for part in addresses]
    return parts[0] if len(parts) == 1 else Several(shown(address), parts)


def _expression(pattern: str) -> str:
    """A pattern as a regular expression: a star stays in its folder, two stars and a slash are any folders."""
    known = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*|\[[^\]]*\])", pattern)
    return "".join(
        known.get(part) or (part.replace("[!", "[^") if part[:1] == "[" else re.escape(part)) for part in parts
    )


def _braces(pattern: str) -> list[str]:
    """``a-{08..11}`` as a-08, a-09, a-10, a-11; ``{a,b}`` as a, b.

    Raises:
        ConfigError: Too many.
    """
    waiting, done = [pattern], list[str]()
    while waiting:
        here = waiting.pop()
        numbers, words = _NUMBERS.search(here), re.search(r"\{([^{}]*,[^{}]*)\}", here)
        if numbers:
            first, last = numbers.groups()
            if abs(int(last) - int(first)) + len(waiting) + len(done) > _MOST:
                raise ConfigError(f"{numbers.group()} stands for too many files; at most {_MOST:,}.")
            parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
            waiting += [here[: numbers.start()] + part + here[numbers.end() :] for part in parts]
        elif words:
            waiting += [here[: words.start()] + part + here[words.end() :] for part in words.group(1).split(",")]
        else:
            done.append(here)
    return done
