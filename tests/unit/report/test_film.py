"""What a film keeps, and that recording it leaves the network as it was."""

import numpy as np
import pytest
import torch

from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import Extraction
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Preprocessing
from dinoforge.report.film import Film, looked_at, read_film, spread

VIT = VitConfig(width=16, depth=2, heads=2, patch=8, pixels=32, drop_path=0.3)
PREPROCESSING = Preprocessing(short_side=32, side=32)


def recorded(folder, address="toy://species?images=60&size=40", on_broken=lambda *_: None):
    return Film(folder, open_source(address), PREPROCESSING, Extraction(torch.device("cpu")), on_broken=on_broken)


def test_frames_hold_what_the_network_says(tmp_path):
    module = build(VIT, seed=0)
    film = recorded(tmp_path)
    film(module, 0)
    film(module, 120)
    film(module, 120)
    cast, frames = read_film(tmp_path)
    assert [frame.step for frame in frames] == [0, 120]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images.npz", "step_000000000.npz", "step_000000120.npz",
    ]  # fmt: skip
    assert cast.thumbnails.shape == (60, 32, 32, 3)
    assert cast.queries == 8
    source = open_source("toy://species?images=60&size=40")
    row = source.columns["id"].tolist().index(cast.ids[3])
    assert cast.labels[3] == source.columns["label_name"][row]
    assert len(set(cast.labels[:8].tolist())) == 8
    images = torch.from_numpy(cast.thumbnails[:8]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    with torch.no_grad():
        module.eval()
        want = module((images.float() / 255 - mean) / std)
        attention = module.class_attention((images.float() / 255 - mean) / std).mean(1)
    torch.testing.assert_close(torch.from_numpy(frames[0].patches).float(), want.patches, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(torch.from_numpy(frames[0].attention), attention)


def test_another_source_starts_a_new_film(tmp_path):
    """Frames never stand beside pictures that they were not made of."""
    module = build(VIT, seed=0)
    film = recorded(tmp_path)
    film(module, 0)
    film(module, 120)
    recorded(tmp_path)(module, 240)
    other = open_source("toy://species?images=50&size=40").select(np.arange(50)[::-1])
    assert [frame.step for frame in read_film(tmp_path)[1]] == [0, 120, 240]
    new = Film(tmp_path, other, PREPROCESSING, film.how, on_broken=lambda *_: None)
    new(module, 360)
    cast, frames = read_film(tmp_path)
    assert [frame.step for frame in frames] == [360]
    assert sorted(cast.ids) == sorted(other.columns["id"])
    new(module, 480)
    assert [frame.step for frame in read_film(tmp_path)[1]] == [360, 480]


def test_recording_changes_nothing(tmp_path):
    """Weights, mode, gradients and torch's own random numbers are as before: training cannot tell."""
    module = build(VIT, seed=0).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    recorded(tmp_path)(module, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_rows_are_spread_over_classes():
    labels = np.repeat(np.arange(12), 50)
    rows = spread(labels, rows=600, count=200)
    assert len(rows) == len(set(rows.tolist())) == 200
    assert sorted(labels[rows[:12]].tolist()) == list(range(12))
    assert np.bincount(labels[rows]).min() >= 16
    many = spread(np.arange(5000) % 1000, rows=5000, count=200)
    assert len(set((many % 1000).tolist())) == 20
    assert set(spread(np.asarray([-1, 3, -1, 4]), rows=4, count=200).tolist()) == {1, 3}


@pytest.mark.parametrize("labels", [None, np.full(1000, -1)])
def test_rows_are_spread_over_the_source(labels):
    rows = spread(labels, rows=1000, count=5)
    assert rows.tolist() in ([0, 250, 500, 749, 999], [0, 250, 500, 750, 999])
    assert spread(None, rows=3, count=200).tolist() == [0, 1, 2]
    assert spread(None, rows=1, count=200).tolist() == [0]


def test_pictures_without_a_class_are_of_none(tmp_path):
    """A column of labels that says nothing of any row: neighbours are not all of the class -1."""
    source = open_source("toy://species?images=12&size=40")
    del source.columns["label_name"]
    source.columns["label"] = np.full(len(source), -1)
    Film(tmp_path, source, PREPROCESSING, Extraction(torch.device("cpu")), on_broken=lambda *_: None)(
        build(VIT, seed=0), 0
    )
    assert set(read_film(tmp_path)[0].labels.tolist()) == {""}


def test_one_image(tmp_path):
    recorded(tmp_path, "toy://species?images=1")(build(VIT, seed=0), 0)
    cast, frames = read_film(tmp_path)
    assert len(cast.ids) == cast.queries == 1
    assert frames[0].nearest.shape == (1, 0)


def test_no_usable_image_is_no_film(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no picture")
    broken = []
    film = recorded(tmp_path / "film", str(tmp_path / "photos"), on_broken=lambda name, reason: broken.append(name))
    film(build(VIT, seed=0), 0)
    assert broken == ["a.png"]
    assert read_film(tmp_path / "film") is None


def test_damaged_files_are_left_out(tmp_path):
    film = recorded(tmp_path, "toy://species?images=10&size=40")
    for step in (0, 1, 2):
        film(build(VIT, seed=0), step)
    whole = (tmp_path / "step_000000001.npz").read_bytes()
    (tmp_path / "step_000000001.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "step_last.npz").write_bytes(whole)
    np.savez(tmp_path / "step_000000002.npz", patches=np.zeros((8, 4, 4, 2)), attention=np.zeros((8, 4, 4)),
             nearest=np.full((8, 5), 99))  # fmt: skip
    np.savez(tmp_path / "step_000000003.npz", patches=np.asarray([{}], dtype=object), attention=0, nearest=0)
    assert [frame.step for frame in read_film(tmp_path)[1]] == [0]
    (tmp_path / "images.npz").write_bytes(b"")
    assert read_film(tmp_path) is None
    assert read_film(tmp_path / "nowhere") is None


def test_images_are_looked_at_alone():
    """Each map is that of its image alone, so memory does not grow with their number."""
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module = build(VIT, seed=0)
    patches, attention = looked_at(module, images, PREPROCESSING, Extraction(torch.device("cpu")))
    assert patches.shape == (3, 4, 4, 16)
    assert attention.shape == (3, 2, 4, 4)
    again = looked_at(module, images[1:2], PREPROCESSING, Extraction(torch.device("cpu")))[0]
    torch.testing.assert_close(again[0], patches[1], rtol=0, atol=0)
