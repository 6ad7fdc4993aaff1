"""Features on disk are those that were computed; ids stay beside their rows."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dinoforge.base.errors import DataError
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction, extract, image_features
from dinoforge.features.store import read_features, write_features
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.weights import Preprocessing

HOW = Preprocessing(short_side=24, side=24)


def quiet(name, reason):
    pass


@pytest.mark.parametrize("tokens", ["image", "patches"])
def test_rows_are_the_features(tokens, tmp_path):
    module, source = build(ToyConfig(), seed=0), open_source("toy://species?images=11&size=24")
    parts = extract(module, source, HOW, Extraction(torch.device("cpu"), rows_at_once=4), on_broken=quiet)
    rows = write_features(tmp_path / "f", parts, columns=source.columns, tokens=tokens, facts={"backbone": "b"})
    stored = read_features(tmp_path / "f")
    assert rows == 11
    assert stored.values.shape == ((11, 16) if tokens == "image" else (11, 3, 3, 16))
    x = torch.stack([torch.from_numpy(source.pixels(n)).permute(2, 0, 1) for n in range(11)]).float() / 255
    x = (x - torch.tensor(HOW.mean).view(3, 1, 1)) / torch.tensor(HOW.std).view(3, 1, 1)
    want = getattr(module(x), tokens).detach().numpy()
    np.testing.assert_allclose(stored.values, want, atol=1e-5)
    assert stored.ids.tolist() == source.columns["id"].tolist()
    assert pq.read_table(tmp_path / "f" / "ids.parquet")["label"].to_pylist() == source.columns["label"].tolist()
    facts = json.loads((tmp_path / "f" / "features.json").read_text())
    assert facts["backbone"] == "b"
    assert facts["rows"] == 11


def test_how_many_at_once_changes_nothing():
    module, source = build(ToyConfig(), seed=0).train(), open_source("toy://species?images=11&size=24")
    found = [
        image_features(module, source, HOW, Extraction(torch.device("cpu"), rows_at_once=n), on_broken=quiet)[0]
        for n in (1, 4, 100)
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert module.training  # as it was


def test_what_holds_no_features(tmp_path):
    with pytest.raises(DataError, match="holds no features"):
        read_features(tmp_path)
