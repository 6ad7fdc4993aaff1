"""J and F against loops over pixels and masks worked by hand."""

import itertools
import math

import numpy as np
import pytest

from dinoforge.evaluate.regions import decay, outline, outline_agreement, overlap


def slow_outline(region):
    """A pixel whose right, lower or lower right neighbour, where there is one, is on the other side; on the last row and
    column only the neighbour along it counts."""
    height, width = region.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        if any(b < height and a < width and region[b, a] != region[y, x] for b, a in others):
            found.add((y, x))
    return found


def slow_agreement(found, true, slack):
    reach = math.ceil(slack * math.sqrt(found.shape[0] ** 2 + found.shape[1] ** 2))
    mine, theirs = slow_outline(found), slow_outline(true)
    if not mine and not theirs:
        return 1.0
    if not mine or not theirs:
        return 0.0

    def share(some, others):
        near = [any((y - b) ** 2 + (x - a) ** 2 <= reach**2 for b, a in others) for y, x in some]
        return sum(near) / len(near)

    precision, recall = share(mine, theirs), share(theirs, mine)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def masks(kind, rng, shape):
    if kind == "noise":
        return rng.random(shape) < 0.4
    if kind == "empty":
        return np.zeros(shape, bool)
    if kind == "full":
        return np.ones(shape, bool)
    found = np.zeros(shape, bool)
    y, x = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
    if kind == "one pixel":
        found[y, x] = True
    elif kind == "corner":
        found[-1, -1] = True
    elif kind == "line":
        found[:, x] = True
    else:
        found[y : y + 6, x : x + 9] = True
    return found


KINDS = ("noise", "empty", "full", "one pixel", "corner", "line", "block")


@pytest.mark.parametrize("kinds", [*itertools.product(KINDS, KINDS)], ids="-".join)
@pytest.mark.parametrize(("shape", "slack"), [((17, 23), 0.008), ((12, 30), 0.1)])
def test_f_is_its_definition(kinds, shape, slack):
    rng = np.random.default_rng(KINDS.index(kinds[0]) * 10 + KINDS.index(kinds[1]))
    for _ in range(3):
        found, true = (masks(kind, rng, shape) for kind in kinds)
        assert outline_agreement(found, true, slack=slack) == pytest.approx(
            slow_agreement(found, true, slack), abs=1e-12
        )
        assert set(zip(*np.nonzero(outline(found)), strict=True)) == slow_outline(found)
        both, either = (found & true).sum(), (found | true).sum()
        assert overlap(found, true) == (both / either if either else 1.0)


def test_f_at_the_edge_of_its_reach():
    """A picture of 300 by 400 has a diagonal of 500, so outlines may be 4 pixels apart, and no more."""
    true = np.zeros((300, 400), bool)
    true[100:200, 100:200] = True
    for shift, wanted in ((4, True), (5, False)):
        found = np.roll(true, shift, axis=1)
        assert (outline_agreement(found, true) == 1.0) is wanted
    diagonal = np.roll(true, (3, 3), axis=(0, 1))  # 4.2 pixels at the corners
    assert 0.98 < outline_agreement(diagonal, true) < 1.0


def test_masks_by_hand():
    true = np.zeros((4, 4), bool)
    true[1:3, 1:3] = True
    shifted = np.roll(true, 1, axis=1)
    assert overlap(shifted, true) == 2 / 6
    assert overlap(true, true) == outline_agreement(true, true) == 1.0
    assert overlap(~true, true) == 0.0
    assert outline(true).tolist() == [
        [True, True, True, False], [True, False, True, False], [True, True, True, False], [False] * 4,
    ]  # fmt: skip
    empty = np.zeros((4, 4), bool)
    assert (overlap(empty, true), outline_agreement(empty, true), outline_agreement(true, empty)) == (0.0, 0.0, 0.0)
    assert (overlap(empty, empty), outline_agreement(empty, empty)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.5], 0.0),
        ([1.0, 0.0], 1.0),  # quarters [1] and [0]: frames 0 to 0 and 1 to 1
        ([0.9, 0.7, 0.5, 0.3, 0.1], 0.6),  # frames 0 and 1 less 3 and 4
        ([1.0, 1, 1, 0.5, 0.5, 0.5, 0, 0, 0], 1.0),  # frames 0 to 2 less 6 to 8
    ],
)
def test_decay_by_hand(values, wanted):
    assert decay(np.asarray(values)) == pytest.approx(wanted)
