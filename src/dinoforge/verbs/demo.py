"""``demo``: the whole path in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoforge.base.files import locked, write_json
from dinoforge.base.hardware import versions
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, extract
from dinoforge.model.weights import load_backbone
from dinoforge.runs import pretrain
from dinoforge.verbs.opening import told


def demo(*, out: str = "demo-out", seed: str | int = 0) -> dict[str, Any]:
    """The main job in minutes, offline: pretrain a micro ViT on drawn pictures, k-NN before and after, a PCA picture.

    Args:
        out: Folder for everything that is made.
        seed: Of the pictures and of the training.
    """
    from dinoforge.data.augment import centre
    from dinoforge.model.table import build
    from dinoforge.report.pca import pca_picture

    folder, world = Path(out), f"toy://species?images=5000&seed={int(seed)}"
    done = pretrain(data=world, probe=world, out=folder / "run", recipe="vit_micro.toy", seed=seed)
    best = load_backbone(folder / "run")
    source = open_source(world + "&split=test").select(np.arange(8))
    before = build(best.config, seed=int(seed))
    pixels = torch.stack(
        [
            centre(source.pixels(row), short_side=best.preprocessing.short_side, side=best.preprocessing.side)
            for row in range(8)
        ]
    )
    rows = {}
    for name, module in (("before", before), ("after", best.module)):
        part = next(iter(extract(module, source, best.preprocessing, Extraction(torch.device("cpu")), on_broken=told)))
        rows[name] = part.features.patches
    pca_picture(folder / "pca.png", pixels, rows)
    assert done.knn is not None
    facts = {
        "knn_untrained": done.knn["first"], "knn_trained": done.knn["last"], "knn_best": done.knn["best"],
        "rank": done.rank, "pca": str(folder / "pca.png"), "backbone": done.backbone,
    }  # fmt: skip
    with locked(folder):
        write_json(folder / "demo.json", {**facts, "versions": versions()})
    return facts
