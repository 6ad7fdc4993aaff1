"""A collection says of its rows what the source says, keeps what it computed, and sees a picture that is brought along alike."""

import io
import json
import threading
from shutil import rmtree

import numpy as np
import pytest
import torch
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.manifest import read_manifest, write_manifest
from dinoforge.data.sources.paths import Paths
from dinoforge.data.sources.table import open_source
from dinoforge.explore import collection as module
from dinoforge.explore.answers import as_json
from dinoforge.explore.collection import DECODING, MOST_PIXELS, open_collection
from dinoforge.explore.groups import near_copies
from dinoforge.features.exact import unit_rows
from dinoforge.features.store import read_features
from dinoforge.verbs.scan import scan


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def folder_of(path, count=6, side=20):
    rng = np.random.default_rng(0)
    for number in range(count):
        (path / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side + number, 3), dtype=np.uint8)
        (path / f"class{number % 2}" / f"{number}.png").write_bytes(png(pixels))
    return str(path)


def test_features_are_those_of_whole_pictures(drawn):
    """Of those that have the backbone's size, nothing is resized."""
    how, pixels = drawn.backbone.preprocessing, [drawn.source.pixels(row) for row in range(20)]
    rows = [row for row, picture in enumerate(pixels) if picture.shape == (32, 32, 3)]
    assert len(rows) > 10
    x = torch.stack([torch.from_numpy(pixels[row]).permute(2, 0, 1) for row in rows]).float() / 255
    x = (x - torch.tensor(how.mean).view(3, 1, 1)) / torch.tensor(how.std).view(3, 1, 1)
    with torch.no_grad():
        want = drawn.backbone.module(x)
    assert drawn.grid == (4, 4)
    np.testing.assert_allclose(drawn.patches[rows], want.patches, atol=2e-3)
    unit = torch.nn.functional.normalize(want.image, dim=-1)
    np.testing.assert_allclose(drawn.vectors[rows], unit, atol=1e-3)


def test_a_picture_that_is_brought_is_seen_as_one_of_the_collection(drawn):
    brought, stored = drawn.see(drawn.source.encoded(3)), drawn.see(3)
    np.testing.assert_allclose(brought.patches, stored.patches, atol=2e-3)
    np.testing.assert_allclose(brought.image, stored.image, atol=1e-3)
    assert np.linalg.norm(brought.image) == pytest.approx(1)


def test_what_is_stored_is_not_computed_again(drawn, monkeypatch):
    monkeypatch.setattr(module, "keep", None)
    again = open_collection(drawn.backbone, drawn.source, drawn.folder, how=drawn.how)
    np.testing.assert_array_equal(again.vectors, drawn.vectors)
    assert again.fingerprint == drawn.fingerprint
    assert not again.patches.flags.owndata


def test_other_images_are_computed_anew_and_other_things_refused(drawn, tmp_path):
    told = []
    address = folder_of(tmp_path / "images")
    at = tmp_path / "kept"

    def opened():
        return open_collection(
            drawn.backbone, open_source(address), at, how=drawn.how, tell=lambda *what: told.append(what)
        )

    first = opened()
    assert told[-1][:2] == (6, 6)
    (tmp_path / "images" / "class0" / "0.png").write_bytes(png(np.zeros((20, 20, 3), np.uint8)))
    second = opened()
    assert second.fingerprint != first.fingerprint
    assert np.abs(second.vectors[0] - first.vectors[0]).max() > 0.01
    np.testing.assert_array_equal(second.vectors[1:], first.vectors[1:])
    for name in ("features.json", "features.npy"):
        (at / "features" / name).unlink()
    with pytest.raises(ConfigError, match="holds no features; give another folder"):
        opened()


def test_what_is_made_of_features_goes_with_them(drawn, tmp_path, monkeypatch):
    """Where nobody can tell that images changed, whoever knows it removes the features, as it is said; the same come again."""
    monkeypatch.setattr(Paths, "stamp", lambda *_: None)  # as of the web
    address, at = folder_of(tmp_path / "images", count=8), tmp_path / "kept"

    def opened():
        return open_collection(drawn.backbone, open_source(address), at, how=drawn.how)

    first = opened()
    assert near_copies(first).total == 0
    rmtree(at / "features")
    assert opened().fingerprint == first.fingerprint
    (tmp_path / "images" / "class0" / "0.png").write_bytes((tmp_path / "images" / "class1" / "1.png").read_bytes())
    rmtree(at / "features")
    found = opened()
    np.testing.assert_array_equal(found.vectors[0], unit_rows(read_features(at / "features").values[:1, 0])[0])
    assert near_copies(found).total == 1


def test_broken_images_are_no_rows(drawn, tmp_path):
    address = folder_of(tmp_path / "images")
    (tmp_path / "images" / "class0" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    found = open_collection(drawn.backbone, open_source(address), tmp_path / "kept", how=drawn.how)
    assert len(found) == 5
    names = [found.about(row).id for row in range(5)]
    assert "class0/2.png" not in names
    assert found.source.columns["id"].tolist() == names


def test_what_is_known_of_a_picture(drawn, tmp_path):
    source = drawn.source
    about = drawn.about(1)
    assert (about.row, about.id, about.uri) == (1, source.columns["id"][1], source.columns["id"][1])
    assert (about.label, about.label_name) == (source.columns["label"][1], source.columns["label_name"][1])
    assert json.loads(json.dumps(as_json(about)))["reason"] is None
    assert drawn.about(b"x").row is None


def test_reasons_of_a_manifest(drawn, tmp_path):
    address = folder_of(tmp_path / "images")
    scan(data=address, out=str(tmp_path / "m.parquet"), workers=1)
    manifest = read_manifest(tmp_path / "m.parquet")
    manifest = manifest.replaced("reason", "retrieved")
    write_manifest(tmp_path / "m.parquet", [manifest.table], made=manifest.made)
    found = open_collection(drawn.backbone, open_source(str(tmp_path / "m.parquet")), tmp_path / "kept", how=drawn.how)
    about = found.about(2)
    assert about.reason == "retrieved"
    assert about.uri == manifest.column("uri")[manifest.column("id").tolist().index(about.id)]
    assert about.label_name in {"class0", "class1"}


def test_pictures_for_the_eye_keep_their_shape(drawn):
    wide = png(np.full((40, 80, 3), (200, 100, 50), np.uint8))
    image = Image.open(io.BytesIO(drawn.picture(wide, 32)))
    assert (image.format, image.size) == ("JPEG", (32, 16))
    assert np.abs(np.asarray(image).mean(axis=(0, 1)) - (200, 100, 50)).max() < 3
    assert Image.open(io.BytesIO(drawn.picture(0, 1000))).size == (32, 32)  # is not made larger


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda c: c.about(40), ConfigError, "there is no image 40; rows go from 0 to 39"),
        (lambda c: c.see(-1), ConfigError, "there is no image -1"),
        (lambda c: c.picture(0, 8), ConfigError, "16 to 2048 pixels large; got 8"),
        (lambda c: c.picture(b"", 64), DataError, "cannot be read: the file is empty"),
        (lambda c: c.see(b"GIF89a no picture"), DataError, "cannot be read"),
    ],
)
def test_errors_in_one_line(drawn, ask, error, message):
    with pytest.raises(error, match=message) as told:
        ask(drawn)
    assert "\n" not in str(told.value)


def test_a_bomb_is_not_decoded(drawn):
    file = io.BytesIO()
    Image.new("1", (10_000, MOST_PIXELS // 10_000 + 1)).save(file, "PNG")
    with pytest.raises(DataError, match=r"more than 50,000,000; web.upload_pixels sets the limit, 50,000,000 at most"):
        drawn.see(file.getvalue())


def test_features_are_mapped_to_be_read_alone(drawn):
    """A private mapping that may be written to counts as memory, and is refused where it is larger."""
    assert not drawn.patches.flags.writeable
    assert not drawn.vectors.flags.writeable


def test_only_so_many_pictures_are_decoded_at_once(drawn):
    brought, done = png(np.zeros((40, 40, 3), np.uint8)), []
    asks = [lambda: drawn.picture(brought, 32), lambda: drawn.see(brought), lambda: drawn.picture(1, 32)]
    waiting = [threading.Thread(target=lambda ask=ask: done.append(ask())) for ask in asks]
    with DECODING, DECODING:
        for thread in waiting:
            thread.start()
            thread.join(0.1)
        assert not done
    for thread in waiting:
        thread.join()
    assert len(done) == 3


def test_a_picture_that_is_brought_is_seen_once(drawn, monkeypatch):
    brought = png(np.full((40, 40, 3), 7, np.uint8))
    first = drawn.see(brought)
    monkeypatch.setattr(module, "forward", None)
    assert drawn.see(bytes(bytearray(brought))) is first
