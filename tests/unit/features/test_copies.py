import cv2
import numpy as np
import pytest
from scipy.fft import dctn

from dinoforge.features.copies import SIDE, WIDTH, describe, mirrored, thumbnail
from scenes import scenes


def described(pictures):
    return describe(np.stack([thumbnail(picture) for picture in pictures]))


def test_width_length_and_what_a_flat_picture_has():
    found = described([*scenes(3), np.full((40, 40, 3), 90, np.uint8)])
    assert found.shape == (4, WIDTH)
    assert found.dtype == np.float32
    assert WIDTH % 4 == 0  # four channels a code in the compressed index
    np.testing.assert_allclose(np.linalg.norm(found[:3], axis=1), 1, rtol=1e-5)
    assert (found[3] == 0).all()
    assert describe(np.zeros((0, SIDE, SIDE, 3), np.uint8)).shape == (0, WIDTH)


def test_layout_is_the_discrete_cosine_transform():
    """Against scipy's, up to the length that all are divided by: the forty lowest frequencies of each standardised colour."""
    picture = thumbnail(scenes(1)[0])
    x = picture.astype(np.float64)
    x = (x - x.mean(axis=(0, 1))) / x.std(axis=(0, 1))
    theirs = np.stack([dctn(x[..., colour], norm="ortho") for colour in range(3)], axis=-1)
    ours = describe(picture[None])[0, :120].reshape(40, 3)
    spectrum = theirs.reshape(-1, 3)
    # Every one of ours is one of theirs, times a constant: look each up by its value.
    scale = np.linalg.norm(ours) / np.linalg.norm(sorted_lowest(theirs))
    for number in ours:
        assert np.abs(spectrum * scale - number).max(axis=1).min() < 1e-4


def sorted_lowest(spectrum):
    down, across = np.indices(spectrum.shape[:2])
    order = np.lexsort((down.ravel(), np.maximum(down, across).ravel(), (down**2 + across**2).ravel()))
    return spectrum.reshape(-1, 3)[order[1:41]]


def test_brightness_and_tint_do_not_count():
    picture = scenes(1)[0]
    tinted = (picture * np.asarray([0.9, 0.6, 0.75])).astype(np.uint8)
    one, other = described([picture, tinted])
    assert one @ other > 0.995


def test_copies_are_near_and_others_are_not():
    pictures = scenes(20)
    small = [cv2.resize(picture, (40, 52), interpolation=cv2.INTER_AREA) for picture in pictures]
    whole, copies = described(pictures), described(small)
    assert (whole * copies).sum(axis=1).min() > 0.98
    apart = whole @ whole.T
    assert np.abs(apart[~np.eye(20, dtype=bool)]).max() < 0.6


def test_mirrored_is_the_descriptor_of_the_mirror_image():
    pictures = scenes(5)
    np.testing.assert_allclose(mirrored(described(pictures)), described([p[:, ::-1] for p in pictures]), atol=2e-4)
    np.testing.assert_array_equal(mirrored(mirrored(described(pictures))), described(pictures))


def test_float16_holds_it():
    found = described(scenes(10))
    assert ((found.astype(np.float16).astype(np.float32) * found).sum(axis=1) > 0.9999).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_any_number_of_channels(channels):
    picture = np.repeat(scenes(1)[0][..., :1], channels, axis=2)
    found = thumbnail(picture)
    assert found.shape == (SIDE, SIDE, 3)
    np.testing.assert_allclose(found.astype(int), thumbnail(picture[..., [0, 0, 0]]).astype(int), atol=1)
