"""Small collections: one of drawn pictures as the toy backbone sees them, and ones whose features are given."""

import numpy as np
import pytest
import torch

from dinoforge.data.sources.table import open_source
from dinoforge.explore.collection import Collection, open_collection
from dinoforge.features.extract import Extraction
from dinoforge.features.store import Stored
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.weights import Backbone, Preprocessing

DRAWN = "toy://species?images=40&size=32&seed=2&copies=0.2"
HOW = Extraction(torch.device("cpu"))


def backbone(width=16):
    config = ToyConfig(width=width)
    return Backbone(build(config, seed=0), config, Preprocessing(short_side=32, side=32))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Forty pictures, some of them copies, on a grid of 4 by 4."""
    return open_collection(backbone(), open_source(DRAWN), tmp_path_factory.mktemp("drawn"), how=HOW)


@pytest.fixture
def given(tmp_path):
    """A collection with these patches ``[N S S D]``, and image vectors that are their means or those that are given."""

    def made(patches, vectors=None, *, source=None):
        count, side, _, width = patches.shape
        vectors = patches.mean(axis=(1, 2)) if vectors is None else vectors
        values = np.concatenate([vectors[:, None], patches.reshape(count, side * side, width)], axis=1)
        source = source or open_source(f"toy://species?images={count}&size=8")
        stored = Stored(values.astype(np.float16), source.columns["id"], {"made": "by hand"})
        return Collection(backbone(width), source, tmp_path / "collection", how=HOW, stored=stored)

    return made
