"""Colours and lines are those of the functions that they come from, in places that a page can draw."""

import json

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError
from dinoforge.explore.answers import as_json
from dinoforge.explore.parts import coloured, matching
from dinoforge.features.parts import BACKGROUND


def objects(count=3):
    """An object of 3 by 3 patches of two halves, at a different place of every image."""
    rng = np.random.default_rng(0)
    patches = 0.05 * rng.normal(size=(count, 8, 8, 16))
    places = [(2, 1 + number) for number in range(count)]
    for number, (y, x) in enumerate(places):
        patches[number, y : y + 3, x : x + 3, 0] += 1
        patches[number, y, x : x + 3, 1] += 1
    return patches, places


def test_equal_parts_have_equal_colours(given):
    patches, places = objects()
    collection = given(patches)
    found = coloured(collection, [0, 2])
    assert [one.image.row for one in found] == [0, 2]
    for one, (y, x) in zip(found, (places[0], places[2]), strict=True):
        front = np.zeros((8, 8), bool)
        front[y : y + 3, x : x + 3] = True
        assert np.array_equal(one.foreground, front)
        colours = np.asarray(one.colours)
        assert (colours[~front] == f"#{BACKGROUND:02x}{BACKGROUND:02x}{BACKGROUND:02x}").all()

    def red(one, y, x):
        return np.asarray([int(one.colours[y][x + n][1:3], 16) for n in range(3)]).mean()

    (first, (y, x)), (second, (v, u)) = (found[0], places[0]), (found[1], places[2])
    assert abs(red(first, y, x) - red(second, v, u)) < 60
    assert abs(red(first, y, x) - red(first, y + 1, x)) > 120
    json.dumps(as_json(found))


def test_lines_join_the_middles_of_what_belongs_together(given):
    rng = np.random.default_rng(1)
    patches = 0.01 * rng.normal(size=(2, 8, 8, 16)) + rng.normal(size=16)
    thing = 3 * rng.normal(size=(3, 3, 16))
    patches[0, 1:4, 1:4], patches[1, 3:6, 4:7] = thing, thing
    found = matching(given(patches), 0, 1, lines=5)
    assert (found.first.row, found.second.row) == (0, 1)
    assert 1 <= len(found.lines) <= 5
    for line in found.lines:
        moved = (line.second[0] - line.first[0], line.second[1] - line.first[1])
        assert moved == pytest.approx((3 / 8, 2 / 8))
        assert line.similarity > 0.99
    saliences = [line.salience for line in found.lines]
    assert saliences == sorted(saliences, reverse=True)
    json.dumps(as_json(found))


def test_pictures_that_are_brought_take_part(drawn):
    brought = drawn.source.encoded(4)
    assert [one.image.row for one in coloured(drawn, [brought, 4])] == [None, 4]
    assert matching(drawn, 4, brought).second.row is None


@pytest.mark.parametrize("ask", [lambda c: coloured(c, [0, 40]), lambda c: matching(c, 0, 40)])
def test_what_is_refused(drawn, ask):
    with pytest.raises(ConfigError, match="there is no image 40"):
        ask(drawn)
