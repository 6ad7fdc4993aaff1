"""From a video file to some of its frames, evenly spaced. A file that is no whole, sane video is ``Broken``, never a crash.

Axes: K frames that are asked for, Y by X pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from dinoforge.data.picture import MAX_PIXELS, Broken

VIDEOS = frozenset({
    ".mp4", ".m4v", ".mov", ".avi", ".webm", ".mkv", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp",
})  # fmt: skip
"""Names under which video files are looked for; what is in them is judged by their bytes alone."""
_MATROSKA, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_STARTS = (
    _MATROSKA, b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV", b"OggS", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
)  # fmt: skip
"""First bytes of Matroska and WebM, MPEG, Flash, Ogg and ASF."""
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
"""What a file of MP4 or QuickTime begins with, behind four bytes."""
_MOST_BOXES = 10_000
_LOST = 0.1
"""Share of the frames that a header states which may be missing of a file that is cut off: some count what is not shown."""


def evenly(count: int, of: int) -> Int[np.ndarray, " K"]:
    """Which of the ``of`` frames of a clip are seen: of ``count`` equal parts the frame in which the middle of each falls.

    Part i of K (from 0) has its middle at (i + 1/2) / K of the clip, which is in frame floor((2 i + 1) of / 2 K). A clip of
    fewer frames than are asked for repeats some.
    """
    return (2 * np.arange(count, dtype=np.int64) + 1) * of // (2 * count)


def frames_of(path: str, count: int) -> UInt8[np.ndarray, "K Y X 3"]:
    """So many evenly spaced frames of a video file, red, green, blue, turned as they are meant to be seen.

    It is decoded from its beginning to its end, for seeking is not exact in every format; no more frames than are asked for
    are held. Where the header states another number than there are, it is decoded once more.

    Raises:
        Broken: No file, no video, one of no frame, one that ends too early, frames that together are too large, or a path that
            is not UTF-8.
    """
    _check_start(path)
    _check_name(path)
    with _opened(path) as capture:
        _check_size(capture, count)
        stated = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        found, there = _decoded(capture, evenly(count, max(stated, 1)))
    if not there:
        raise Broken("it is a video without a frame that can be decoded")
    if there < stated - 1 and there < stated * (1 - _LOST) and _is_cut(Path(path)):
        raise Broken(f"it ends after {there:,} of its {stated:,} frames")
    if there != stated:
        with _opened(path) as capture:
            found, _ = _decoded(capture, evenly(count, there))
    if len({frame.shape for frame in found}) > 1 or len(found) != count:
        raise Broken("its frames cannot be decoded, or change their size")
    return np.stack(found)


def _check_start(path: str) -> None:
    """Refuse what does not begin as a video does: the decoder also follows lists of other files and addresses."""
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            raise Broken("the file cannot be read: no such file" if not Path(path).exists() else "not a regular file")
        with Path(path).open("rb") as file:
            start = file.read(12)
    except (OSError, ValueError) as error:
        if isinstance(error, Broken):
            raise
        raise Broken(f"the file cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not start:
        raise Broken("the file is empty")
    if not (start.startswith(_STARTS) or start[4:8] in _BOXES or (start[:4], start[8:]) == (b"RIFF", b"AVI ")):
        raise Broken("this is no video of a known kind (MP4, QuickTime, AVI, WebM, Matroska, MPEG, ASF, Flash, Ogg)")


def _check_name(path: str) -> None:
    """Refuse a path that the decoder cannot be handed: it ends the process."""
    try:
        os.path.abspath(path).encode()  # noqa: PTH100 - as it is opened
    except UnicodeEncodeError:
        raise Broken("the path is not valid UTF-8; rename it") from None


def _is_cut(path: Path) -> bool:
    """Whether a file is shorter than its container says; False where that says nothing.

    The number of frames in a header proves nothing alone: it is often guessed from the duration.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4096)
        if start[:4] == b"RIFF":
            return 8 + int.from_bytes(start[4:8], "little") > size
        if start[:4] == _MATROSKA:
            return _segment_end(start) > size
        return start[4:8] in _BOXES and _boxes_end(file, size) > size


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box of MP4 or QuickTime ends that begins within the file; of very many the last one that is looked at."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - at  # 0: to the end
        if at >= size or length < 8:
            break
        at += length
    return at


def _segment_end(start: bytes) -> int:
    """Where the segment of a Matroska file ends; 0 where that is unknown."""
    at = start.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(start) or not start[at]:
        return 0
    length = 9 - start[at].bit_length()
    value = int.from_bytes(start[at : at + length], "big") - (1 << 7 * length)
    return 0 if value == (1 << 7 * length) - 1 else at + length + value


@cache
def _silence() -> None:
    """Keep what the decoder prints of damaged files off standard error; the reason comes with ``Broken``."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first file is opened
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A file at its beginning, decoded on one thread."""
    _silence()
    # An absolute path: what comes before a colon in another one is taken for a protocol.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])  # noqa: PTH100
    try:
        if not capture.isOpened():
            raise Broken("the video is damaged, or of a codec that is not known here")
        yield capture
    finally:
        capture.release()


def _check_size(capture: Any, count: int) -> None:
    width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height * count > MAX_PIXELS:
        raise Broken(f"{count:,} frames of {width}x{height} pixels are more than {MAX_PIXELS:,}; take fewer")


def _decoded(capture: Any, wanted: Int[np.ndarray, " K"]) -> tuple[list[np.ndarray], int]:
    """The frames of these rising numbers as far as there are such, and how many frames there are."""
    found, there = list[np.ndarray](), 0
    times = np.bincount(wanted) if len(wanted) else np.zeros(0, np.int64)
    while capture.grab():
        if there < len(times) and times[there]:
            whole, frame = capture.retrieve()
            if whole:
                found += [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)] * int(times[there])
        there += 1
    return found, there
