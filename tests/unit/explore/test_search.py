"""Searches against their definitions and against planted places."""

import json
import math

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError
from dinoforge.explore.answers import as_json
from dinoforge.explore.search import alike, by_image, by_region, covered, mean_patch


def test_images_equal_their_definition(drawn):
    vectors = np.asarray(drawn.vectors, np.float64)
    for row in (0, 7):
        near = {other: float(vectors[row] @ vectors[other]) for other in range(40) if other != row}
        found = by_image(drawn, row, count=5)
        assert [hit.similarity for hit in found] == pytest.approx(sorted(near.values(), reverse=True)[:5], abs=1e-5)
        assert [near[hit.image.row] for hit in found] == pytest.approx([hit.similarity for hit in found], abs=1e-5)
        assert len({hit.image.row for hit in found}) == 5


def test_a_picture_that_is_brought_finds_itself(drawn):
    assert by_image(drawn, drawn.source.encoded(5), count=3)[0].similarity > 0.999
    rows = [hit.image.row for hit in by_image(drawn, drawn.source.encoded(5), count=200)]
    assert sorted(rows) == [*range(40)]
    assert 5 not in [hit.image.row for hit in by_image(drawn, 5, count=200)]
    assert len(by_image(drawn, 5, count=200)) == 39


def test_one_of_many_equal_images_is_not_its_own_neighbour(given):
    found = given(np.ones((6, 2, 2, 4)))
    assert sorted(hit.image.row for hit in by_image(found, 5, count=3)) != []
    for row in range(6):
        rows = [hit.image.row for hit in by_image(found, row, count=3)]
        assert len(rows) == 3
        assert row not in rows


def slow_mean(patches, box):
    """Every patch cut into 60 by 60 points; those in the box vote for it."""
    tall, wide, _ = patches.shape
    left, top, right, bottom = box
    total, weight = 0.0, 0.0
    for y in range(tall):
        for x in range(wide):
            points = [(a + 0.5) / 60 for a in range(60)]
            inside = sum(left < (x + p) / wide < right for p in points) * sum(
                top < (y + q) / tall < bottom for q in points
            )
            total = total + inside * patches[y, x] / np.linalg.norm(patches[y, x])
            weight += inside
    return total / weight


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.25, 0.5, 0.5, 0.75), (0.1, 0.2, 0.7, 0.9), (0.3, 0.3, 0.4, 0.35)])
def test_the_mean_patch_of_a_box(box):
    patches = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    got = mean_patch(patches, covered(box, 4, 5))
    np.testing.assert_allclose(got, slow_mean(patches.astype(np.float64), box), atol=0.02)


@pytest.mark.parametrize(
    "box",
    [(0.5, 0, 0.5, 1), (0, 0.6, 1, 0.5), (-0.1, 0, 1, 1), (0, 0, 1, 1.1), (math.nan, 0, 1, 1), (0, 0, math.inf, 1)],
)
def test_what_is_no_box(drawn, box):
    with pytest.raises(ConfigError, match="a box is left < right and top < bottom"):
        by_region(drawn, 0, box)


def test_a_box_that_covers_nothing(drawn):
    with pytest.raises(ConfigError, match="a box without an inside: 1e-25 by 1e-25"):
        by_region(drawn, 0, (0, 0, 1e-25, 1e-25))
    assert np.isfinite([hit.similarity for hit in by_region(drawn, 0, (0, 0, 1e-5, 1e-5))]).all()


@pytest.mark.parametrize("count", [0, 201])
def test_how_many(drawn, count):
    for ask in (lambda: by_image(drawn, 0, count=count), lambda: by_region(drawn, 0, (0, 0, 1, 1), count=count)):
        with pytest.raises(ConfigError, match=f"1 to 200 answers; got {count}"):
            ask()


def test_a_planted_part_is_found_where_it_is(given):
    """Twelve images of noise on a grid of 6; four of them hold the same part of 2 by 2 patches, at different places."""
    rng = np.random.default_rng(0)
    patches, part = rng.normal(size=(12, 6, 6, 32)), rng.normal(size=32)
    places = {1: (0, 0), 4: (2, 3), 7: (4, 1), 10: (3, 3)}
    for row, (y, x) in places.items():
        patches[row, y : y + 2, x : x + 2] = part + 0.1 * rng.normal(size=(2, 2, 32))
    collection = given(patches)
    found = by_region(collection, 1, (0, 0, 1 / 3, 1 / 3), count=3)
    assert {hit.image.row for hit in found} == {4, 7, 10}
    for hit in found:
        y, x = places[hit.image.row]
        assert hit.box == pytest.approx((x / 6, y / 6, (x + 2) / 6, (y + 2) / 6))
        assert hit.box[0] < hit.best[0] < hit.box[2]
        assert hit.box[1] < hit.best[1] < hit.box[3]
        assert hit.similarity > 0.95
    assert by_region(collection, 1, (0, 0, 1 / 3, 1 / 3), count=11)[3].similarity < 0.8
    assert len(by_region(collection, 1, (0, 0, 1, 1), count=50)) == 11
    json.dumps(as_json(found))


def slow_alike(similarity):
    """Flood the neighbours of the best patch."""
    tall, wide = similarity.shape
    level = (similarity.max() + np.median(similarity)) / 2
    waiting, seen = [divmod(int(similarity.argmax()), wide)], set()
    while waiting:
        y, x = waiting.pop()
        if (y, x) in seen or not (0 <= y < tall and 0 <= x < wide) or similarity[y, x] < level:
            continue
        seen.add((y, x))
        waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_patches_around_the_best(seed):
    similarity = np.random.default_rng(seed).normal(size=(6, 7)).astype(np.float32)
    assert {tuple(place) for place in np.argwhere(alike(similarity)).tolist()} == slow_alike(similarity)
    assert alike(np.full((3, 3), 0.5, np.float32)).all()
