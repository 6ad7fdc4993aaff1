"""A short phase at high resolution gets most of what training at high resolution throughout gets, at a part of its cost."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dinoforge
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, extract
from dinoforge.model.weights import load_backbone

pytestmark = pytest.mark.long
LOW, HIGH = 32, 64
IMAGES, PHASE = 16_000, 4_480
SEEDS = (0, 1, 2)
COMMON = {
    "recipe": "vit_micro.toy", "precision": "fp32", "workers": 0, "plan.images": IMAGES, "plan.probe_images": IMAGES,
    "plan.checkpoint_images": IMAGES,
}  # fmt: skip


def at(pixels):
    """The recipe at another size, with views of the same share of a picture."""
    return {
        "data.augment.global_pixels": pixels, "data.augment.local_pixels": pixels // 2, "backbone.pixels": pixels,
        "data.resize": pixels,
    }  # fmt: skip


ARMS = {
    "low": at(LOW),
    "high": at(HIGH),
    "phase": at(LOW) | {"high_resolution.images": PHASE, "high_resolution.global_pixels": HIGH},
}


def words(arm, seed):
    world = f"toy://species?images=4000&size={HIGH}&seed={seed}"
    return COMMON | ARMS[arm] | {"seed": seed, "data": world}


def segmented(backbone, seed):
    """Mean IoU of parts on pictures of another world, by a ridge regression of patch features on shares of classes."""
    loaded = load_backbone(backbone)
    preprocessing = replace(loaded.preprocessing, short_side=HIGH, side=HIGH)

    def seen(split, count):
        source = open_source(f"toy://species?images={count}&size={HIGH}&seed={seed + 100}&split={split}")
        found = list(extract(loaded.module, source, preprocessing, Extraction(torch.device("cpu")), on_broken=print))
        rows = np.concatenate([part.rows for part in found])
        parts = torch.from_numpy(np.stack([source.extra(int(row), "parts") for row in rows])).long()
        return torch.cat([part.features.patches for part in found]), parts

    (patches, known), (asked, wanted) = seen("train", 1000), seen("test", 400)
    centre, spread = patches.mean((0, 1, 2)), patches.std((0, 1, 2)) + 1e-6
    classes, cell = int(max(known.max(), wanted.max())) + 1, HIGH // patches.shape[1]

    def rows(x):
        x = ((x - centre) / spread).flatten(0, 2).double()
        return torch.cat([x, torch.ones(len(x), 1)], dim=1)

    shares = F.avg_pool2d(F.one_hot(known, classes).movedim(-1, 1).double(), cell).movedim(1, -1).flatten(0, 2)
    x = rows(patches)
    weights = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1], dtype=torch.double), x.T @ shares)
    scores = (rows(asked) @ weights).view(*asked.shape[:3], classes).movedim(-1, 1)
    guess = F.interpolate(scores, scale_factor=cell, mode="bilinear").argmax(1)
    return mean(
        ((guess == one) & (wanted == one)).sum().item() / max(1, ((guess == one) | (wanted == one)).sum().item())
        for one in range(classes)
    )


def test_the_phase_costs_less_than_two_fifths_of_what_high_resolution_adds(tmp_path):
    flops = {arm: dinoforge.plan(out=tmp_path / arm, **words(arm, 0)).flops for arm in ARMS}
    assert flops["phase"] - flops["low"] <= 0.4 * (flops["high"] - flops["low"])


def test_the_phase_gets_four_fifths_of_the_gain(tmp_path):
    found = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm in ARMS:
            out = tmp_path / f"{arm}{seed}"
            dinoforge.pretrain(out=out, **words(arm, seed))
            found[arm].append(segmented(out / "backbone", seed))
    print(found)  # pytest shows it when the test fails
    low, high, phase = (mean(found[arm]) for arm in ("low", "high", "phase"))
    assert high > low + 0.01
    assert phase - low >= 0.8 * (high - low)
