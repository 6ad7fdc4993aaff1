"""The toy world is a function of its seed, keeps its ground truth, and is not told by its colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dinoforge.base.random import numpy_generator
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld import SPECIES, render
from dinoforge.evaluate.knn import KnnConfig, knn_scores


@pytest.mark.parametrize("species", SPECIES, ids=lambda species: species.name)
def test_a_picture_is_a_function_of_its_generator(species):
    one, same, other = (render(species, numpy_generator(seed, "t", 0), size=32) for seed in (0, 0, 1))
    assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    assert one.pixels.shape == (32, 32, 3)
    assert 0.02 < one.mask.mean() < 0.9


def test_the_mask_is_the_animal():
    """Another coat changes what is under the mask (and its soft edge), and nothing else."""
    for seed in range(5):
        plain = render(SPECIES[2], numpy_generator(seed, "t", 0), size=64)
        other = render(replace(SPECIES[2], coat="checks"), numpy_generator(seed, "t", 0), size=64)
        changed = (plain.pixels != other.pixels).any(-1)
        assert np.array_equal(plain.mask, other.mask)
        outside = changed & ~grown(plain.mask)
        assert outside.mean() < 0.001  # a pixel or two where the grass leaves a gap
        assert changed[plain.mask].mean() > 0.5


def grown(mask):
    """The mask and two pixels around it."""
    wide = np.pad(mask, 2)
    return np.any([np.roll(wide, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)], axis=0)[2:-2, 2:-2]


def test_train_and_test_share_no_picture():
    train, test = (open_source(f"toy://species?images=50&size=16&split={split}") for split in ("train", "test"))
    assert (len(train), len(test)) == (40, 10)
    seen = {train.pixels(n).tobytes() for n in range(40)}
    assert not any(test.pixels(n).tobytes() in seen for n in range(10))
    assert len(seen) == 40


def test_pixels_and_colours_do_not_tell_the_species():
    """k-NN on thumbnails and on colour histograms stays near chance (1 in 12): the world is hard on purpose."""
    train, test = (open_source(f"toy://species?images=1500&size=32&split={split}") for split in ("train", "test"))

    def features(source, how):
        return torch.stack([how(torch.from_numpy(source.pixels(n)).float()) for n in range(len(source))])

    def histogram(pixels):
        cells = (pixels // 64).long().flatten(0, 1) @ torch.tensor([16, 4, 1])
        return torch.bincount(cells, minlength=64).float()

    def thumbnail(pixels):
        return pixels[::2, ::2].flatten() - 128

    labels = [torch.from_numpy(source.columns["label"]) for source in (train, test)]
    for how, limit in ((thumbnail, 0.35), (histogram, 0.40)):
        (score,) = knn_scores(
            features(train, how), labels[0], features(test, how), labels[1], config=KnnConfig(neighbours=10)
        )
        assert score.value <= limit, how.__name__
