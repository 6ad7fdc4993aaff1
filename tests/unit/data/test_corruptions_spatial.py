"""Blurs and weather: by what a point becomes, by their slow definitions, by laws."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dinoforge.data.corruptions.blur import disc, moved, zoomed
from dinoforge.data.corruptions.table import CORRUPTIONS, SIDE
from dinoforge.data.corruptions.weather import frosted_pane, plasma
from dinoforge.data.sources.table import open_source

PICTURE = open_source(f"toy://species?images=1&size={SIDE}").pixels(0)
SMALL = PICTURE[60:84, 60:84].copy()


def rng(seed=0):
    return np.random.default_rng(seed)


def raw(name, pixels, level, seed=0):
    return CORRUPTIONS[name].of(pixels, level, rng(seed))


def point(side=SIDE):
    found = np.zeros((side, side, 3), np.uint8)
    found[side // 2, side // 2] = 255
    return found


def widths(spread):
    """Standard deviations down and across of what a point became, and how much there is of it."""
    mass = spread[..., 0].astype(np.float64)
    at = np.arange(len(mass)) - len(mass) // 2
    total = mass.sum()
    centre = [(mass.sum(axis) @ at) / total for axis in (1, 0)]
    return [np.sqrt(mass.sum(axis) @ (at - c) ** 2 / total) for axis, c in zip((1, 0), centre, strict=True)], total


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"])
@pytest.mark.parametrize("severity", [1, 5])
def test_a_blur_leaves_one_colour_alone(name, severity):
    """Wide discs of defocus brighten it by a hundredth, as the published program does."""
    pixels = np.full((SIDE, SIDE, 3), (10, 120, 250), np.uint8)
    found = raw(name, pixels, CORRUPTIONS[name].levels[severity - 1]) * 255
    wide = name == "defocus_blur" and severity == 5
    np.testing.assert_allclose(found, pixels, rtol=0.0108 if wide else 0, atol=0.01)


@pytest.mark.parametrize("sigma", [1, 6])
def test_gaussian_blur_makes_a_point_as_wide_as_it_says(sigma):
    (down, across), total = widths(raw("gaussian_blur", point(), (sigma,)))
    assert total == pytest.approx(1, abs=1e-3)
    assert [down, across] == pytest.approx([sigma, sigma], rel=0.02)


@pytest.mark.parametrize("level", CORRUPTIONS["defocus_blur"].levels)
def test_defocus_makes_a_point_a_disc(level):
    """A disc of radius r has the deviation r / 2 in each direction; smoothing adds its own variance."""
    (down, across), total = widths(raw("defocus_blur", point(), level))
    want = math.hypot(level[0] / 2, level[1])
    assert total == pytest.approx(1, abs=0.013 if level[0] >= 8 else 1e-3)
    assert [down, across] == pytest.approx([want, want], rel=0.06)
    middle = disc(*level).shape[0] // 2
    assert disc(*level)[middle, middle] == pytest.approx(1 / (math.pi * level[0] ** 2), rel=0.15)


def test_glass_blur_equals_its_definition():
    """One pixel after the other, exchanged as NumPy exchanges two views of one array; the blur is too narrow to do anything."""
    level = (0.05, 3, 2)
    draws, want = rng(4), SMALL.copy()
    side = len(want)
    places = [(y, x) for y in range(side - 3, 3, -1) for x in range(side - 3, 3, -1)]
    for _ in range(2):
        down, right = draws.integers(-3, 3, (2, len(places)))
        for (y, x), dy, dx in zip(places, down, right, strict=True):
            want[y, x], want[y + dy, x + dx] = want[y + dy, x + dx], want[y, x]
    np.testing.assert_allclose(raw("glass_blur", SMALL, level, seed=4) * 255, want, atol=1e-3)
    assert (want != SMALL).any()


@pytest.mark.parametrize("angle", [0.0, 30.0, -45.0, -110.0])
def test_motion_blur_equals_its_definition(angle):
    """A half Gaussian of shifted pictures, edges repeated (ImageMagick's)."""
    radius, sigma = 5, 3
    x = (SMALL / 255).astype(np.float32)
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(2 * radius + 1)]
    want, side = np.zeros_like(x), len(x)
    for step, weight in enumerate(weights):
        dy = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        dx = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        rows, columns = ((np.arange(side) + d).clip(0, side - 1) for d in (dy, dx))
        want += weight / sum(weights) * x[rows][:, columns]
    np.testing.assert_allclose(moved(x, (radius, sigma), angle=angle), want, atol=1e-5)


def test_motion_lies_within_45_degrees():
    for seed in range(20):
        (down, across), _ = widths(raw("motion_blur", point(), (20, 15), seed))
        assert down < 1.05 * across


@pytest.mark.parametrize("factor", [1.0, 1.07, 1.3, 3.0, 4.5])
def test_zoom_is_that_of_scipy(factor):
    plane = PICTURE[..., 0] / 255
    kept = math.ceil(SIDE / factor)
    first = (SIDE - kept) // 2
    whole = ndimage.zoom(plane[first : first + kept, first : first + kept], factor, order=1)
    trim = (len(whole) - SIDE) // 2
    want = whole[trim : trim + SIDE, trim : trim + SIDE]
    found = zoomed(torch.from_numpy(plane).float(), factor).numpy()
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_zoom_blur_is_a_mean():
    """Of the picture and of its zooms by 1, 1.2 and 1.4: the end given is not reached."""
    plane = torch.from_numpy(PICTURE).permute(2, 0, 1) / 255
    want = (plane + plane + zoomed(plane, 1.2) + zoomed(plane, 1.4)) / 4
    np.testing.assert_allclose(raw("zoom_blur", PICTURE, (1.5, 0.2)), want.permute(1, 2, 0).numpy(), atol=1e-5)


def slow_plasma(size, decay, draws):
    """Point by point: the middle of each square, then of each edge, on a torus."""
    field, step, wobble = np.zeros((size, size)), size, 100.0
    while step > 1:
        half, count = step // 2, size // step
        kinds = [
            (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (0, half, [(0, -half), (0, half), (-half, 0), (half, 0)]),
            (half, 0, [(0, -half), (0, half), (-half, 0), (half, 0)]),
        ]
        for top, left, around in kinds:
            noise = wobble * draws.uniform(-wobble, wobble, (count, count))
            for i in range(count):
                for j in range(count):
                    y, x = top + i * step, left + j * step
                    field[y, x] = sum(field[(y + a) % size, (x + b) % size] for a, b in around) / 4 + noise[i, j]
        step, wobble = half, wobble / decay
    return (field - field.min()) / (field.max() - field.min())


@pytest.mark.parametrize("decay", [1.4, 2.0])
def test_plasma_equals_its_definition(decay):
    np.testing.assert_allclose(plasma(16, decay, rng(3)), slow_plasma(16, decay, rng(3)), atol=1e-9)
    assert (plasma(11, decay, rng(3)) == plasma(16, decay, rng(3))[:11, :11]).all()


def test_fog_by_its_formula():
    """Three parts fog, one part picture, scaled to the picture's own top."""
    x = SMALL / 255
    top = x.max()
    want = (x + 3 * plasma(24, 1.4, rng(2))[..., None]) / (top + 3) * top
    np.testing.assert_allclose(raw("fog", SMALL, (3, 1.4), seed=2), want, atol=1e-9)
    assert want.max() <= top


def test_frost_is_added_to_what_is_left():
    want = 0.7 * SMALL / 255 + 0.6 * frosted_pane(24, rng(2))
    np.testing.assert_allclose(raw("frost", SMALL, (0.7, 0.6), seed=2), want, atol=1e-6)


def test_a_frosted_pane_is_bluish_white_ice():
    for seed in range(4):
        pane = frosted_pane(SIDE, rng(seed))
        assert 0 <= pane.min() <= pane.max() <= 1
        assert 0.2 < pane.mean() < 0.6
        assert pane.std() > 0.1
        red, green, blue = np.moveaxis(pane, -1, 0)
        assert (red <= green + 1e-9).all()
        assert (green <= blue + 1e-9).all()


def test_snow_falls_the_same_way_upside_down():
    """On one colour what is added looks the same after half a turn; without flakes only the whitening is left, by hand."""
    pixels = np.full((64, 64, 3), (51, 102, 204), np.uint8)
    grey = (0.299 * 51 + 0.587 * 102 + 0.114 * 204) / 255
    base = 0.8 * pixels / 255 + 0.2 * np.maximum(pixels / 255, 1.5 * grey + 0.5)
    np.testing.assert_allclose(raw("snow", pixels, (0.1, 0.3, 3, 9.0, 10, 4, 0.8)), base, atol=1e-6)
    fallen = raw("snow", pixels, (0.1, 0.3, 3, 0.5, 10, 4, 0.8)) - base
    assert fallen.min() > -1e-6
    assert fallen.max() > 0.2
    np.testing.assert_allclose(fallen, np.rot90(fallen, 2), atol=1e-6)


def test_snow_falls_more_down_than_across():
    for seed in range(5):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        fallen = raw("snow", pixels, (0.1, 0.3, 2, 0.6, 12, 4, 1.0), seed)[..., 0]
        across, down = (np.abs(np.diff(fallen, axis=axis)).sum() for axis in (1, 0))
        assert down < 1.05 * across


def test_spatter_of_water_adds_light_and_mud_covers():
    x = PICTURE / 255
    water = raw("spatter", PICTURE, CORRUPTIONS["spatter"].levels[2])
    assert (water - x).min() > -1e-9
    assert 0.02 < ((water - x).max(-1) > 0.02).mean() < 0.9
    assert (water - x).max() <= 0.5 * 238 / 255 + 1e-9
    mud = raw("spatter", PICTURE, CORRUPTIONS["spatter"].levels[4])
    share = (x - mud) / (x - np.asarray([63, 42, 20]) / 255 + 1e-12)
    covered = np.median(share, -1)
    assert 0.05 < (covered > 0.75).mean() < 0.6
    clean = covered < 0.1
    np.testing.assert_allclose(mud[clean], x[clean], atol=1e-6)
