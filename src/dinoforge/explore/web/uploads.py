"""Images that a browser brought: checked within limits when they come, then kept in memory for a while under a key."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from dinoforge.base.errors import RunError
from dinoforge.data.decode import Reading
from dinoforge.explore.collection import DECODING, MOST_PIXELS, brought

_QUEUED = 2.0
"""Seconds that an upload waits for others: it holds a thread that could answer somebody."""
_DIGITS = 24


class Uploads:
    """The image files that were uploaded last.

    Args:
        kept: Bytes of them in memory at most; the one that was not asked for longest goes first.
        reading: How the backbone reads pictures.
        most: Pixels of one at most.
    """

    def __init__(self, kept: int, reading: Reading, most: int = MOST_PIXELS) -> None:
        self._kept, self._reading, self._most, self._held = kept, reading, most, OrderedDict[str, bytes]()
        self._lock = threading.Lock()

    def add(self, encoded: bytes) -> str:
        """Take an image file in; its key, the first digits of its SHA-256: the same image has the same address again.

        Raises:
            Broken: No image, a damaged or too large one, or of other channels than the backbone takes.
            RunError: Too many come at once.
        """
        if not DECODING.acquire(timeout=_QUEUED):
            raise RunError("too many images are uploaded at once; try again.")
        try:
            brought(encoded, self._reading, most=self._most).pixels()
        finally:
            DECODING.release()
        key = hashlib.sha256(encoded).hexdigest()[:_DIGITS]
        with self._lock:
            self._held[key] = encoded
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(map(len, self._held.values())) > self._kept:
                self._held.popitem(last=False)
        return key

    def get(self, key: str) -> bytes | None:
        """An image file by its key; None where it is not there, or no longer."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)
