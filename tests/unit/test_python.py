"""What programs hand over: paths as paths or text, pictures as arrays, and a line that says what would be right."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import dinoforge
from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError, WeightsError
from dinoforge.data.sources.table import open_clips
from dinoforge.recipes.settle import settle
from dinoforge.verbs.looking import whole
from dinoforge.verbs.table import _with_paths

BACKBONE = "pixels:8"


@pytest.fixture(autouse=True)
def _unchecked():
    """Programs do not check annotations; what is wrong is told by the product itself."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def test_paths_serve_wherever_addresses_do(place):
    photos = Path("photos")
    assert len(dinoforge.open_source(photos)) == 4
    assert dinoforge.stats(data=photos).images == 4
    assert dinoforge.embed(backbone=BACKBONE, data=photos, out=Path("f")).out == "f"
    assert dinoforge.pca(backbone=BACKBONE, images=photos, out=Path("x.png")).path == "x.png"
    assert settle({"data": photos, "plan.images": 5}).recipe.data.source == "photos"
    with pytest.raises(WeightsError, match="photos holds no backbone"):
        dinoforge.load(photos)
    with pytest.raises(WeightsError, match="photos holds no backbone"):
        dinoforge.pretrain(data=photos, init=photos, out=Path("r"))
    with pytest.raises(DataError, match="photos has no labels"):
        dinoforge.pretrain(data=photos, probe=photos, out=Path("r"), recipe="vit_micro.toy")


def test_lists_may_hold_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    told = []
    _with_paths(lambda **words: told.append(words))(seeds=[Path("~/a"), "b"], out=Path("~/c"), count=3)
    assert told == [{"seeds": [f"{tmp_path}/a", "b"], "out": f"{tmp_path}/c", "count": 3}]


@pytest.mark.parametrize("value", [None, 5, 2.5, True, ["photos"], b"photos", {"a": 1}])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("data", dinoforge.open_source),
        ("data", open_clips),
        ("backbone", dinoforge.load),
        ("backbone", lambda value: dinoforge.prepared(value, [np.zeros((8, 8, 3), np.uint8)])),
        ("data", lambda value: dinoforge.stats(data=value)),
        ("data", lambda value: dinoforge.embed(backbone=BACKBONE, data=value, out="f")),
        ("out", lambda value: dinoforge.embed(backbone=BACKBONE, data="photos", out=value)),
        ("in", lambda value: dinoforge.contains(in_=value, images="photos")),
        ("weights", lambda value: dinoforge.convert(weights=value, out="w")),
    ],
    ids=["open_source", "open_clips", "load", "prepared", "stats", "embed data", "embed out", "contains", "convert"],
)
def test_what_is_no_address_is_one_line(name, call, value, place):
    with pytest.raises(ConfigError) as told:
        call(value)
    assert str(told.value) == f"{name} takes text or a path; got {value!r}."
    assert {path.name for path in place.iterdir()} == {"photos"}


@pytest.mark.parametrize("value", [5, True, ["a"]])
def test_what_may_be_left_out_is_text_where_it_is_given(value):
    with pytest.raises(ConfigError, match=r"^show takes text or a path; got "):
        dinoforge.recipes(show=value)
    with pytest.raises(ConfigError, match=r"^out takes text or a path; got "):
        dinoforge.pretrain(data="photos", out=value)


def test_a_long_value_is_cut():
    with pytest.raises(ConfigError) as told:
        dinoforge.load(np.zeros((300, 300)))
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 120


def test_a_path_is_text_in_settings():
    recipe = settle({"plan.images": 5}).recipe
    assert with_settings(recipe, {"data.source": Path("a") / "b"}).data.source == "a/b"


@pytest.mark.parametrize("value", [2.5, True, None, [2], b"2", float("nan"), float("inf"), "two", np.bool_(True)])
def test_numbers_of_things_are_whole(value, place):
    with pytest.raises(ConfigError) as told:
        dinoforge.embed(backbone=BACKBONE, data="photos", out="f", shard=value)
    assert str(told.value) == f"shard takes a whole number; got {value!r}."
    if value is not None:
        with pytest.raises(ConfigError, match=r"^workers takes a whole number; got "):
            dinoforge.scan(data="photos", out="m.parquet", workers=value)
    assert {path.name for path in place.iterdir()} == {"photos"}


@pytest.mark.parametrize("value", ["2", 2, 2.0, np.int64(2)])
def test_whole_numbers_of_any_type_serve(value):
    assert whole("shard", value) == 2


def picture(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def test_grey_is_repeated_and_transparency_dropped():
    grey, colours = picture(12, 9), picture(12, 9, 3)
    opaque = np.full((12, 9, 1), 255, np.uint8)
    three = np.repeat(grey[:, :, None], 3, axis=2)
    wanted = dinoforge.prepared(BACKBONE, [three, colours])
    for given in (
        [grey, np.concatenate([colours, opaque], axis=2)],
        [grey[:, :, None], colours],
        [np.concatenate([grey[:, :, None], opaque], axis=2), colours],
        [Image.fromarray(grey), Image.fromarray(colours)],
        (one for one in (three, colours)),
        np.stack([three, colours]),
    ):
        assert torch.equal(dinoforge.prepared(BACKBONE, given), wanted)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (picture(12, 9, 3), "images takes a list of pictures, also for one alone; got [12, 9, 3] of uint8."),
        (picture(12, 9), "images takes a list of pictures, also for one alone; got [12, 9] of uint8."),
        (Image.fromarray(picture(12, 9, 3)), "images takes a list of pictures, also for one alone; got Image."),
        ("a.jpg", "images takes a list of pictures, also for one alone; got str."),
        (None, "images takes a list of pictures, also for one alone; got NoneType."),
        (5, "images takes a list of pictures, also for one alone; got int."),
        ([], "images is empty; it takes at least one picture."),
        (["a.jpg"], "images[0] takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got str."),
        ([picture(4, 4), None], "images[1] takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got NoneType."),
        (
            [picture(4, 4, 3, dtype=np.uint16)],
            "images[0] takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got [4, 4, 3] of uint16.",
        ),
        (
            [picture(4, 4, 3, dtype=np.float32)],
            "images[0] takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got [4, 4, 3] of float32.",
        ),
        (
            [picture(2, 4, 4, 3)],
            "images[0] takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got [2, 4, 4, 3] of uint8.",
        ),
        (
            [picture(0, 4, 3)],
            "images[0] takes an array [Y, X, C] or [Y, X] of uint8, 0 to 255; got [0, 4, 3] of uint8.",
        ),
        ([picture(4, 4, 5)], "images[0] has 5 channels, the backbone takes 3."),
        ([picture(3, 40, 40)], "images[0] has 40 channels, the backbone takes 3."),
        (
            [Image.fromarray(picture(4, 4)).convert("P")],
            "images[0] has Pillow's mode P; it takes L, LA, RGB, RGBA, see image.convert.",
        ),
    ],
)
def test_what_is_no_list_of_pictures_is_one_line(images, message):
    with pytest.raises(DataError) as told:
        dinoforge.prepared(BACKBONE, images)
    assert str(told.value) == message
