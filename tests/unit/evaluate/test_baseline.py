"""What needs no learning: thumbnails and colour histograms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.baseline import BASELINES, histogram, thumbnail
from dinoforge.evaluate.knn import KnnConfig, knn_scores

CIFAR = Path("../shared/data/cifar10")


def test_a_histogram_is_blind_to_place_and_a_thumbnail_is_not():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = (250, 0, 0)
    moved = pixels[:, ::-1]
    assert torch.equal(histogram(pixels), histogram(moved))
    assert torch.cosine_similarity(thumbnail(pixels), thumbnail(moved), dim=0) < 0.5


def test_a_histogram_by_hand():
    """Half black, half in the topmost step of red alone: two entries of root one half."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, :, 0] = 255
    found = histogram(pixels)
    assert found[0].item() == pytest.approx(0.5**0.5)
    assert found[7 * 64].item() == pytest.approx(0.5**0.5)
    assert found.square().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("size", [(5, 7), (64, 64), (16, 16)])
def test_any_size(name, size):
    rng = np.random.default_rng(0)
    assert torch.isfinite(BASELINES[name](rng.integers(0, 256, (*size, 3), dtype=np.uint8))).all()


@pytest.mark.skipif(not CIFAR.exists(), reason="no real images beside the repository")
def test_the_floor_of_cifar10():
    """The published floor of this protocol: 46.5 % with 20,000 rows that vote; fewer vote here, so it lies a little lower."""
    features, labels = {}, {}
    for split, rows in (("train", 4000), ("test", 500)):
        source = open_source(f"{CIFAR}?split={split}").select(np.arange(rows))
        features[split] = torch.stack([thumbnail(source.pixels(row)) for row in range(rows)])
        labels[split] = torch.from_numpy(source.columns["label"])
    score = knn_scores(
        features["train"], labels["train"], features["test"], labels["test"], config=KnnConfig(neighbours=10)
    )[0]
    assert 0.33 < score.value < 0.46
