"""Alignment and outliers by hand and by slow loops; the task on good, constant and real features."""

import math

import numpy as np
import pytest
import torch

from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.health import smoothness, uniformity
from dinoforge.evaluate.healthy import HEALTH, HealthConfig, alignment, outliers
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes
from dinoforge.model.vit import VitConfig
from given import GivenEyes, Made
from perturbed import perturbed


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alignment_equals_its_definition():
    one, other = made(20, 6) * 5, made(20, 6, seed=1)
    want = []
    for x, y in zip(one.double().tolist(), other.double().tolist(), strict=True):
        lengths = [math.sqrt(sum(v * v for v in row)) for row in (x, y)]
        want.append(sum((a / lengths[0] - b / lengths[1]) ** 2 for a, b in zip(x, y, strict=True)))
    np.testing.assert_allclose(alignment(one, other), want, atol=1e-6)


def test_alignment_by_hand():
    one = torch.tensor([[2.0, 0], [2.0, 0], [2.0, 0]])
    other = torch.tensor([[5.0, 0], [0, 0.1], [-3.0, 0]])
    np.testing.assert_allclose(alignment(one, other), [0, 2, 4], atol=1e-9)


def slow_outliers(norms, factor):
    flat = sorted(norms.ravel().tolist())

    def median(values):
        values = sorted(values)
        half = len(values) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    middle = median(flat)
    spread = 1.4826 * median([abs(value - middle) for value in flat])
    threshold = max(factor * middle, middle + 6 * spread)
    return [sum(value > threshold for value in image.ravel()) / image.size for image in norms], threshold


@pytest.mark.parametrize("spread", [0.2, 1.5])
def test_outliers_equal_their_definition(spread):
    """A narrow spread is judged by the multiple of the median, a wide one by its deviations."""
    norms = np.abs(made(9, 4, 5).numpy() * spread + 2)
    norms[3, 1, 2] = norms[3, 2, 2] = norms[5, 0, 0] = 40
    want, threshold = slow_outliers(norms.astype(float), 3.0)
    shares, found = outliers(norms, factor=3.0)
    np.testing.assert_allclose(shares, want)
    assert found == pytest.approx(threshold, rel=1e-5)
    assert shares[3] == pytest.approx(2 / 20)
    assert (threshold > 3.1 * np.median(norms)) == (spread > 1)


def test_outliers_by_hand():
    """Ones, one 3 and one 3.1: three times the median is not yet an outlier, more is."""
    norms = np.ones((2, 2, 2))
    norms[0, 0, 0], norms[1, 1, 1] = 3, 3.1
    shares, threshold = outliers(norms, factor=3)
    assert threshold == 3
    assert shares.tolist() == [0, 0.25]


def measured(**features):
    source = Made([0] * len(features["image"]), **features)
    eyes = GivenEyes()
    return {score.name: score for score in HEALTH.measure(eyes, Sides(source, source), HealthConfig())}, eyes


def test_scores_of_given_features():
    image, norms, patches = made(30, 8), np.ones((30, 3, 3), np.float32), made(30, 3, 3, 8)
    norms[0, 0, 0] = 10
    found, eyes = measured(image=image, norms=torch.from_numpy(norms), patches=patches)
    assert found["uniformity"].value == uniformity(image)
    assert found["smoothness"].value == smoothness(patches)
    assert found["norm_outliers"].value == pytest.approx(1 / 270)
    assert found["norm_peak"].value == 10
    assert found["alignment"].value == 0  # of the same features twice
    assert 7 < found["effective_rank"].value <= 8
    assert {name for name, score in found.items() if score.higher_is_better} == {"effective_rank", "smoothness"}
    assert len({view for _, _, view in eyes.views}) == 3  # the middle, and two different crops


def test_a_constant_backbone_is_seen_to_have_collapsed():
    found, _ = measured(image=torch.ones(20, 8), norms=torch.ones(20, 2, 2), patches=torch.ones(20, 2, 2, 8))
    want = {"effective_rank": 0, "uniformity": 0, "alignment": 0, "norm_outliers": 0, "norm_peak": 1, "smoothness": 0}
    assert {name: score.value for name, score in found.items()} == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("heights", "want"), [([0, 0, 0, 0, 2, 8], 8 / 5), ([0] * 6, 1), ([0, 0, 0, 3, 3, 9], 9 / 1.5)]
)
def test_the_peak_of_norms_that_are_mostly_zero_is_over_the_median_of_the_others(heights, want):
    """By hand: the medians are 0, whose others have 5; 0; and 1.5, which is taken as it is."""
    norms = torch.tensor(heights).float().reshape(1, 2, 3)
    found, _ = measured(image=torch.ones(1, 8), norms=norms, patches=torch.ones(1, 2, 3, 8))
    assert found["norm_peak"].value == pytest.approx(want)
    assert ("of those above 0" in found["norm_peak"].protocol) == (heights[3] == 0)


def test_the_best_backbone_is_even_and_indifferent_to_crops():
    """Corners of a simplex, each for both crops of its image, are as uniform as can be."""
    image = torch.eye(12) - 1 / 12
    found, _ = measured(image=image, norms=torch.ones(12, 2, 2), patches=torch.ones(12, 2, 2, 8))
    assert found["uniformity"].value == pytest.approx(-4 * 12 / 11)
    assert found["alignment"].value == 0
    assert found["effective_rank"].value == pytest.approx(11)


def test_on_pixels():
    """Only so many images as are asked for, patches of fewer still; crops differ, so alignment is above 0."""
    backbone = perturbed(VitConfig(width=16, depth=2, heads=2, patch=8, pixels=32), short_side=36, side=32)
    eyes = Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)
    source = open_source("toy://species?images=30&size=48")
    scores = HEALTH.measure(eyes, Sides(source, source), HealthConfig(images=24, dense=5))
    found = {score.name: score for score in scores}
    assert [found[name].n for name in ("effective_rank", "alignment", "norm_outliers", "smoothness")] == [24, 24, 24, 5]
    assert 0 < found["alignment"].value < 4
    assert found["norm_peak"].value > 1
    low, high = found["alignment"].interval
    assert low < found["alignment"].value < high
    other = HEALTH.measure(eyes, Sides(source, source), HealthConfig(images=24, dense=5, seed=1))
    assert {score.name for score, one in zip(scores, other, strict=True) if score.value != one.value} == {"alignment"}
