"""Sources of clips: a row a clip, from each of which evenly spaced frames are taken as images.

Axes: N clips, F frames of all of them, K frames of each that are taken.
"""

from __future__ import annotations

import re
import tempfile
from abc import abstractmethod
from collections import Counter, OrderedDict
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken, Picture
from dinoforge.data.film import evenly, frames_of
from dinoforge.data.sources.options import scheme_of
from dinoforge.data.sources.paths import Paths
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import ask_fence
from dinoforge.data.toyworld.pollution import png

_RECENT = 4
"""Clips whose frames are kept decoded, for their frames are asked for one after the other, by several threads at once."""
_FRAME = re.compile(r"#(\d+)of\d+$")


class Clips(Source):
    """N clips in a fixed order; the columns are those of clips."""

    @abstractmethod
    def frames(self, count: int) -> Source:
        """So many evenly spaced frames of every clip (``film.evenly``) as images, clip after clip."""

    def picture(self, row: int) -> Picture:
        """A clip is no picture.

        Raises:
            Broken: Always.
        """
        raise Broken("it is a clip, no image")

    def select(self, rows: Int[np.ndarray, " n"]) -> Clips:
        """The same clips reduced to the given rows, in the given order."""
        return _SomeClips(self, np.asarray(rows, dtype=np.int64))


class _SomeClips(Clips):
    """Some rows of another source of clips."""

    def __init__(self, whole: Clips, rows: Int[np.ndarray, " n"]) -> None:
        self.address, self.rejected, self._whole, self._rows = whole.address, whole.rejected, whole, rows
        self.by_name, self.part_of = whole.by_name, (whole, rows)
        self.columns = {name: column[rows] for name, column in whole.columns.items()}

    def frames(self, count: int) -> Source:
        """Their frames: some rows of all frames, so that features of these serve."""
        rows = self._rows[:, None] * count + np.arange(count)
        return self._whole.frames(count).select(rows.ravel())

    def encoded(self, row: int) -> bytes:
        return self._whole.encoded(int(self._rows[row]))

    def stamp(self, row: int) -> str | None:
        return self._whole.stamp(int(self._rows[row]))


class Films(Clips):
    """Video files.

    Args:
        files: They by their paths, with the columns of the clips.
    """

    def __init__(self, files: Paths) -> None:
        self.address, self.columns, self.by_name = files.address, files.columns, files.by_name
        self.rejected, self._files = files.rejected, files

    @property
    def paths(self) -> list[str]:
        """Path or address of every file, as it was given."""
        return self._files.given

    def frames(self, count: int) -> Source:
        """A row a frame, decoded when it is asked for together with the others of its clip."""
        return _FilmFrames(self, count)

    def encoded(self, row: int) -> bytes:
        """The bytes of the video file."""
        return self._files.encoded(row)

    def stamp(self, row: int) -> str | None:
        """As of the file."""
        return self._files.stamp(row)

    def decoded(self, row: int, count: int) -> UInt8[np.ndarray, "K Y X 3"]:
        """So many frames of a clip. A file that does not lie on the disk is fetched whole.

        Raises:
            Broken: See ``frames_of``; or it cannot be fetched.
        """
        place = self._files.place(row)
        if not scheme_of(place):
            ask_fence(place)
            return frames_of(place, count)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"video{PurePosixPath(place.partition('?')[0]).suffix}"
            path.write_bytes(self._files.encoded(row))
            return frames_of(str(path), count)


class _FilmFrames(Source):
    """Frames of video files. Columns besides those of the files: ``clip``, the file's id, and ``frame``, from 0 to K - 1."""

    def __init__(self, films: Films, count: int) -> None:
        self.address, self.by_name, self.rejected = films.address, films.by_name, films.rejected
        self._films, self._count = films, count
        names = films.columns["id"]
        self.columns = {name: np.repeat(column, count) for name, column in films.columns.items()} | {
            "id": np.asarray([f"{name}#{row}of{count}" for name in names.tolist() for row in range(count)], dtype=np.str_),
            "clip": np.repeat(names, count), "frame": np.tile(np.arange(count), len(names)),
        }  # fmt: skip
        self._recent, self._lock = OrderedDict[int, "Future[np.ndarray]"](), Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_recent", "_lock"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _recent=OrderedDict(), _lock=Lock())

    def picture(self, row: int) -> Picture:
        """The frame.

        Raises:
            Broken: Its clip cannot be decoded.
        """
        clip, frame = divmod(row, self._count)
        return Picture.of(self._clip(clip)[frame])

    def encoded(self, row: int) -> bytes:
        """The frame as a PNG file."""
        return png(self.picture(row).pixels())

    def stamp(self, row: int) -> str | None:
        """As of its clip."""
        return self._films.stamp(row // self._count)

    def _clip(self, number: int) -> UInt8[np.ndarray, "K Y X 3"]:
        """A clip's frames; of several threads that ask for it one decodes and the others wait."""
        with self._lock:
            found = self._recent.get(number)
            mine = None if found else Future[np.ndarray]()
            if mine:
                self._recent[number] = mine
                while len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
        if mine is None:
            assert found is not None
            return found.result()
        try:
            mine.set_result(self._films.decoded(number, self._count))
        except BaseException as error:
            mine.set_exception(error)
        return mine.result()


class Stills(Clips):
    """Clips whose frames are images already: rows of a source that name their clip in a column ``clip``, else ``variant``.

    They are in the order of ``frame``, else in that of the rows. A clip's name counts within its split.

    Raises:
        DataError: No such column, a frame twice, or frames of one clip that have different labels.
    """

    def __init__(self, images: Source) -> None:
        column = next((name for name in ("clip", "variant") if name in images.columns), None)
        if column is None or not (images.columns[column] != "").any():
            raise DataError(
                f"{images.address} holds no clips; they are video files, or images with a column clip, and perhaps frame."
            )
        self.address, self.by_name, self.rejected = images.address, images.by_name, images.rejected
        self._images = images
        self._rows, self._starts = _grouped(images, column)
        first = self._rows[self._starts[:-1]]
        kept = {"label", "label_name", "split"} & images.columns.keys()
        self.columns = {"id": _clip_names(images, column, first)} | {name: images.columns[name][first] for name in kept}

    def frames(self, count: int) -> Source:
        """Rows of the images; the second time that one is taken, its name is ``name#2``."""
        lengths = np.diff(self._starts)
        chosen = [start + evenly(count, length) for start, length in zip(self._starts, lengths.tolist(), strict=False)]
        rows = self._rows[np.concatenate(chosen)]
        found = self._images.select(rows)
        found.columns = {**found.columns, "id": _each_once(self._images.columns["id"][rows])}
        return found

    def encoded(self, row: int) -> bytes:
        """There is no file of the whole clip.

        Raises:
            Broken: Always.
        """
        raise Broken("it is a clip, no file")

    def stamp(self, row: int) -> str | None:
        """Those of all its frames."""
        stamps = [self._images.stamp(int(one)) for one in self._rows[self._starts[row] : self._starts[row + 1]]]
        return None if None in stamps else " ".join(str(stamp) for stamp in stamps)


def _grouped(images: Source, column: str) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " n"]]:
    """Rows clip after clip, each clip's in order, and where each clip begins, at last the end; clips as they first appear."""
    names = images.columns[column]
    usable = np.flatnonzero(names != "")
    splits, number = images.columns.get("split", np.full(len(names), ""))[usable], dict[tuple[str, str], int]()
    keys = zip(names[usable].tolist(), splits.tolist(), strict=True)
    clip = np.asarray([number.setdefault(key, len(number)) for key in keys], np.int64)
    frame = images.columns.get("frame", np.full(len(names), -1))[usable]
    order = np.lexsort((frame, clip))
    rows, clip, frame = usable[order], clip[order], frame[order]
    same = clip[1:] == clip[:-1]
    twice = np.flatnonzero(same & (frame[1:] == frame[:-1]) & (frame[1:] >= 0))
    if len(twice):
        raise DataError(f"{images.address} has frame {frame[twice[0]]} of the clip {names[rows[twice[0]]]} twice.")
    labels = images.columns.get("label", np.zeros(len(names)))[rows]
    odd = np.flatnonzero(same & (labels[1:] != labels[:-1]))
    if len(odd):
        raise DataError(f"{images.address} gives frames of the clip {names[rows[odd[0]]]} different labels.")
    return rows, np.concatenate([[0], np.flatnonzero(~same) + 1, [len(rows)]])


def _clip_names(images: Source, column: str, first: Int[np.ndarray, " N"]) -> np.ndarray:
    """A clip's own name; behind its split where two have one name."""
    names = images.columns[column][first]
    if len(np.unique(names)) == len(names):
        return names
    return np.char.add(np.char.add(images.columns["split"][first], "/"), names)


def _each_once(names: np.ndarray) -> np.ndarray:
    """Names, the second of one as ``name#2``."""
    times, found = Counter[str](), list[str]()
    for name in names.tolist():
        times[name] += 1
        found.append(name if times[name] == 1 else f"{name}#{times[name]}")
    return np.asarray(found, dtype=np.str_)


def frame_of(name: str) -> tuple[str, int]:
    """The file and the number of a frame of a video by its id; another id as it is, with 0."""
    found = _FRAME.search(name)
    return (name[: found.start()], int(found[1])) if found else (name, 0)
