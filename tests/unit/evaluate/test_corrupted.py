"""Corrupted views: the same pixels always, other ones for other rows, and what the benchmark's files would be."""

import numpy as np
import pytest
import torch

from dinoforge.data.corruptions.digital import as_jpeg
from dinoforge.data.corruptions.table import corrupt
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.corrupted import corrupted
from dinoforge.features.views import middle
from dinoforge.model.weights import Preprocessing

SOURCE = open_source("toy://species?images=4&size=256")
PIXELS = SOURCE.pixels(0)
USUAL = Preprocessing()


def seen(row=0, name="shot_noise", severity=3, how=USUAL, seed=0, quality=None):
    return corrupted(how, name, severity, seed=seed, quality=quality).of(PIXELS, row)


def test_is_a_function_of_seed_corruption_severity_and_row():
    for name in ("gaussian_noise", "glass_blur", "elastic_transform", "snow", "fog", "frost", "motion_blur"):
        assert torch.equal(seen(2, name), seen(2, name))
        for other in ({"row": 3}, {"seed": 1}, {"severity": 4}):
            assert not torch.equal(seen(**{"row": 2, "name": name} | other), seen(2, name))


def test_severities_are_drawn_anew():
    """The noise of one is not that of another made larger."""
    clean = middle(USUAL).of(PIXELS, 0).double()
    noise = [(seen(name="gaussian_noise", severity=severity).double() - clean).flatten() for severity in (1, 2)]
    assert abs(torch.corrcoef(torch.stack(noise))[0, 1].item()) < 0.05


def test_does_not_depend_on_what_was_seen_before():
    forward = [seen(row) for row in range(4)]
    backward = [seen(row) for row in reversed(range(4))][::-1]
    assert all(torch.equal(one, other) for one, other in zip(forward, backward, strict=True))


def test_is_the_usual_view_corrupted_and_compressed():
    clean = middle(USUAL).of(PIXELS, 0).permute(1, 2, 0).numpy()
    want = corrupt(np.ascontiguousarray(clean), "contrast", 2, np.random.default_rng())
    assert (seen(name="contrast", severity=2).permute(1, 2, 0).numpy() == want).all()
    assert (seen(name="contrast", severity=2, quality=85).permute(1, 2, 0).numpy() == as_jpeg(want, 85)).all()


@pytest.mark.parametrize("side", [64, 448])
def test_another_size_is_the_same_picture_resized(side):
    how = Preprocessing(short_side=side * 8 // 7, side=side)
    found = seen(name="brightness", how=how)
    assert found.shape == (3, side, side)
    want = torch.nn.functional.interpolate(
        seen(name="brightness")[None], (side, side), mode="bicubic", antialias=True
    )[0]  # fmt: skip
    assert torch.equal(found, want)


def test_the_name_says_all_of_it():
    views = [
        corrupted(how, name, severity, seed=seed, quality=quality).name
        for how in (USUAL, Preprocessing(short_side=224, side=224), Preprocessing(short_side=128, side=112))
        for name in ("fog", "snow")
        for severity in (1, 2)
        for seed in (0, 1)
        for quality in (None, 85, 50)
    ]
    assert len({*views}) == len(views)
