"""Features of a whole source: the same on any number of ranks, patches of the first rows alone, and no more in memory."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dinoforge.base.errors import DataError
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, extract, image_features, shared_features
from dinoforge.model.features import Features
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.weights import Preprocessing
from ranks import on_ranks

PREPROCESSING = Preprocessing(short_side=24, side=24)
CPU = torch.device("cpu")


def quiet(name, reason):
    pass


@pytest.fixture
def photos(tmp_path):
    """Ten pictures, of which those in rows 0, 3 and 7 are broken."""
    rng = np.random.default_rng(0)
    for row in range(10):
        path = tmp_path / f"{row}.png"
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
        if row in {0, 3, 7}:
            path.write_bytes(b"cut off")
    return open_source(str(tmp_path))


@pytest.mark.dist
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("dense", [0, 1, 5, 99])
def test_shared_is_the_same_on_any_number_of_ranks(photos, world, dense):
    module, how = build(ToyConfig(), seed=0), Extraction(CPU, rows_at_once=2)
    parts = list(extract(module, photos, PREPROCESSING, how, on_broken=quiet))
    rows = np.concatenate([part.rows for part in parts])
    image, patches = (torch.cat([getattr(part.features, name) for part in parts]) for name in ("image", "patches"))
    for seen in on_ranks(
        world, lambda: shared_features(module, photos, PREPROCESSING, how, on_broken=quiet, dense=dense)
    ):
        assert seen.rows.tolist() == rows.tolist() == [1, 2, 4, 5, 6, 8, 9]
        torch.testing.assert_close(seen.image, image)
        torch.testing.assert_close(seen.patches, patches[rows < dense])


@pytest.mark.dist
@pytest.mark.parametrize("world", [1, 2])
def test_more_ranks_than_images_and_not_one_that_can_be_used(photos, world):
    module, how = build(ToyConfig(), seed=0), Extraction(CPU)

    def alone():
        return shared_features(module, photos.select(np.asarray([1])), PREPROCESSING, how, on_broken=quiet, dense=9)

    def none():
        with pytest.raises(DataError, match=r"No image of .* could be used"):
            shared_features(module, photos.select(np.asarray([0, 3])), PREPROCESSING, how, on_broken=quiet)

    assert [(seen.rows.tolist(), len(seen.patches)) for seen in on_ranks(world, alone)] == [([0], 1)] * world
    on_ranks(world, none)


def test_what_a_library_raises_costs_one_image(photos, monkeypatch):
    real, told = photos.encoded, []
    monkeypatch.setattr(photos, "encoded", lambda row: 1 / 0 if row == 4 else real(row))
    _, rows = image_features(
        build(ToyConfig(), seed=0), photos, PREPROCESSING, Extraction(CPU), on_broken=lambda *line: told.append(line)
    )
    assert rows.tolist() == [1, 2, 5, 6, 8, 9]
    assert told[2] == ("4.png", "cannot be read: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("dense", [0, 3])
def test_patches_of_earlier_images_are_not_kept_in_memory(dense):
    """Of twenty thousand images they would be gigabytes."""
    alive, most = weakref.WeakSet(), []

    class Watched(nn.Module):
        def forward(self, images):
            tokens = torch.ones(len(images), 10, 4)
            alive.add(tokens.untyped_storage())
            most.append(len(alive))
            return Features(tokens[:, 0], tokens[:, :0], tokens[:, 1:].unflatten(1, (3, 3)))

    source = open_source("toy://species?images=20&size=24")
    how = Extraction(CPU, rows_at_once=2)
    if dense:
        shared_features(Watched(), source, PREPROCESSING, how, on_broken=quiet, dense=dense)
    else:
        image_features(Watched(), source, PREPROCESSING, how, on_broken=quiet)
    assert len(most) == 10
    assert max(most) <= 3
