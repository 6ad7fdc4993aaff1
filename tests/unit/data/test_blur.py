"""What is in a box is gone, what is outside stays, at any size and in any numbers."""

import numpy as np
import pytest

from dinoforge.data.blur import CELLS, blurred, blurred_pixels
from dinoforge.data.picture import RGB, Broken, Picture

BOX = np.asarray([[0.25, 0.5, 0.75, 1.0]], np.float32)


def noise(height=120, width=160, channels=3, kind=np.uint8):
    top = np.iinfo(kind).max if np.dtype(kind).kind in "iu" else 1
    return (np.random.default_rng(0).random((height, width, channels)) * top).astype(kind)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_only_cells_of_means_are_left(kind, channels):
    pixels = noise(channels=channels, kind=kind)
    found = blurred_pixels(pixels, BOX)
    assert (found.dtype, found.shape) == (pixels.dtype, pixels.shape)
    np.testing.assert_array_equal(found[:50], pixels[:50])  # the margin begins at row 60 - 0.15 * 60 = 51
    np.testing.assert_array_equal(found[:, :27], pixels[:, :27])
    inside = found[60:, 40:120].astype(np.float64)
    # Noise of a cell's 200 pixels and more averages to a tenth of its spread; steps between neighbours are gone.
    assert inside.std() < 0.1 * pixels.astype(np.float64).std()
    assert np.abs(np.diff(inside, axis=0)).max() < 0.02 * (float(pixels.max()) - float(pixels.min()))


def test_the_means_are_those_of_the_cells():
    """By hand: an image of CELLS x CELLS flat tiles under a box over all of it keeps the colour at the middle of a tile."""
    tiles = np.random.default_rng(0).integers(0, 256, (CELLS, CELLS, 3)).astype(np.uint8)
    pixels = np.kron(tiles, np.ones((11, 11, 1), np.uint8))
    found = blurred_pixels(pixels, np.asarray([[0, 0, 1, 1]], np.float32))
    np.testing.assert_array_equal(found[5::11, 5::11], tiles)
    np.testing.assert_array_equal(blurred_pixels(found, BOX[:0]), found)


def test_boxes_at_the_border_of_nothing_and_of_tiny_pictures():
    for box in ([0.9, 0.9, 1, 1], [0, 0, 0.001, 0.001], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1]):
        for shape in ((1, 1, 3), (2, 50, 1), (300, 3, 4)):
            found = blurred_pixels(noise(*shape), np.asarray([box], np.float32))
            assert found.shape == shape
    nothing = np.full((8, 8, 1), np.nan, np.float32)
    assert blurred_pixels(nothing, np.asarray([[0, 0, 1, 1]], np.float32))[4, 4, 0] == 0


def test_a_picture_is_blurred_at_whatever_size_it_is_decoded_and_keeps_its_limits():
    pixels = noise(400, 400)
    picture = Picture(400, 400, 3, decoded=lambda reduction: pixels[::reduction, ::reduction])
    whole, small = (RGB.of(blurred(picture, BOX)).pixels(reduction) for reduction in (1, 4))
    assert small.shape == (100, 100, 3)
    np.testing.assert_array_equal(small[:30], pixels[::4, ::4][:30])
    for found in (whole, small):
        size = len(found)
        assert found[size // 2 :, size // 4 : 3 * size // 4].std() < 0.2 * pixels.std()
    from dataclasses import replace

    with pytest.raises(Broken, match="decompression bomb"):
        blurred(replace(picture, max_pixels=10), BOX).pixels()
    assert blurred(picture, BOX[:0]) is picture
