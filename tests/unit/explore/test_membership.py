"""What was trained on is found again, exactly and nearly, and nothing else is."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.look import looked
from dinoforge.data.sources.table import open_source
from dinoforge.explore.membership import Training, membership
from dinoforge.features import descriptors
from dinoforge.features.copies import SIDE
from dinoforge.features.described import described
from dinoforge.features.descriptors import Descriptors
from dinoforge.features.pairs import LAYOUT_DUPLICATE


@pytest.fixture(scope="module")
def training():
    """Descriptors of the training split of the world that ``drawn`` is of."""
    source = open_source("toy://species?images=40&size=32&seed=2&copies=0.2&split=train")
    empty = np.zeros(0, np.str_)
    like = Descriptors(empty, empty, np.zeros((0, SIDE, SIDE, 3), np.uint8), np.zeros((0, 248), np.float16))
    return Training(described(source, like=like)[0], LAYOUT_DUPLICATE)


def jpeg(pixels, quality=70):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_training_images_are_in_the_training_set(drawn, training):
    names = {*training.stored.ids.tolist()}
    for row in (0, 1, 4, 9):
        found = membership(drawn, row, training)
        assert found.image.row == row
        assert found.near
        exact = [one.id for one in found.matches if one.kind == "exact"]
        if found.image.id in names:
            assert found.contained
            assert found.image.id in exact
        assert found.contained == bool(found.matches)


def test_a_copy_that_is_brought_is_near_and_noise_is_not(drawn, training):
    row = next(row for row in range(len(drawn)) if drawn.about(row).id in training.stored.ids.tolist())
    found = membership(drawn, jpeg(drawn.source.pixels(row)), training)
    assert (found.contained, found.image.row) == (True, None)
    assert {one.kind for one in found.matches} == {"near"}
    assert drawn.about(row).id in [one.id for one in found.matches]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert not membership(drawn, jpeg(noise), training).contained


def test_without_descriptors_only_the_same_bytes_are_found(drawn):
    (seen,) = next(iter(looked(drawn.source, np.asarray([3]), workers=1)))
    keys = np.asarray([seen.sha256])
    stored = Descriptors(np.asarray(["x"]), keys, np.zeros((1, SIDE, SIDE, 3), np.uint8), np.zeros((1, 0), np.float16))
    only = Training(stored, LAYOUT_DUPLICATE)
    found = membership(drawn, 3, only)
    assert [(one.id, one.kind, one.similarity) for one in found.matches] == [("x", "exact", 1)]
    assert not found.near
    assert not membership(drawn, jpeg(drawn.source.pixels(3)), only).contained


def test_errors_in_one_line(drawn, training):
    with pytest.raises(DataError, match="cannot be read"):
        membership(drawn, b"no picture", training)
    with pytest.raises(ConfigError, match="there is no image 99"):
        membership(drawn, 99, training)
    network = Descriptors(np.asarray(["x"]), np.asarray(["k"]), np.zeros((1, SIDE, SIDE, 3), np.uint8),
                          np.zeros((1, 8), np.float16), "backbone b")  # fmt: skip
    with pytest.raises(ConfigError, match="described by 'backbone b'; give its weights"):
        membership(drawn, 0, Training(network, 0.6))


def test_the_training_set_is_made_ready_once(drawn, training, monkeypatch):
    counted, of = [], descriptors.centre_of
    monkeypatch.setattr(descriptors, "centre_of", lambda values: (counted.append(1), of(values))[1])
    fresh = replace(training, stored=replace(training.stored))
    assert membership(drawn, 0, fresh) == membership(drawn, 0, fresh)
    assert len(counted) == 1
