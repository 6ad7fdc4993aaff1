"""What lies at a path or an address: a folder, one file, or all that a pattern fits; on the disk, in storage, on the web."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.data.decode import SUFFIXES
from dinoforge.data.film import VIDEOS
from dinoforge.data.manifest import is_manifest
from dinoforge.data.sources.clips import Clips, Films
from dinoforge.data.sources.columns import by_folder, with_split
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.table import layout_of
from dinoforge.data.sources.lists import open_list, open_table
from dinoforge.data.sources.manifest import Listed
from dinoforge.data.sources.options import ACCESS, COLUMNS, WEB, Options, options_of, scheme_of, shown
from dinoforge.data.sources.parquet import Parquet
from dinoforge.data.sources.paths import Paths, joined, stamps_of, storage
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
LABELS = "labels.csv"
"""The table that names the videos of a folder."""
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_TAKES = "data takes a folder of images, a Parquet file or toy://species"
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000  # files that braces may stand for


def open_files(address: str, given: Mapping[str, str], opened: Opener, *, clips: bool = False) -> Source:
    """The images at a path or an address; ``Clips`` where videos are there alone, unless frames of them are asked for.

    Args:
        given: Options as texts.
        opened: Opens the addresses that a manifest names.
        clips: Whether videos are wanted: then image files beside them are left out, and not the videos.

    Raises:
        DataError: Nothing there, no image in it, or it cannot be read.
        ConfigError: An unknown option, one that has no effect here, or a column that is not there.
    """
    options = options_of(given)
    found = _there(address, options, given, opened, clips=clips)
    return found.frames(options.frames) if isinstance(found, Clips) and options.frames else found


def _there(address: str, options: Options, given: Mapping[str, str], opened: Opener, *, clips: bool) -> Source:
    scheme = scheme_of(address)
    address = address if scheme else str(at_home(address))
    if scheme in WEB:
        return _on_the_web(address, options)
    with on_opening(address):
        kind = storage(address, options).kind(address)
    if not kind:
        return _pattern(address, options, clips=clips)
    if kind == "folder":
        with on_opening(address):
            found = storage(address, options).files(address)
        plain = options_of({name: value for name, value in given.items() if name != "layout"})
        published = _published(Folder(address, found, plain), found, options.layout, clips=clips)
        videos = None if published or options.layout else _listed_videos(address, found, plain, clips=clips)
        return published or videos or _collected(address, found, plain, clips=clips)
    if kind == "other":
        raise DataError(f"{shown(address)} is not a regular file; {_TAKES}.")
    if not scheme and is_manifest(Path(address)):
        options.only("depth_unit", of="a manifest")
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
    if suffix in SUFFIXES | VIDEOS:
        video = suffix in VIDEOS
        access = ACCESS if scheme_of(address) else ()
        options.only(*access, *(("frames",) if video else ()), of="a video" if video else "an image")
        columns = with_split({"id": np.asarray([name])}, name)
        found = Paths(shown(address), "", np.asarray([address]), columns=columns, options=options)
        return Films(found) if video else found
    known = MANY | NAMING
    if suffix not in known:
        raise DataError(
            f"{shown(address)} is a file but no Parquet file, tar, list or image; known are "
            f"{', '.join(sorted(known))} and {', '.join(sorted(SUFFIXES))}."
        )
    return known[suffix](address, name, options)


def _listed_videos(root: str, found: Found, options: Options, *, clips: bool) -> Source | None:
    """The videos of a folder that its table names; None where it has no table, no video, or images that are wanted.

    Raises:
        DataError: The table cannot be read, or names no video and there is no image.
    """
    if LABELS not in found.names:
        return None
    videos = {name for name in found.names if _suffix(name) in VIDEOS}
    images = any(_suffix(name) in SUFFIXES | MANY.keys() for name in found.names)
    if not videos or (images and not (clips or options.frames)):
        return None
    of_table = Options(**options.model_dump(include=options.model_fields_set - {"frames"}))
    listed = open_table(joined(root, LABELS), LABELS, of_table)
    if not isinstance(listed, Films):
        if images:
            return None
        raise DataError(f"{shown(joined(root, LABELS))} names no video; ?layout=none reads the folder without it.")
    named = {_normal(root, path) for path in listed.paths}
    left = sum(_normal(root, name) not in named for name in videos)
    if left:
        _left_out(shown(root), LABELS, f"{left:,} videos")
    others = ((name, _why(name, _suffix(name))) for name in found.names if name not in videos and name != LABELS)
    listed.address, listed.rejected = shown(root), [*found.rejected, *others, *listed.rejected]
    return listed


def _normal(root: str, path: str) -> str:
    """The one address of a file that is named relative to a folder, or otherwise."""
    found = joined(root, path)
    return posixpath.normpath(found) if scheme_of(found) else os.path.abspath(found)  # noqa: PTH100 - for each video


def _images(root: str, names: list[str], options: Options, stamps: Mapping[str, str]) -> Paths:
    """Image files of a folder; the relative path is the id, a file's folder its label unless that is a split."""
    where = np.asarray(names, dtype=np.str_)
    columns = {"id": where, **by_folder(names)}
    by_name = frozenset({"label"} & columns.keys())
    return Paths(
        shown(root), root, where, columns=columns, options=options, by_name=by_name, stamps=stamps_of(stamps, names)
    )


def _collected(root: str, found: Found, options: Options, *, clips: bool) -> Source:
    """A folder's image files, Parquet files and tars as one source; the rest is ``rejected``.

    Args:
        clips: See ``open_files``.

    Raises:
        DataError: No image in it.
        ConfigError: An option that has no effect on what is there, or a column that is not.
    """
    images, videos, holders = list[str](), list[str](), list[str]()
    rejected = list(found.rejected)
    for name in found.names:
        suffix = _suffix(name)
        kind = holders if suffix in MANY else images if suffix in SUFFIXES else videos if suffix in VIDEOS else None
        if kind is None:
            rejected.append((name, _why(name, suffix)))
        else:
            kind.append(name)
    if clips and videos and not (holders or options.frames):
        rejected += [(name, _why(name, _suffix(name))) for name in images]
        images = []
    _check_options(root, options, holders=bool(holders), videos=bool(videos))
    parts: list[Source] = [_images(root, images, options, found.stamps)] if images else []
    if videos and (options.frames or not (images or holders)):
        films = Films(_images(root, videos, options, found.stamps))
        parts.append(films.frames(options.frames) if options.frames else films)
    else:
        rejected += [(name, "a video among images; ?frames=8 takes so many frames of each") for name in videos]
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


def _check_options(root: str, options: Options, *, holders: bool, videos: bool) -> None:
    takes = COLUMNS + ACCESS if holders else ACCESS if scheme_of(root) else ()
    options.only(*takes, *(("frames",) if videos else ()), of="a folder of image files")


def _published(folder: Folder, found: Found, asked: str | None, *, clips: bool) -> Source | None:
    """A folder in the published form of a set that is known, or asked for.

    The images that its lists do not name are told by their number; they are not ``rejected`` one by one, for nothing is wrong
    with them.

    Raises:
        ConfigError: An unknown form, or options that have no effect on one.
        DataError: The folder's lists are damaged, or name files that are not there.
    """
    layout = layout_of(folder, asked, clips=clips)
    if layout is None:
        return None
    access = ACCESS if scheme_of(folder.address) else ()
    folder.options.only("layout", *layout.takes, *access, of=f"the lists of {layout.title}")
    source = layout.opened(folder)
    known = folder.used.union(source.columns["id"].tolist())
    left = [(name, _suffix(name)) for name in found.names if name not in known]
    kind, word = (VIDEOS, "videos") if isinstance(source, Clips) else (SUFFIXES, "images")
    count = sum(suffix in kind for _, suffix in left)
    if count:
        _left_out(shown(folder.address), f"the lists of {layout.title}", f"{count:,} {word}")
    source.rejected = [
        *found.rejected,
        *((n, f"{layout.title} does not name it" if s in MANY else _why(n, s)) for n, s in left if s not in kind),
    ]
    return source


@lru_cache(maxsize=64)
def _left_out(address: str, by: str, what: str) -> None:
    """Say it once: an evaluation opens a folder more than once."""
    say(f"{address}: {what} that {by} {'does' if by == LABELS else 'do'} not name are left out.")


def _why(name: str, suffix: str) -> str:
    """The reason why a file is set aside; images are where videos are read."""
    if name.lower().endswith(_PACKED):
        return "a compressed archive has no random access; unpack it to a plain .tar"
    if suffix in SUFFIXES | MANY.keys():
        return "an image beside videos" if suffix in SUFFIXES else "images beside videos"
    if suffix in VIDEOS:
        return "a video; ?frames= takes frames of videos"
    if suffix in NAMING:
        return f"{suffix} is no image format known here; a list of images is given by its own path"
    return f"{suffix or 'no suffix'} is no image format known here"


def _pattern(address: str, options: Options, *, clips: bool) -> Source:
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
    source = _collected(place, Found(names, stamps=found.stamps), options, clips=clips)
    source.address = shown(address)
    return source


def _on_the_web(address: str, options: Options) -> Source:
    """One file, or each of those that braces name: the web has no folder to look in.

    Raises:
        ConfigError: They are videos and something else, or lists of videos of which no frames are asked for.
    """
    place, mark, query = address.partition("?")
    addresses = sorted(f"{name}{mark}{query}" for name in _braces(place))
    parts = [_one(part, _name(part), options) for part in addresses]
    if len(parts) == 1:
        return parts[0]
    whole = Several(shown(address), parts)
    if all(_suffix(_name(part)) in VIDEOS for part in addresses):
        return Films(Paths(shown(address), "", np.asarray(addresses), columns=whole.columns, options=options))
    if any(isinstance(part, Clips) for part in parts):
        if options.frames and all(isinstance(part, Clips) for part in parts):
            return Several(shown(address), [part.frames(options.frames) for part in parts if isinstance(part, Clips)])
        raise ConfigError(
            f"{shown(address)} stands for videos and other files, or for lists of videos; data= takes images or videos, and of "
            "several lists of videos ?frames=."
        )
    return whole


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
        ConfigError: Too many, or none.
    """
    waiting, done = [pattern], list[str]()
    while waiting:
        here = waiting.pop()
        numbers, words = _NUMBERS.search(here), re.search(r"\{([^{}]*,[^{}]*)\}", here)
        if numbers:
            first, last = numbers.groups()
            if int(last) < int(first):
                raise ConfigError(f"{numbers.group()} stands for no file; it takes the lower number first.")
            if int(last) - int(first) + len(waiting) + len(done) > _MOST:
                raise ConfigError(f"{numbers.group()} stands for too many files; at most {_MOST:,}.")
            parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
            waiting += [here[: numbers.start()] + part + here[numbers.end() :] for part in parts]
        elif words:
            waiting += [here[: words.start()] + part + here[words.end() :] for part in words.group(1).split(",")]
        else:
            done.append(here)
    return done
