"""`pretrain recipe=copy.descriptor`: training makes copies easier to find, and curate takes the run as its descriptor."""

import numpy as np
import pytest
import torch

import dinoforge
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, image_features
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import load_backbone

TINY = {
    "backbone.width": 64, "backbone.depth": 2, "backbone.heads": 2, "backbone.patch": 8, "backbone.pixels": 32,
    "backbone.init_std": 0.06, "backbone.layerscale": None, "data.augment.global_pixels": 32, "data.resize": 40,
    "data.augment.global_scale": [0.3, 1.0], "data.augment.colour.blur": [0.0, 0.0, 0.0],
    "objective.group": 32, "plan.batch": 32, "plan.images": 1920, "plan.checkpoint_images": 1920,
    "plan.learning_rate.peak": 6e-3, "plan.teacher_momentum.peak": 0.8, "precision": "fp32", "workers": 0,
}  # fmt: skip


def recall(module, source, preprocessing):
    """Share of the copies whose nearest other image is their original, or another copy of it."""
    how = Extraction(torch.device("cpu"), rows_at_once=64)
    x, rows = image_features(module, source, preprocessing, how, on_broken=lambda *_: None)
    x = torch.nn.functional.normalize(x, dim=1)
    nearest = (x @ x.T - 2 * torch.eye(len(x))).argmax(dim=1).numpy()
    ids, of = (source.columns[name][rows].astype(str) for name in ("id", "copy_of"))
    origin = np.where(of == "", ids, of)
    copies = (source.columns["role"][rows] == "copy") & np.isin(of, ids)
    assert copies.sum() > 20
    return (origin[nearest] == origin)[copies].mean()


@pytest.mark.long
def test_training_raises_the_recall_of_copies(tmp_path):
    run = dinoforge.pretrain(
        data="toy://species?images=400&size=40&seed=1", out=tmp_path / "run", recipe="copy.descriptor", **TINY
    )
    assert run.steps == 60
    assert {"contrast", "entropy"} <= run.losses.keys()
    trained = load_backbone(tmp_path / "run")
    config = VitConfig(**trained.config.model_dump())
    source = open_source("toy://species?images=200&size=40&seed=9&copies=0.25&split=train")
    before = recall(build(config, seed=0), source, trained.preprocessing)
    after = recall(trained.module, source, trained.preprocessing)
    print(f"recall {before:.3f} -> {after:.3f}")
    assert after > before + 0.05
