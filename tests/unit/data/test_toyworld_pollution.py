"""Planted copies are copies of what they say, leaks point into test, junk is what its name says."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import rotate

from dinoforge.data.decode import Broken, decode
from dinoforge.data.sources.table import open_source
from dinoforge.data.sources.toy import EXTRAS
from dinoforge.data.toyworld.pollution import COPY_KINDS, JUNK
from dinoforge.recipes.opened import labelled

ADDRESS = "toy://species?images=240&size=64&copies=0.2&leaks=0.1&junk=0.15&seed=4"


@pytest.fixture(scope="module")
def source():
    return open_source(ADDRESS)


def row_of(source, name):
    return int(np.flatnonzero(source.columns["id"] == name)[0])


def copies(source, kind):
    """(copy's row, original's row, strength) of every copy and leak of a kind."""
    columns = source.columns
    return [
        (int(row), row_of(source, columns["copy_of"][row]), float(columns["copy_strength"][row]))
        for row in np.flatnonzero(columns["copy_kind"] == kind)
    ]


def test_shares_and_columns(source):
    columns = source.columns
    roles = columns["role"]
    assert len(source) == 240
    assert len(set(columns["id"].tolist())) == 240
    assert {role: int((roles == role).sum()) for role in set(roles.tolist())} == {
        "plain": 132, "copy": 48, "leak": 24, "junk": 36,
    }  # fmt: skip
    assert set(columns["split"][roles != "plain"]) == {"train"}
    assert (columns["split"] == "test").sum() == 132 // 5
    assert ((columns["label"] == -1) == (roles == "junk")).all()
    assert ((columns["group"] == -1) == (roles == "junk")).all()
    assert ((columns["label_name"] == "") == (roles == "junk")).all()
    is_copy = (roles == "copy") | (roles == "leak")
    assert ((columns["copy_of"] != "") == is_copy).all()
    assert ((columns["copy_kind"] != "") == is_copy).all()
    assert ((columns["junk_kind"] != "") == (roles == "junk")).all()
    counts = [int((columns["copy_kind"] == kind).sum()) for kind in COPY_KINDS]
    assert counts == [9] * 8
    assert {int((columns["junk_kind"] == kind).sum()) for kind in JUNK} == {6}
    # Strewn, not heaped up at an end.
    assert 20 < (roles[:80] != "plain").sum() < 55


def test_originals(source):
    columns = source.columns
    for row in np.flatnonzero(columns["copy_of"] != ""):
        original = row_of(source, columns["copy_of"][row])
        assert columns["role"][original] == "plain"
        assert columns["split"][original] == ("test" if columns["role"][row] == "leak" else "train")
        assert columns["label"][original] == columns["label"][row]
        assert columns["group"][original] == columns["group"][row]
        strength, kind = columns["copy_strength"][row], COPY_KINDS[columns["copy_kind"][row]]
        if math.isnan(kind.mildest):
            assert math.isnan(strength)
        else:
            assert min(kind.mildest, kind.strongest) <= strength <= max(kind.mildest, kind.strongest)


def test_pollution_leaves_the_plain_pictures_as_they_are(source):
    clean = open_source("toy://species?images=240&size=64&seed=4")
    plain = np.flatnonzero(source.columns["role"] == "plain")
    assert set(source.columns["id"][plain]) <= set(clean.columns["id"])
    for row in plain[::17]:
        assert np.array_equal(source.pixels(int(row)), clean.pixels(row_of(clean, source.columns["id"][row])))


def test_one_split_is_drawn_as_in_the_whole(source):
    train = open_source(ADDRESS + "&split=train")
    assert train.columns["id"].tolist() == source.columns["id"][source.columns["split"] == "train"].tolist()
    for row in np.flatnonzero(train.columns["role"] == "leak")[:8].tolist():
        same = row_of(source, train.columns["id"][row])
        assert train.encoded(row) == source.encoded(same)
        np.testing.assert_equal(train.columns["copy_strength"][row], source.columns["copy_strength"][same])


def test_pixels_are_those_of_the_file(source):
    for row in range(len(source)):
        if source.columns["junk_kind"][row] == "broken":
            with pytest.raises(Broken, match="damaged image"):
                source.pixels(row)
        else:
            assert np.array_equal(source.pixels(row), decode(source.encoded(row)))


# Each kind once more by other means: (original's pixels, strength) -> what the copy must look like.


def test_exact_copies_have_the_same_bytes(source):
    for row, original, _ in copies(source, "exact"):
        assert source.encoded(row) == source.encoded(original)


def test_jpeg_copies(source):
    for row, original, quality in copies(source, "jpeg"):
        assert source.encoded(row)[:2] == b"\xff\xd8"
        file = io.BytesIO()
        Image.fromarray(source.pixels(original)).save(file, "JPEG", quality=round(quality))
        again = np.asarray(Image.open(file)).astype(int)
        assert np.abs(again - source.pixels(row)).mean() < 1.5


def test_resized_copies(source):
    for row, original, factor in copies(source, "resize"):
        side = round(64 * factor)
        again = Image.fromarray(source.pixels(original)).resize((side, side), Image.Resampling.LANCZOS)
        assert source.pixels(row).shape == (side, side, 3)
        assert np.abs(np.asarray(again).astype(int) - source.pixels(row)).mean() < 3
        assert source.extra(row, "mask").shape == (side, side)
        again = Image.fromarray(source.extra(original, "parts")).resize((side, side), Image.Resampling.NEAREST)
        assert (np.asarray(again) == source.extra(row, "parts")).mean() > 0.97


def test_cropped_copies_are_one_window_of_picture_and_truth(source):
    for row, original, area in copies(source, "crop"):
        pixels, whole = source.pixels(row), source.pixels(original)
        height, width = pixels.shape[:2]
        assert height * width / 64**2 == pytest.approx(area, abs=0.02)
        places = [
            (y, x)
            for y in range(65 - height)
            for x in range(65 - width)
            if np.array_equal(whole[y : y + height, x : x + width], pixels)
        ]
        ((y, x),) = places
        for name in EXTRAS:
            truth = source.extra(original, name)[y : y + height, x : x + width]
            assert np.array_equal(source.extra(row, name), truth)


def test_flipped_copies(source):
    for row, original, _ in copies(source, "flip"):
        assert np.array_equal(source.pixels(row), np.fliplr(source.pixels(original)))
        assert np.array_equal(source.extra(row, "depth"), np.fliplr(source.extra(original, "depth")))


def test_coloured_copies(source):
    for row, original, strength in copies(source, "colour"):
        before, after = (source.pixels(n).astype(float).reshape(-1, 3) for n in (original, row))
        gains = []
        for channel in range(3):
            usable = (before[:, channel] > 40) & (after[:, channel] < 254)
            gains.append(np.median(after[usable, channel] / before[usable, channel]) - 1)
        assert max(map(abs, gains)) == pytest.approx(strength, abs=0.02)
        assert np.array_equal(source.extra(row, "mask"), source.extra(original, "mask"))


def test_captioned_copies(source):
    for row, original, strength in copies(source, "text"):
        before, after = source.pixels(original), source.pixels(row)
        changed = (before != after).any(-1)
        assert set(np.unique(after[changed])) in ({0}, {255})
        rows = np.flatnonzero(changed.any(1))
        assert len(rows) <= 64 * strength + 5
        assert changed.mean() > 0.01
        assert all(source.extra(row, name) is None for name in EXTRAS)


def test_rotated_copies(source):
    for row, original, degrees in copies(source, "rotation"):
        pixels = source.pixels(row)
        side = pixels.shape[0]
        angle = math.radians(degrees)
        assert side == math.floor(64 / (math.cos(angle) + math.sin(angle)))

        def turned(picture, order, degrees=degrees, side=side):
            whole = rotate(picture, degrees, reshape=False, order=order, mode="nearest")
            start = (64 - side) / 2
            return whole[math.floor(start) : math.floor(start) + side, math.floor(start) : math.floor(start) + side]

        again = turned(source.pixels(original).astype(float), 1)
        wrong = turned(source.pixels(original).astype(float), 1, degrees=-degrees)
        if side % 2 == 0:  # else the middle of the window lies between pixels
            assert np.abs(again - pixels).mean() < 2
            assert (turned(source.extra(original, "mask"), 0) == source.extra(row, "mask")).mean() > 0.98
        assert np.abs(again - pixels).mean() < np.abs(wrong - pixels).mean()


def colours(pixels):
    steps = (pixels // 32).astype(int) @ np.asarray([64, 8, 1])
    share = np.sqrt(np.bincount(steps.ravel(), minlength=512) / steps.size)
    return share / np.linalg.norm(share)


def shapes(pixels):
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((16, 16), Image.Resampling.BOX)).astype(float)
    small = small.ravel() - small.mean()
    return small / np.linalg.norm(small)


@pytest.mark.parametrize("kind", COPY_KINDS)
def test_a_copy_is_nearest_to_its_original(source, kind):
    feature = shapes if kind in {"colour", "jpeg"} else colours
    plain = np.flatnonzero(source.columns["role"] == "plain").tolist()
    bank = np.stack([feature(source.pixels(row)) for row in plain])
    for row, original, _ in copies(source, kind):
        similarity = bank @ feature(source.pixels(row))
        own = similarity[plain.index(original)]
        others = np.delete(similarity, plain.index(original))
        assert own > others.max()
        assert own - np.median(others) > 0.2


def test_junk_is_what_it_says(source):
    def pictures(kind):
        rows = np.flatnonzero(source.columns["junk_kind"] == kind).tolist()
        assert all(source.extra(row, "mask") is None for row in rows)
        return [source.pixels(row).astype(float) for row in rows]

    for flat in pictures("flat"):
        assert flat.std(axis=(0, 1)).max() == 0
    for noise in pictures("noise"):
        assert np.abs(np.diff(noise, axis=1)).mean() > 70  # even over 256 levels: 256 / 3
    for gradient in pictures("gradient"):
        assert gradient.std() > 1
        assert np.abs(np.diff(gradient, n=2, axis=1)).max() <= 1
        assert np.abs(np.diff(gradient, n=2, axis=0)).max() <= 1
    for page in pictures("page"):
        paper, ink = page.max(), page.min()
        assert paper > 195
        assert ink < 90
        assert set(np.unique(page)) == {paper, ink}
        assert 0.05 < (page == ink).mean() < 0.4
    for tiny in pictures("tiny"):
        assert max(tiny.shape[:2]) <= 4
    assert len({picture.tobytes() for picture in pictures("flat")}) == 6


def test_probes_leave_junk_out():
    train, test = labelled("toy://species?images=60&size=16&junk=0.3&copies=0.1")
    assert set(train.columns["role"]) == {"plain", "copy"}
    assert set(test.columns["role"]) == {"plain"}
    assert (train.columns["label"] >= 0).all()
