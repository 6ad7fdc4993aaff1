import cv2
import numpy as np
import pytest

from dinoforge.curate.filters import FilterConfig, filtered, measured, refused
from scenes import scenes


def reasons(pictures, **settings):
    rows = np.arange(len(pictures)) + 100
    found = filtered([measured(picture) for picture in pictures], rows, config=FilterConfig(**settings))
    said = dict(zip(found.row.tolist(), found.reason.tolist(), strict=True))
    return [said.get(row, "") for row in rows.tolist()]


def textured(side=64, seed=0):
    """A picture with detail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def page(side=128):
    rng = np.random.default_rng(0)
    paper = np.full((side, side), 240, np.uint8)
    for top in range(4, side - 6, 8):
        paper[top : top + 5, 4:-4] = np.where(rng.random((5, side - 8)) < 0.5, 30, 240)
    return np.repeat(paper[..., None], 3, axis=2)


def test_each_filter_and_none():
    slope = np.repeat(np.linspace(0, 255, 64)[None, :, None], 64, axis=0).repeat(3, axis=2).astype(np.uint8)
    pictures = [
        textured(),
        np.zeros((64, 64, 3), np.uint8),
        textured()[:9],
        np.tile(textured(), (1, 5, 1)),
        slope,
        cv2.GaussianBlur(textured(256), (0, 0), 25),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8),
        page(),
        *scenes(5),
    ]
    expected = ["", "flat", "too small", "too long", "blurred", "blurred", "noise", "page of text", *[""] * 5]
    assert reasons(pictures) == expected
    off = dict.fromkeys(FilterConfig.model_fields)
    assert reasons(pictures, **off) == [""] * len(pictures)


def test_limits_are_what_still_passes():
    assert reasons([textured(16), textured(15)]) == ["", "too small"]
    long = np.tile(textured(), (1, 4, 1))
    assert reasons([long, np.tile(textured(), (4, 1, 1))]) == ["", ""]
    assert reasons([long], longest_aspect=3.9) == ["too long"]


def test_measures_by_hand():
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 100
    found = measured(halves)
    assert (found.width, found.height) == (64, 64)
    assert found.spread == pytest.approx(50)
    assert found.noise == pytest.approx(0)  # nothing is lost in means of 4 by 4
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[::2] = 100
    assert measured(stripes).noise == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (7, 7), (300, 20)])
def test_any_picture_is_measured(shape, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    assert not np.isnan([getattr(measured(pixels), name) for name in measured(pixels).__slots__]).any()


def test_no_picture_at_all():
    assert reasons([]) == []


def test_marks_that_refuse():
    marks = {
        "noai": True,
        "noindex, NoAI": True,
        "otherbot: noimageai": True,
        "noindex": False,
        "noairplanes": False,
        "": False,
    }
    assert refused(np.asarray(list(marks))).tolist() == list(marks.values())
