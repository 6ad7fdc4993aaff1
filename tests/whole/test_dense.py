"""Maps on drawn scenes: a linear head on a trained backbone's patches tells pixels apart better than on an untrained one's or
on colours. Colours vote well in this world, where a species has a hue: the vote is held against the untrained backbone alone.
"""

import numpy as np
import pytest
import torch

import dinoforge
from dinoforge.model.vit import Vit
from dinoforge.model.weights import Backbone, load_backbone, save_backbone

SEEDS = (0, 1, 2)
SCENES = "toy://species?images=600&objects=3&seed={seed}"
"""Three creatures a picture, of another world than those that were trained on."""
WORDS = {
    "tasks": "segmentation,segmentation_knn", "precision": "fp32", "segmentation.pixels": 64, "segmentation.points": 512,
    "segmentation_knn.pixels": 64,
}  # fmt: skip


def untrained(trained, path, seed):
    """The same architecture before the first step."""
    module = Vit(trained.config)
    module.init_weights(torch.Generator().manual_seed(seed))
    save_backbone(path, Backbone(module, trained.config, trained.preprocessing))
    return str(path)


def scores(backbone, seed):
    found = dinoforge.evaluate(backbone=backbone, data=SCENES.format(seed=100 + seed), features="none", **WORDS).scores
    return {(score.task, score.name): score.value for score in found if not score.name.startswith("iou_")}


@pytest.mark.long
def test_trained_patches_tell_pixels_apart(tmp_path, toy_run, unchecked, capsys):
    rows = {"trained": [], "untrained": [], "colours": []}
    for seed in SEEDS:
        trained = toy_run(seed) / "backbone"
        rows["trained"].append(scores(str(trained), seed))
        rows["untrained"].append(scores(untrained(load_backbone(trained), tmp_path / f"first{seed}", seed), seed))
        rows["colours"].append(scores("colours:8", seed))
    with capsys.disabled():
        for name, found in rows.items():
            for key in found[0]:
                values = [one[key] for one in found]
                print(f"{name} {' '.join(key)}: {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}")
    for task, rivals in (("segmentation", ("untrained", "colours")), ("segmentation_knn", ("untrained",))):
        best, *others = (np.asarray([one[task, "miou"] for one in rows[name]]) for name in ("trained", *rivals))
        for other in others:
            apart = best - other  # of one seed: another seed is another world
            assert (apart > 0).all(), task
            assert apart.mean() > 2 * apart.std(ddof=1) / np.sqrt(len(apart)), task
