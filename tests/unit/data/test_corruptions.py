"""Corruptions: the published numbers, what holds for all of them, and noise and digital ones by hand and by law."""

import io

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image

from dinoforge.data.corruptions.digital import as_jpeg
from dinoforge.data.corruptions.table import BENCHMARK, CORRUPTIONS, SIDE, corrupt
from dinoforge.data.sources.table import open_source


def pictures(count):
    source = open_source(f"toy://species?images={count}&size={SIDE}")
    return [source.pixels(row) for row in range(count)]


PICTURES = pictures(4)
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
COLOURS[:4] = COLOURS[:4, :, :1]  # greys
COLOURS[0, 0] = 0


def rng(seed=0):
    return np.random.default_rng(seed)


def plain(level, side=SIDE):
    return np.full((side, side, 3), level, np.uint8)


def raw(name, pixels, level, seed=0):
    """Before it is cut off and rounded."""
    return CORRUPTIONS[name].of(pixels, level, rng(seed))


def distance(name, severity):
    """From the clean pictures, on the scale 0 to 1; the same draws for every severity."""
    found = [corrupt(picture, name, severity, rng(row)) / 255 - picture / 255 for row, picture in enumerate(PICTURES)]
    return np.sqrt(np.mean(np.square(found)))


def test_the_numbers_are_those_published():
    """From the program that Hendrycks & Dietterich made ImageNet-C with (github.com/hendrycks/robustness)."""
    levels = {name: corruption.levels for name, corruption in CORRUPTIONS.items()}
    assert levels["gaussian_noise"] == ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))
    assert levels["shot_noise"] == ((60,), (25,), (12,), (5,), (3,))
    assert levels["impulse_noise"][4] == (0.27,)
    assert levels["defocus_blur"][0] == (3, 0.1)
    assert levels["glass_blur"][2] == (1, 2, 3)
    assert levels["motion_blur"] == ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    assert levels["snow"][3] == (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65)
    assert levels["frost"] == ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
    assert levels["fog"] == ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
    assert levels["elastic_transform"][1] == pytest.approx((488, 19.52, 48.8))
    assert levels["pixelate"] == ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))
    assert levels["jpeg_compression"] == ((25,), (18,), (15,), (10,), (7,))
    assert levels["saturate"][4] == (20, 0.2)
    assert len(BENCHMARK) == 15
    assert len(CORRUPTIONS) == 19


# In the published numbers these do not rise from each severity to the next: they change what happens, not how much of it.
UNEVEN = {"elastic_transform", "glass_blur", "frost", "fog", "spatter", "saturate"}


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in UNEVEN])
def test_a_worse_severity_is_farther_from_the_clean_picture(name):
    found = [distance(name, severity) for severity in range(1, 6)]
    assert found == sorted(found)
    assert found[0] > 0.005


@pytest.mark.parametrize("name", sorted(UNEVEN - {"elastic_transform", "saturate"}))
def test_the_worst_severity_is_farther_than_the_mildest(name):
    assert distance(name, 5) > 1.1 * distance(name, 1) > 0.005


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_draws_same_pixels_and_the_input_stays(name):
    before = PICTURES[0].copy()
    first, again = (corrupt(PICTURES[0], name, 3, rng(5)) for _ in range(2))
    assert (first == again).all()
    assert (PICTURES[0] == before).all()
    assert first.shape == before.shape
    assert first.dtype == np.uint8
    drawn = name not in {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
                         "gaussian_blur", "saturate"}  # fmt: skip
    assert (corrupt(PICTURES[0], name, 3, rng(6)) != first).any() == drawn


@pytest.mark.parametrize("deviation", [0.08, 0.38])
def test_gaussian_noise_has_its_deviation(deviation):
    noise = raw("gaussian_noise", plain(100), (deviation,)) - 100 / 255
    assert noise.std() == pytest.approx(deviation, rel=0.01)
    assert abs(noise.mean()) < 0.005 * deviation * 3
    assert abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02  # channels are independent


@pytest.mark.parametrize(("value", "photons"), [(51, 60), (204, 60), (204, 3), (0, 3)])
def test_shot_noise_is_poisson(value, photons):
    """Mean as it is, variance the mean over the photons, and only whole photons."""
    found, mean = raw("shot_noise", plain(value), (photons,)), value / 255
    assert found.mean() == pytest.approx(mean, rel=0.01)
    assert found.var() == pytest.approx(mean / photons, rel=0.02)
    assert np.abs(found * photons - np.rint(found * photons)).max() < 1e-9


@pytest.mark.parametrize("share", [0.03, 0.27])
def test_impulse_noise_hits_its_share(share):
    found = raw("impulse_noise", plain(100), (share,))
    hit = found != 100 / 255
    assert hit.mean() == pytest.approx(share, rel=0.03)
    assert {*np.unique(found[hit])} == {0, 1}
    assert found[hit].mean() == pytest.approx(0.5, abs=0.02)
    assert hit.all(-1).mean() == pytest.approx(share**3, rel=0.15, abs=2e-5)  # each channel by itself


def test_speckle_noise_grows_with_the_value():
    for value in (0, 50, 200):
        found = raw("speckle_noise", plain(value), (0.35,))
        assert found.std() == pytest.approx(0.35 * value / 255, rel=0.01)
        assert found.mean() == pytest.approx(value / 255, rel=0.01)


def test_contrast_by_hand():
    """Red is 0 and 200, mean 100: at 0.4 that leaves 60 and 140; green is 30 throughout."""
    pixels = np.asarray([[[0, 30, 0], [200, 30, 0]]], np.uint8)
    np.testing.assert_allclose(raw("contrast", pixels, (0.4,)) * 255, [[[60, 30, 0], [140, 30, 0]]], atol=1e-9)


def test_brightness_is_that_of_hsv():
    """Against another library's colour spaces; by hand: pure red at half value turns to value 0.7."""
    want = rgb_to_hsv(COLOURS / 255)
    want[..., 2] = (want[..., 2] + 0.3).clip(0, 1)
    np.testing.assert_allclose(raw("brightness", COLOURS, (0.3,)), hsv_to_rgb(want), atol=1e-9)
    half = np.asarray([[[51, 0, 0]]], np.uint8)
    np.testing.assert_allclose(raw("brightness", half, (0.5,)), [[[0.7, 0, 0]]], atol=1e-9)


@pytest.mark.parametrize("level", CORRUPTIONS["saturate"].levels)
def test_saturate_is_that_of_hsv(level):
    want = rgb_to_hsv(COLOURS / 255)
    want[..., 1] = (want[..., 1] * level[0] + level[1]).clip(0, 1)
    np.testing.assert_allclose(raw("saturate", COLOURS, level), hsv_to_rgb(want), atol=1e-9)


@pytest.mark.parametrize("quality", [25, 7])
def test_jpeg_is_pillow_s(quality):
    file = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(file, "JPEG", quality=quality)
    want = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert (as_jpeg(PICTURES[0], quality) == want).all()
    severity = 1 + CORRUPTIONS["jpeg_compression"].levels.index((quality,))
    assert (corrupt(PICTURES[0], "jpeg_compression", severity, rng()) == want).all()


@pytest.mark.parametrize(("severity", "block"), [(2, 2), (5, 4)])
def test_pixelate_leaves_the_means_of_blocks(severity, block):
    found = corrupt(PICTURES[1], "pixelate", severity, rng())
    for top, left in [(0, 0), (block * 7, block * 20), (SIDE - block, SIDE - block)]:
        place = slice(top, top + block), slice(left, left + block)
        mean = PICTURES[1][place].mean((0, 1))
        assert np.abs(found[place] - mean).max() <= 1  # rounded once down and once across


def slopes():
    """Red rises to the right and green downwards, a level a pixel: what is shown says where it was taken from."""
    at = np.arange(SIDE, dtype=np.uint8)
    return np.stack(np.broadcast_arrays(at, at[:, None], np.uint8(0)), -1)


def taken_from(level, seed=0):
    """How far right and down of itself each pixel was taken from, away from the borders, which are mirrored."""
    found = (raw("elastic_transform", slopes(), level, seed)[..., :2] * 255 - slopes()[..., :2])[80:-80, 80:-80]
    return found.reshape(-1, 2)


def test_elastic_transform_of_no_strength_changes_nothing():
    found = raw("elastic_transform", PICTURES[0], (0, 2.44, 0))
    np.testing.assert_allclose(found * 255, PICTURES[0], atol=1e-3)


def test_elastic_displacements_have_the_deviation_of_smoothed_noise():
    """Uniform noise of -1 to 1 has the variance 1/3; a Gaussian of width s keeps 1 / (4 pi s^2) of it."""
    strength, sigma = 20.0, 3.0
    found = np.concatenate([taken_from((strength, sigma, 0), seed) for seed in range(8)])
    want = strength * np.sqrt(1 / 3 / (4 * np.pi * sigma**2))
    assert found.std(0) == pytest.approx([want, want], rel=0.1)


def test_elastic_transform_begins_with_an_affine_one():
    """Of no strength what is left is a plane in each direction, and no point inside the three moved ones goes farther."""
    found = taken_from((0, 2.44, 24.4), seed=1)
    at = np.stack(np.mgrid[80 : SIDE - 80, 80 : SIDE - 80], -1).reshape(-1, 2)
    design = np.concatenate([at, np.ones((len(at), 1))], 1)
    fit, *_ = np.linalg.lstsq(design, found, rcond=None)
    assert np.abs(design @ fit - found).max() < 0.1
    assert 1 < np.abs(found).max() < 2 * 24.4
