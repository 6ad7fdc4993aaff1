"""The leak check: planted copies of test images are found in what curation stores, strangers are not."""

from hashlib import sha256

import numpy as np
import pytest
import torch

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.clips import Stills
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.leak import leaked, spared
from dinoforge.features.copies import describe, thumbnail
from dinoforge.features.descriptors import Descriptors
from dinoforge.features.extract import Extraction, NoneUsable
from dinoforge.features.eyes import Eyes
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing
from given import Listed

MILD = {"exact", "jpeg", "resize", "colour", "flip"}
WORLD = "toy://species?images=150&size=64&leaks=0.15&seed=3&split="


@pytest.fixture(scope="module")
def world():
    """Training images, among them copies of test images, as they are stored; and the test images."""
    train, test = (open_source(WORLD + split) for split in ("train", "test"))
    stored, _ = plain(train)
    return train, test, stored


def plain(source):
    pictures = np.stack([thumbnail(source.pixels(row)) for row in range(len(source))])
    keys = [str(row) for row in range(len(source))]
    return Descriptors(
        source.columns["id"], np.asarray(keys), pictures, describe(pictures).astype(np.float16)
    ), pictures


def test_planted_leaks_are_found(world):
    train, test, stored = world
    mask = leaked(test, stored)
    kinds = dict(zip(train.columns["copy_of"].tolist(), train.columns["copy_kind"].tolist(), strict=True))
    mild = np.asarray([kinds.get(name) in MILD for name in test.columns["id"].tolist()])
    any_kind = np.isin(test.columns["id"], train.columns["copy_of"])
    assert mild.sum() >= 3
    assert mask[mild].all()
    assert (mask & ~any_kind).sum() <= 0.1 * len(test)  # the strict threshold takes some that are only alike
    strict = leaked(test, stored, threshold=0.999)
    assert strict.sum() < mask.sum()


def test_a_clip_is_leaked_where_a_frame_is(world):
    """Test images in threes, as frames."""
    _, test, stored = world
    some = test.select(np.arange(len(test) // 3 * 3))
    some.columns = {name: some.columns[name] for name in ("id", "split")} | {
        "clip": (np.arange(len(some)) // 3).astype(np.str_)
    }
    mask = leaked(some, stored, threshold=0.999).reshape(-1, 3).any(1)
    assert 0 < mask.sum() < len(mask)
    assert leaked(Stills(some), stored, threshold=0.999).tolist() == mask.tolist()


def test_the_same_bytes_are_a_leak_without_descriptors(world):
    _, test, _ = world
    found, _ = plain(test)
    keys = np.asarray([sha256(test.encoded(row)).hexdigest() for row in range(len(test))])
    keys[::2] = "unknown"
    stored = Descriptors(found.ids, keys, found.thumbnails, np.zeros((len(test), 0), np.float16))
    assert leaked(test, stored, workers=2).tolist() == [row % 2 == 1 for row in range(len(test))]


def test_descriptors_of_a_network_need_it(world):
    _, test, _ = world
    some = test.select(np.arange(5))
    turned = np.eye(5, 7, dtype=np.float16)
    stored = Descriptors(
        some.columns["id"], np.asarray(list("abcde")), np.zeros((5, 32, 32, 3), np.uint8), turned, "net"
    )
    with pytest.raises(ConfigError, match="were described by 'net'; give its weights"):
        leaked(some, stored)

    def embed(source):
        assert len(source) == 5
        vectors = np.zeros((3, 7), np.float32)  # rows 1, 2 and 4 can be described
        vectors[0, 1], vectors[1, 2], vectors[1, 6], vectors[2, 6] = 1, 0.5, 0.866, 1
        return vectors, np.asarray([1, 2, 4])

    assert leaked(some, stored, embed=embed).tolist() == [False, True, True, False, False]  # cosines 1, 0.5 and 0
    assert leaked(some, stored, embed=embed, threshold=0.6).tolist() == [False, True, False, False, False]


class Torn(Listed):
    """Of the first rows no file can be read; the others are those of another source."""

    def __init__(self, source, torn):
        super().__init__("torn", len(source) + torn)
        self.source, self.torn, self.gone = source, torn, False

    def encoded(self, row):
        if row < self.torn or self.gone:
            raise Broken("torn")
        return self.source.encoded(row - self.torn)


def test_what_cannot_be_read_is_no_leak(world):
    _, test, stored = world
    mask = leaked(Torn(test, 4), stored)
    assert not mask[:4].any()
    assert mask[4:].tolist() == leaked(test, stored).tolist()
    assert not leaked(Torn(test.select(np.arange(0)), 3), stored).any()


def test_the_rest_is_an_evaluation_of_its_own():
    known, asked = Listed("g", 3, group=[0, 1, 2]), Listed("q", 3, group=[0, 1, 2])
    mask = np.asarray([False, True, False])
    rest = spared(Sides(known, asked), mask)
    assert rest.known is known
    assert rest.asked.columns["id"].tolist() == ["q/0", "q/2"]
    both = spared(Sides(asked, asked, itself=True), mask)
    assert both.itself
    assert both.known is both.asked
    assert both.known.columns["id"].tolist() == ["q/0", "q/2"]
    with pytest.raises(DataError, match="every image of q is in the training data"):
        spared(Sides(known, asked), np.ones(3, bool))


def test_the_rest_is_not_looked_at_again(world):
    """Features of a part are those of the whole; of a part of a part, too, and where an image is broken."""
    _, test, _ = world
    config = VitConfig(width=16, depth=1, heads=2, patch=4, pixels=16, layerscale=None)
    backbone = Backbone(build(config, seed=0), config, Preprocessing(side=16, short_side=16))
    eyes = Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)
    source = Torn(test.select(np.arange(10)), 2)
    whole = eyes.look(source)
    assert whole.rows.tolist() == list(range(2, 12))
    source.gone = True  # from here on nothing can be read
    part = eyes.look(source.select(np.asarray([10, 0, 3, 5])).select(np.asarray([0, 1, 2])))
    assert part.rows.tolist() == [0, 2]
    assert part.source.columns["id"].tolist() == ["torn/10", "torn/3"]
    assert torch.equal(part.values, whole.values[[8, 1]])
    with pytest.raises(NoneUsable):
        eyes.look(source.select(np.asarray([3])), "gem")
    with pytest.raises(NoneUsable):
        eyes.look(source.select(np.asarray([0, 1])))
