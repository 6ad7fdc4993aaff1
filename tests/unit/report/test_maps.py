"""Pictures of maps: what is where, in which colour, at any size."""

import numpy as np
import pytest
from PIL import Image

from dinoforge.report import maps
from dinoforge.report.maps import SIDE, classes_picture, depth_picture, palette


def grey(height, width, channels=3):
    return np.full((height, width, channels), 128, np.uint8)


def at(picture, y, x):
    return np.asarray(picture)[y, x].astype(int)


def test_image_then_classes_then_legend():
    """A grey image stays; over it each class has six tenths of its colour; the legend has the colours, the largest first."""
    classes = np.zeros((40, 30), int)
    classes[10:] = 2
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    picture = classes_picture(grey(40, 30), classes, names=["a", "b", "c"], colours=colours)
    assert at(picture, 12 + 100, 12 + 100).tolist() == [128] * 3
    left = 12 + SIDE * 3 // 4 + 12
    np.testing.assert_allclose(at(picture, 12 + 100, left + 100), [0.4 * 128 + 0.6 * 250, 51.2, 51.2], atol=1.5)
    np.testing.assert_allclose(at(picture, 12 + 700, left + 100), [51.2, 51.2, 0.4 * 128 + 0.6 * 250], atol=1.5)
    legend = picture.width - 12 - 240
    assert at(picture, 20, legend + 8).tolist() == [0, 0, 250]
    assert at(picture, 42, legend + 8).tolist() == [250, 0, 0]
    assert at(picture, 64, legend + 8).tolist() == [255, 255, 255]


@pytest.mark.parametrize(("unit", "bright"), [("metres", "low"), ("disparity", "high")])
def test_near_is_bright(unit, bright):
    depth = np.ones((50, 50), np.float32)
    depth[25:] = 4
    picture = depth_picture(grey(50, 50), depth, unit=unit)
    above, below = (at(picture, 12 + y, 24 + SIDE + 100).sum() for y in (100, SIDE - 100))
    assert (above > below) == (bright == "low")
    bar = picture.width - 12 - 110
    assert at(picture, 12 + 30, bar + 10).sum() > at(picture, picture.height - 30, bar + 10).sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3000, 4000), (300, 2000)])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_size_and_channels(size, channels):
    classes = np.arange(size[0] * size[1]).reshape(size) % 150
    picture = classes_picture(grey(*size, channels), classes, names=["x" * 90] * 150, colours=palette(150))
    assert max(picture.size) <= 2 * SIDE + 400
    assert depth_picture(grey(*size, channels), classes.astype(np.float32), unit="metres").mode == "RGB"


@pytest.mark.parametrize("value", [0.0, 1e-3, 5.0, 80.0])
def test_depth_that_is_even(value):
    assert isinstance(depth_picture(grey(20, 20), np.full((20, 20), value, np.float32), unit="metres"), Image.Image)


def test_colours_differ():
    colours = np.asarray(palette(64), int)
    gaps = np.abs(colours[:, None] - colours[None]).max(-1) + 1000 * np.eye(64, dtype=int)
    assert gaps.min() >= 8
    assert palette(64)[:10] == palette(10)


def test_a_long_name_is_cut_and_small_shares_are_told():
    assert maps._short("x" * 200).endswith("…")
    assert maps._font().getlength(maps._short("W" * 200)) <= 240 - 24 - 12 - 64
    assert maps._short("деревья") == "деревья"
    assert [maps._percent(share) for share in (1, 0.123, 0.0004)] == ["100.0 %", "12.3 %", "< 0.1 %"]
