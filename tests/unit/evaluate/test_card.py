"""The score card of a run: what it says of made features, and when it compares neighbours."""

import json
import math

import numpy as np
import pytest
import torch

from dinoforge.evaluate.card import card
from dinoforge.evaluate.health import effective_rank, smoothness, uniformity
from dinoforge.features.extract import Seen


def seen(images=30, *, rows=None, seed=0, dense=3):
    generator = torch.Generator().manual_seed(seed)
    rows = np.arange(images) if rows is None else np.asarray(rows)
    x, patches = (torch.randn(*shape, generator=generator) for shape in ((len(rows), 6), (dense, 4, 4, 6)))
    return Seen(rows, x, patches)


def test_its_scores():
    one = seen()
    scores, near = card(one, None)
    assert scores == {
        "rank": effective_rank(one.image), "uniformity": uniformity(one.image), "smoothness": smoothness(one.patches),
    }  # fmt: skip
    assert len(near) == 30
    assert {len(row) for row in near} == {11}


def test_neighbours_are_rows_of_the_source():
    """Where a row in between could not be used, those after it keep their numbers."""
    angles = torch.tensor([0.0, 50, 10, 55]).deg2rad()
    one = Seen(np.asarray([2, 5, 6, 9]), torch.stack([angles.cos(), angles.sin()], 1), torch.zeros(0, 2, 2, 2))
    scores, near = card(one, None)
    assert near == [[2, 6, 5, 9], [5, 9, 6, 2], [6, 2, 5, 9], [9, 5, 6, 2]]
    assert "smoothness" not in scores  # not one of the first images could be used


def test_stability_from_look_to_look():
    _, near = card(seen(), None)
    same, again = card(seen(), near)
    assert (same["stability"], again) == (1.0, near)
    other, after = card(seen(seed=1), near)
    kept = [len({*row[1:]} & {*then[1:]}) for row, then in zip(near, after, strict=True)]
    assert other["stability"] == pytest.approx(sum(kept) / 300)
    assert other["stability"] == pytest.approx(10 / 29, abs=0.1)
    # What a checkpoint holds is as good.
    assert card(seen(seed=1), json.loads(json.dumps(near)))[0] == other


@pytest.mark.parametrize("rows", [range(1, 31), range(29)])
def test_looks_at_other_images_are_not_compared(rows):
    _, near = card(seen(), None)
    scores, _ = card(seen(rows=rows), near)
    assert "stability" not in scores


def test_one_image():
    scores, near = card(seen(1), None)
    assert (scores["rank"], scores["uniformity"], near) == (0, 0, [[0]])
    assert card(seen(1), near)[0]["stability"] == 1


@pytest.mark.parametrize("where", ["image", "patches"])
def test_what_is_not_finite_is_no_number(where):
    one = seen()
    getattr(one, where)[1] = math.inf
    scores, near = card(one, card(seen(), None)[1])
    assert [name for name, value in scores.items() if math.isnan(value)] == (
        ["rank", "uniformity"] if where == "image" else ["smoothness"]
    )
    assert (near is None) == ("stability" not in scores) == (where == "image")
