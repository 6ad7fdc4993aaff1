"""Pictures with points that are the same in two of them, and clips with objects that jump, each with features that tell all."""

import json
from types import SimpleNamespace

import numpy as np
import torch

from dinoforge.data.decode import Picture
from dinoforge.features.eyes import Look
from given import GivenEyes, Listed

POINTS, SIDE = 8, 80
"""Points of a picture, and its side in pixels: 8 by 8 patches."""


class Marked(Listed):
    """Rows with features of their patches ``[N, H, W, D]`` and, if given, masks; no pixel is worth looking at."""

    def __init__(self, patches, *, size, masks=None, address="marked", **columns):
        super().__init__(address, len(patches), **columns)
        self.patches, self.size, self.masks = np.asarray(patches, np.float32), size, masks

    def picture(self, row):
        size = self.size[row] if isinstance(self.size, list) else self.size
        return Picture.of(np.zeros((*size, 3), np.uint8))

    def extra(self, row, name):
        if name == "patches":
            return self.patches[row]
        return self.masks[row] if name == "mask" and self.masks is not None else None


class MarkedEyes(GivenEyes):
    """See the patches that marked rows bring along, those of ``gone`` not at all."""

    def __init__(self, patch=10, gone=()):
        super().__init__()
        self.backbone = SimpleNamespace(preprocessing=self.backbone.preprocessing, module=SimpleNamespace(patch=patch))
        self.gone = gone

    def look(self, source, kind="image", *, view=None, remember=True):
        from dinoforge.features.extract import NoneUsable

        self.views.append((len(source), kind, view.name))
        rows = np.asarray([row for row in range(len(source)) if source.columns["id"][row] not in self.gone], np.int64)
        if not len(rows):
            raise NoneUsable.of(source, [])
        values = torch.from_numpy(np.stack([source.extra(int(row), kind) for row in rows]))
        return Look(values, rows, source.select(rows))


def pointed(groups=12, *, seed=0):
    """Two pictures a group: every point has features of its own, in the middle of a patch drawn for each picture."""
    rng = np.random.default_rng(seed)
    patches, texts = [], []
    for _ in range(2 * groups):
        cells = rng.permutation(64)[:POINTS]
        one = np.zeros((64, POINTS + 1))
        one[:, POINTS] = 1
        one[cells] = np.eye(POINTS + 1)[:POINTS]
        patches.append(one.reshape(8, 8, -1))
        texts.append(
            json.dumps({f"p{n}": [cell % 8 * 10 + 5, cell // 8 * 10 + 5] for n, cell in enumerate(cells.tolist())})
        )
    box = [f"[0, 0, {SIDE}, {SIDE}]"] * len(texts)
    return Marked(patches, size=(SIDE, SIDE), group=np.arange(2 * groups) // 2, keypoints=texts, box=box)


def jumping(clips=4, frames=6, *, objects=8, side=24, seed=0):
    """Objects of 3 by 3 pixels, one a patch, anywhere in every frame and not on one another; the number is the feature."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((clips * frames, side, side), np.uint8)
    for mask in masks:
        cells = rng.permutation((side // 3) ** 2)[:objects]
        for number, cell in enumerate(cells.tolist(), start=1):
            y, x = np.asarray(divmod(cell, side // 3)) * 3
            mask[y : y + 3, x : x + 3] = number
    clip, frame = np.divmod(np.arange(len(masks)), frames)
    return Marked(np.eye(objects + 1)[masks], size=(side, side), masks=masks, clip=clip.astype(np.str_), frame=frame)
