"""Addresses: what is no place, and options that would be ignored."""

import os
import tarfile

import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.manifest import is_manifest
from dinoforge.data.sources.options import placed, split_address
from dinoforge.data.sources.table import open_source


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "in/b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 5), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("file,split,depth\na.png,train,\nin/b.png,test,\na.png,,\n")
    return tmp_path


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", r"data='' names no place; it takes a folder"),
        ("?label=x", r"data='\?label=x' names no place"),
        ("hf://", r"data='hf://' names no place"),
        ("t.csv?split=", r"data='t\.csv\?split=' names no split; \?split= takes train"),
        ("t.csv?split", "names no split"),
        ("toy://species?split=", "names no split"),
        ("t.csv?split=train&split=test", r"t\.csv has option 'split' twice, 'train' and 'test'; it takes one"),
        ("toy://species?images=5&images=6", "toy://species has option 'images' twice"),
        ("https://host/l.txt?split=train&sig=1&split=test", r"https://host/l\.txt has option 'split' twice"),
        ("in?depth_unit=metres", "Option 'depth_unit' has no effect on a folder of image files"),
        ("a.png?depth_unit=metres", "Option 'depth_unit' has no effect on an image"),
        ("t.csv?depth_unit=feet", r"\?depth_unit takes metres"),
        ("a.png?anonymous=true", "Option 'anonymous' has no effect on an image"),
        ("https://host/{9..1}.jpg", r"\{9\.\.1\} stands for no file; it takes the lower number first"),
        ("in/{9..1}.png", r"\{9\.\.1\} stands for no file"),
    ],
)
def test_what_would_be_ignored_is_one_line(address, message, photos):
    with pytest.raises(ConfigError, match=message) as error:
        open_source(address)
    assert len(str(error.value).splitlines()) == 1


def test_the_same_said_well_is_read(photos):
    found = open_source("t.csv?depth_unit=metres")
    assert found.columns["depth_unit"].tolist() == ["metres"] * 3
    with pytest.raises(DataError, match=r"has no split 'val'; it has test, train\.$"):
        open_source("t.csv?split=val")
    assert split_address("https://host/x?a=1&a=2&split=val") == ("https://host/x?a=1&a=2", {"split": "val"})


@pytest.mark.parametrize("name", [b"\xff.png", b"\xff.tar", b"\xfe/", b"\xfe/a.tar"])
def test_a_name_that_is_no_utf_8_is_one_line(name, photos):
    (photos / os.fsdecode(b"\xfe")).mkdir()
    if not name.endswith(b"/"):
        (photos / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(DataError, match="is not valid UTF-8; rename it") as error:
        open_source(os.fsdecode(name))
    assert str(error.value).isascii()
    assert not is_manifest(photos / os.fsdecode(name))


def test_tars_in_a_working_folder_of_any_name(photos, monkeypatch):
    (photos / os.fsdecode(b"\xfe")).mkdir()
    monkeypatch.chdir(photos / os.fsdecode(b"\xfe"))
    with tarfile.open("a.tar", "w") as archive:
        archive.add(photos / "a.png", "a.png")
    assert open_source("a.tar").pixels(0).shape == (5, 6, 3)


def test_an_address_that_means_the_same_everywhere(photos, monkeypatch):
    here = str(photos.resolve())
    (photos / "link").symlink_to("in")
    monkeypatch.setenv("HOME", str(photos))
    assert placed("in?split=train") == placed("link/../in/?split=train").replace("/?", "?") == f"{here}/in?split=train"
    assert placed("~/link/*.png") == f"{here}/in/*.png"
    assert placed("hf://in") == f"hf://{here}/in"
    for address in ("hf://user/name", "toy://species?images=3", "s3://b/in", "https://host/in"):
        assert placed(address) == address
