"""Pairs of pictures and their common points: which are drawn, what is read, what is refused."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.keypoints import (
    Chosen,
    box_of,
    drawn_pairs,
    listed_pairs,
    lists_pairs,
    outside,
    pair_of,
    points_of,
)
from given import Listed


def drawn(groups, count=1000, seed=0, by="group"):
    source = Listed("some", len(groups), **{by: np.asarray(groups)})
    return [(pair.first, pair.second) for pair in drawn_pairs(source, by=by, count=count, seed=seed)]


def test_all_pairs_of_a_group_either_way():
    groups = [3, 1, 3, -1, 1, 3, 2, -1]
    wanted = [(a, b) for a, b in itertools.permutations(range(8), 2) if groups[a] == groups[b] >= 0]
    assert sorted(drawn(groups)) == sorted(wanted)
    assert sorted(drawn(groups, by="label")) == sorted(wanted)
    numbers = [groups[a] for a, _ in drawn(groups)]
    assert numbers == sorted(numbers)  # pairs of a group follow one another


def test_a_draw_is_even_seeded_and_without_repeats():
    groups = [0, 0, 1, 1, 1, 1]
    counts = Counter()
    for seed in range(1400):
        some = drawn(groups, count=2, seed=seed)
        assert len({*some}) == 2
        counts.update(some)
    assert len(counts) == 14  # 2 ordered pairs of the first group, 12 of the second
    assert 120 < min(counts.values()) <= max(counts.values()) < 290  # 200 each, standard deviation 13
    assert drawn(groups, count=2, seed=5) == drawn(groups, count=2, seed=5)


@pytest.mark.parametrize("groups", [[0, 1, 2], [-1, -1, -1], []])
def test_groups_of_one_are_no_pairs(groups):
    with pytest.raises(DataError, match=r"^no two images of some share a group, [^\n]*$"):
        drawn(groups)
    with pytest.raises(DataError, match="share a label"):
        drawn_pairs(Listed("some", 3), by="label", count=1, seed=0)


def named(*texts, box=("", "[10, 20, 40, 30]")):
    return Listed("some", len(texts), id=["a", "b"], keypoints=texts, box=box)


def test_points_that_both_pictures_have_by_their_names():
    source = named('{"nose": [1, 2], "tail": [3.5, 4], "ear": null}', '{"ear": [9, 9], "tail": [7, 8], "nose": [5, 6]}')
    assert points_of(source, 0) == {"nose": (1, 2), "tail": (3.5, 4)}
    pair = pair_of(source, Chosen(0, 1), boxes=True)
    assert pair.points.tolist() == [[[1, 2], [5, 6]], [[3.5, 4], [7, 8]]]
    assert pair.side == 30
    assert pair_of(source, Chosen(1, 0), boxes=False).points.tolist() == [[[7, 8], [3.5, 4]], [[5, 6], [1, 2]]]
    assert pair_of(named("", '{"nose": [1, 2]}'), Chosen(0, 1), boxes=False).points.shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{nose", "a has the keypoints '{nose', which is no JSON."),
        ("[[1, 2]]", "a has the keypoints '[[1, 2]]'; they take the form"),
        ('{"nose": [1]}', "keypoint 'nose' of a is [1]; it takes 2 numbers."),
        ('{"nose": [1, "x"]}', "keypoint 'nose' of a is [1, 'x']; it takes 2 numbers."),
        ('{"nose": [1, NaN]}', "keypoint 'nose' of a is [1, nan]; it takes 2 numbers."),
        ('{"nose": [1, 1' + "0" * 400 + "]}", "keypoint 'nose' of a is [1, 10000"),
    ],
)
def test_damaged_points_are_one_line(text, said):
    with pytest.raises(DataError) as error:
        points_of(named(text, "{}"), 0)
    assert str(error.value).startswith(said)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (("", ""), "b has no box; correspondence.relative_to=image does without boxes."),
        (("", "[1, 2, 3]"), "the box of b is [1, 2, 3]; it takes 4 numbers."),
        (("", f"[1, 2, 3, {10**400}]"), f"the box of b is [1, 2, 3, 1{'0' * 69}; it takes 4 numbers."),
        (
            ("", "[9, 9, 1, 1]"),
            "a and b have the box [9.0, 9.0, 1.0, 1.0]; it takes left, top, right, bottom in rising order.",
        ),
    ],
)
def test_damaged_boxes_are_one_line(boxes, said):
    with pytest.raises(DataError) as error:
        pair_of(named('{"x": [1, 1]}', '{"x": [1, 1]}', box=boxes), Chosen(0, 1), boxes=True)
    assert str(error.value) == said


def lines(*pairs):
    return Listed("some", 2, id=["a", "b"], pairs=["\n".join(map(json.dumps, pairs)), ""])


def test_listed_pairs_are_taken_as_they_are():
    source = lines({"with": "b", "points": [[1, 2, 3, 4]], "box": [0, 0, 5, 9]}, {"with": "a", "points": []})
    assert lists_pairs(source)
    assert not lists_pairs(lines())
    assert not lists_pairs(Listed("other", 1))
    one, other = listed_pairs(source)
    assert (one.first, one.second, other.second) == (0, 1, 0)
    assert pair_of(source, one, boxes=True).points.tolist() == [[[1, 2], [3, 4]]]
    assert pair_of(source, one, boxes=True).side == 9
    assert pair_of(source, other, boxes=False).points.shape == (0, 2, 2)


def test_pairs_with_pictures_that_were_not_selected_are_left_out(capsys):
    pairs = {"with": "b", "points": []}, {"with": "c", "points": []}
    whole = Listed("some", 3, id=["a", "b", "c"], pairs=["\n".join(map(json.dumps, pairs)), "", ""])
    assert len(listed_pairs(whole)) == 2
    assert "left out" not in capsys.readouterr().err
    for some in (whole.select(np.asarray([0, 2])), whole.select(np.asarray([2, 1, 0])).select(np.asarray([2, 0]))):
        (one,) = listed_pairs(some)
        assert (some.columns["id"][one.first], some.columns["id"][one.second]) == ("a", "c")
        assert "some: 1 pairs are left out, for their other picture is not among the 2 rows" in capsys.readouterr().err
    with pytest.raises(DataError, match="a has a pair with 'd', which some has not"):
        listed_pairs(Listed("some", 1, id=["a"], pairs=['{"with": "d"}']).select(np.asarray([0])))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ({"with": "c", "points": []}, "a has a pair with 'c', which some has not."),
        (["b"], "a has a pair with None, which some has not."),
        ({"with": "b"}, "the pair a and b is None; it takes lists of 4 numbers x, y, u, v."),
        (
            {"with": "b", "points": [[1, 2, 3]]},
            "the pair a and b is [[1, 2, 3]]; it takes lists of 4 numbers x, y, u, v.",
        ),
        (
            {"with": "b", "points": [[10**400, 2, 3, 4]]},
            f"the pair a and b is [[1{'0' * 77}; it takes lists of 4 numbers x, y, u, v.",
        ),
        ({"with": "b", "points": [[1, 2, 3, 4]]}, "b has no box; correspondence.relative_to=image does without boxes."),
    ],
)
def test_damaged_pairs_are_one_line(pair, said):
    source = lines(pair)
    with pytest.raises(DataError) as error:
        pair_of(source, listed_pairs(source)[0], boxes=True)
    assert str(error.value) == said


def test_points_on_the_edge_are_inside():
    points = np.asarray([[0, 0], [8, 6], [8.5, 1], [-0.5, 1], [1, 6.1]])
    assert outside(points, size=(8, 6)).tolist() == [2, 3, 4]


def test_a_drawn_world_says_where_its_points_and_its_thing_are():
    source = open_source("toy://species?images=60&size=48&seed=3&objects=2&junk=0.1")
    for row in range(len(source)):
        points, box = points_of(source, row), box_of(source, row)
        if source.columns["role"][row] == "junk":
            assert points == {}
            assert box is None
            continue
        instance = source.extra(row, "instance")
        assert all(instance[int(y), int(x)] == 1 for x, y in points.values())
        inside = np.zeros((48, 48), bool)
        inside[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        assert (inside | (instance != 1)).all()
        assert (instance[int(box[1])] == 1).any()
        assert (instance[:, int(box[2]) - 1] == 1).any()
    pair = drawn_pairs(source, by="group", count=5, seed=0)[0]
    assert pair_of(source, pair, boxes=True).points.shape[1:] == (2, 2)
