"""Masks by index, depth in its own unit."""

import io

import numpy as np
import pytest
from PIL import Image

from dinoforge.data.decode import Broken
from dinoforge.data.ground_truth import ground_truth

INDEX = np.asarray([[0, 1, 2], [2, 1, 255]], np.uint8)


def stored(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_a_palette_stands_for_its_indices_whatever_its_colours():
    image = Image.frombytes("P", (3, 2), INDEX.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9] + [1, 2, 3] * 253)
    found = ground_truth(stored(image), "mask")
    assert found.tolist() == INDEX.tolist()
    assert found.dtype == np.uint8


def test_sixteen_bits_stay_sixteen_bits():
    depth = np.asarray([[0, 1], [300, 65535]], np.uint16)
    found = ground_truth(stored(Image.fromarray(depth)), "depth")
    assert (found.tolist(), found.dtype) == (depth.tolist(), np.uint16)
    assert ground_truth(stored(Image.fromarray(depth)), "mask").tolist() == depth.tolist()
    assert ground_truth(stored(Image.fromarray(depth), "TIFF"), "depth").tolist() == depth.tolist()


def test_floats_stay_floats_and_are_no_classes():
    depth = np.asarray([[0.5, 2.25]], np.float32)
    found = ground_truth(stored(Image.fromarray(depth), "TIFF"), "depth")
    assert (found.tolist(), found.dtype) == (depth.tolist(), np.float32)
    with pytest.raises(Broken, match="the mask holds fractions"):
        ground_truth(stored(Image.fromarray(depth), "TIFF"), "mask")
    assert ground_truth(stored(Image.fromarray(np.floor(depth)), "TIFF"), "mask").tolist() == [[0, 2]]


def test_numpy_files():
    file = io.BytesIO()
    np.save(file, np.asarray([[1.5, 3]], np.float64))
    assert ground_truth(file.getvalue(), "depth").dtype == np.float32
    file = io.BytesIO()
    np.save(file, np.asarray([{"a": 1}]), allow_pickle=True)
    with pytest.raises(Broken, match="holds Python objects"):
        ground_truth(file.getvalue(), "depth")


@pytest.mark.parametrize("kind", ["?", "u1", ">u2", ">i4", "<i8", ">f4"])
def test_numbers_of_a_numpy_file_stay_as_they_are(kind):
    classes = np.asarray([[0, 1, 1], [1, 0, 1]], kind)
    for array in (classes, np.asfortranarray(classes), classes[:, :, None]):
        file = io.BytesIO()
        np.save(file, array)
        found = ground_truth(file.getvalue(), "depth")
        assert found.tolist() == classes.astype(int).tolist()
        assert found.dtype == np.dtype("u1" if kind == "?" else kind).newbyteorder("=")
        assert found.flags.writeable


@pytest.mark.parametrize(
    ("array", "reason"),
    [(np.zeros((2, 2), complex), "holds complex128, not numbers"), (np.zeros(4), r"has shape \[4\]")],
)
def test_numpy_files_of_something_else(array, reason):
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(Broken, match=reason):
        ground_truth(file.getvalue(), "mask")
    with pytest.raises(Broken, match=r"no NumPy array that can be read"):
        ground_truth(file.getvalue()[:90], "mask")


def test_grey_in_three_channels_is_one_and_colours_are_refused():
    grey = np.repeat(INDEX[:, :, None], 3, axis=2)
    assert ground_truth(stored(Image.fromarray(grey)), "mask").tolist() == INDEX.tolist()
    grey[0, 0] = (1, 2, 3)
    with pytest.raises(Broken, match="the mask has several channels"):
        ground_truth(stored(Image.fromarray(grey)), "mask")


def test_one_bit_and_alpha():
    assert ground_truth(stored(Image.fromarray(INDEX > 1)), "mask").tolist() == (INDEX > 1).astype(int).tolist()
    both = np.stack([INDEX, np.full_like(INDEX, 7)], axis=2)
    assert ground_truth(stored(Image.fromarray(both, "LA")), "mask").tolist() == INDEX.tolist()


@pytest.mark.parametrize(("encoded", "reason"), [(b"no", "no picture"), (b"", "no picture")])
def test_no_picture_is_broken(encoded, reason):
    with pytest.raises(Broken, match=reason):
        ground_truth(encoded, "mask")


def test_a_cut_picture_is_broken():
    whole = stored(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)))
    with pytest.raises(Broken, match="damaged picture"):
        ground_truth(whole[:400], "mask")
