"""A short phase at high resolution at the end of a run, against the whole run at high resolution and the whole at low (Fig. 6 of
the DINOv2 paper, in miniature)."""

import json

import numpy as np
import pytest

import dinoforge

SEEDS = (0, 1, 2)
LOW, HIGH, IMAGES, PHASE = 32, 64, 16_000, 4_480
"""Sides in pixels, and images seen: all of them, and those of the phase that come after."""
WORDS = {
    "recipe": "vit_micro.toy", "data.resize": HIGH, "plan.images": IMAGES, "plan.probe_images": IMAGES, "precision": "fp32",
    "workers": 1, "backbone.position_std": 0.02,
}  # fmt: skip
"""Positions start as narrow as the paper's: so the table of docs/records.md was measured."""
SCENES = "toy://species?images=3000&size=128&seed={seed}"
"""2,400 teach the head, 600 are asked."""


def sides(pixels):
    return {"backbone.pixels": pixels, "data.augment.global_pixels": pixels, "data.augment.local_pixels": pixels // 2}


ARMS = {
    "low": sides(LOW),
    "phase": sides(LOW) | {"high_resolution.images": PHASE, "high_resolution.global_pixels": HIGH},
    "high": sides(HIGH),
}


def seen(backbone, pixels, seed):
    """Mean IoU of a linear head on patches of scenes that nothing was trained on, seen at that size, each pixel judged."""
    words = {"segmentation.pixels": pixels, "segmentation.points": 512, "features": "none", "precision": "fp32"}
    found = dinoforge.evaluate(
        backbone=str(backbone), data=SCENES.format(seed=100 + seed), tasks="segmentation", **words
    )
    return next(score.value for score in found.scores if score.name == "miou")


def cost(run):
    """Floating-point operations of a run, as its plan counts them."""
    return json.loads((run / "plan.json").read_text())["flops"]


@pytest.mark.long
def test_a_short_phase_gets_most_of_what_high_resolution_gains(lasting, unchecked, capsys):
    """At least 80 % of the gain at no more than 40 % of the extra cost, each backbone used at the size that it was made for."""
    rows, extra = {name: [] for name in (*ARMS, "low, seen at the high size")}, []
    for seed in SEEDS:
        runs = {name: lasting / f"{name}{seed}" for name in ARMS}
        for name, run in runs.items():
            data = f"toy://species?images=4000&size={HIGH}&seed={seed}"
            dinoforge.pretrain(out=run, data=data, probe=data, seed=seed, **WORDS | ARMS[name])
            rows[name].append(seen(run, LOW if name == "low" else HIGH, seed))
        rows["low, seen at the high size"].append(seen(runs["low"], HIGH, seed))
        flops = {name: cost(run) for name, run in runs.items()}
        extra.append((flops["phase"] - flops["low"]) / (flops["high"] - flops["low"]))
        with capsys.disabled():
            print(
                seed,
                {name: round(found[-1], 4) for name, found in rows.items()},
                f"extra cost {extra[-1]:.3f}",
                flush=True,
            )
    mean = {name: np.mean(found) for name, found in rows.items()}
    with capsys.disabled():
        print({name: f"{mean[name]:.4f} ± {np.std(found, ddof=1):.4f}" for name, found in rows.items()})
    assert max(extra) <= 0.4
    assert all(high > low for high, low in zip(rows["high"], rows["low"], strict=True))
    assert mean["phase"] - mean["low"] >= 0.8 * (mean["high"] - mean["low"])
