"""Near-exact copies by hashes: against the definition by all pairs, and what must not meet."""

import itertools

import cv2
import numpy as np
import pytest

from dinoforge.curate import near_exact
from dinoforge.curate.near_exact import HashConfig, hash_copies
from dinoforge.features import mapped
from dinoforge.features.copies import describe, thumbnail
from scenes import scenes


def described(pictures):
    return describe(np.stack([thumbnail(picture) for picture in pictures])).astype(np.float16)


def jpeg(picture, quality):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def slow(descriptors, *, config):
    """In float64 and pair after pair: signs of the first components, bits that differ, cosine; then groups by hand."""
    x = descriptors.astype(np.float64)
    rows = [row for row in range(len(x)) if x[row].any()]
    centred = x[rows] - x[rows].mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    signs = dict(zip(rows, centred @ axes[: min(64, len(rows) - 1)].T > 0, strict=True))
    group = {row: {row} for row in rows}
    for one, other in itertools.combinations(rows, 2):
        cosine = x[one] @ x[other] / np.linalg.norm(x[one]) / np.linalg.norm(x[other])
        if (signs[one] != signs[other]).sum() <= config.distance and cosine > config.similarity:
            both = group[one] | group[other]
            for row in both:
                group[row] = both
    return sorted(row for row in rows if row != min(group[row]))


@pytest.mark.parametrize(("distance", "similarity"), [(0, 0.99), (2, 0.99), (3, 0.0), (5, 0.9)])
def test_equals_its_definition(distance, similarity, monkeypatch):
    monkeypatch.setattr(mapped, "ROWS_AT_ONCE", 7)
    pictures = scenes(80)
    copies = [jpeg(p, 60) for p in pictures[:20]] + [cv2.resize(p, (70, 70)) for p in pictures[:12]]
    # Copies are many enough of few originals to be near in all bits, and some originals are alike.
    mixed = [cv2.addWeighted(pictures[n], 0.9, pictures[n + 1], 0.1, 0) for n in range(30, 40)]
    x = described([*pictures, *copies, *mixed, np.full((30, 30, 3), 90, np.uint8), np.full((30, 30, 3), 90, np.uint8)])
    config = HashConfig(distance=distance, similarity=similarity)
    found = hash_copies(x, size=None, config=config)
    assert found.row.tolist() == slow(x, config=config)
    assert len(found) > 5
    assert set(found.reason.tolist()) == {"near-exact copy"}


def test_near_exact_copies_go_and_unlike_pictures_stay():
    pictures = scenes(120)
    copies = [jpeg(p, 90) for p in pictures[:30]]
    found = hash_copies(described([*pictures, *copies]), size=None, config=HashConfig())
    assert found.row.tolist() == list(range(120, 120 + len(found)))
    assert (found.row - found.against == 120).all()
    assert len(found) >= 28
    assert found.similarity.min() > 0.99


def test_few_pictures_have_few_bits_and_are_still_told_apart():
    """Ten pictures have nine bits, of which some differ in two by chance; their descriptors do not agree."""
    assert len(hash_copies(described(scenes(10)), size=None, config=HashConfig(distance=7))) == 0


def test_the_largest_stays():
    picture = scenes(1)[0]
    x = described([picture, cv2.resize(picture, (192, 192)), *scenes(20, seed=5)])
    size = np.asarray([96 * 96, 192 * 192, *[1] * 20])
    assert hash_copies(x, size=size, config=HashConfig(distance=7)).row.tolist() == [0]
    assert hash_copies(x, size=None, config=HashConfig(distance=7)).row.tolist() == [1]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_pictures(count):
    picture = scenes(1)[0]
    x = described([picture] * count) if count else np.zeros((0, 248), np.float16)
    assert len(hash_copies(x, size=None, config=HashConfig())) == max(count - 1, 0)
    assert len(hash_copies(np.zeros((5, 248), np.float16), size=None, config=HashConfig())) == 0


def test_a_sample_is_enough(monkeypatch):
    pictures = scenes(120)
    x = described([*pictures, *[jpeg(p, 90) for p in pictures[:30]]])
    monkeypatch.setattr(near_exact, "_SAMPLE", 100)
    found = hash_copies(x, size=None, config=HashConfig())
    assert len(found) >= 27
    assert (found.row - found.against == 120).all()
