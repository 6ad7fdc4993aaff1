"""Unlike pictures, and pairs by hand, for tests of near copies."""

import cv2
import numpy as np

from dinoforge.features.pairs import joined


def scenes(count, *, side=96, seed=0):
    """Coloured blobs on coloured slopes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    return [cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC) for picture in coarse]


def pairs(*edges):
    """(one row, other row[, similarity, else 0.9])."""
    left, right, similarity = zip(*[(*edge, 0.9)[:3] for edge in edges], strict=True) if edges else ((), (), ())
    return joined(np.asarray(left, np.int64), np.asarray(right, np.int64), np.asarray(similarity, np.float32))
