"""Exact copies: of all images with the same bytes, the first is kept."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dinoforge.data.manifest import Manifest, firsts


def keep_first(manifest: Manifest) -> tuple[Manifest, Manifest]:
    """The images that stay, and those that go with ``reason`` and, in ``copy_of``, the id of the one that stays for them.

    Images are equal where their ``sha256`` is; the order of the rows decides which is first.
    """
    first = firsts(manifest.table["sha256"])
    copied = first != np.arange(len(first))
    kept, dropped = np.flatnonzero(~copied), np.flatnonzero(copied)
    against = manifest.table["id"].take(pa.array(first[dropped]))
    return (
        manifest.select(kept).replaced("copy_of", None).replaced("reason", ""),
        manifest.select(dropped).replaced("copy_of", against).replaced("reason", "exact copy"),
    )
