"""Mask2Former on a frozen backbone against a linear head, on scenes of three objects: the same features and pictures to both."""

import statistics

import pytest

import dinoforge

SEEDS = (0, 1, 2)
SCENES = "toy://species?images=500&size=64&objects=3&seed=5"
# Fixed before the run that counts: 64 pixels, four blocks, 400 updates of 8 pictures, which are 400 in all.
SAME = {
    "segmentation.pixels": 64, "segmentation.layers": 4, "segmentation.iterations": 400, "segmentation.batch": 8,
}  # fmt: skip
HEADS = {
    "linear, 1e-3": {"segmentation.learning_rate": 1e-3},
    "linear, 1e-2": {"segmentation.learning_rate": 1e-2},
    "mask2former, 2e-3": {"segmentation.head": "mask2former", "segmentation.learning_rate": 2e-3},
}


def miou(backbone, seed, settings):
    done = dinoforge.evaluate(
        backbone=backbone, tasks="segmentation", data=SCENES, features="none", precision="fp32",
        **SAME | settings | {"segmentation.seed": seed},
    )  # fmt: skip
    (value,) = [score.value for score in done.scores if score.name == "miou"]
    return value


@pytest.mark.long
def test_it_beats_the_linear_head_on_scenes(toy_run, unchecked):
    backbone = str(toy_run(0) / "backbone")
    found = {name: [miou(backbone, seed, settings) for seed in SEEDS] for name, settings in HEADS.items()}
    for name, values in found.items():
        print(f"{name}: mIoU {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} of seeds {SEEDS}: {values}")
    linear = max((values for name, values in found.items() if name.startswith("linear")), key=statistics.mean)
    spread = max(statistics.stdev(values) for values in found.values())
    assert statistics.mean(found["mask2former, 2e-3"]) > statistics.mean(linear) + 2 * spread
