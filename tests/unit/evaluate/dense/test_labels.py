"""How many classes masks have, what they are called, what is ignored, and what is refused."""

import json

import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.evaluate.dense.labels import labelled_sides
from dinoforge.evaluate.evaluation import Sides
from given import Painted


def masks(*numbers, size=(4, 6), dtype=np.uint8):
    """A picture a number, its mask half of it and half 0."""
    found = []
    for number in numbers:
        mask = np.zeros(size, dtype)
        mask[:, 3:] = number
        found.append(mask)
    return found


def painted(*numbers, address="known", **more):
    found = masks(*numbers, **more)
    return Painted([np.zeros((4, 6))] * len(found), found, address)


def sides(known, asked=None):
    return Sides(known, asked or painted(1, address="asked"))


def looked(both, **words):
    told = []
    found = labelled_sides(
        both, **{"classes": None, "ignore": None, **words}, on_broken=lambda name, reason: told.append((name, reason))
    )
    return found, told


def test_the_highest_number_and_one_are_the_classes():
    (_, classes), told = looked(sides(painted(1, 5, 255)))
    assert (len(classes), classes.ignore, classes.names[5]) == (6, 255, "5")
    assert told == []


def test_any_number_may_be_ignored_and_more_classes_be_there():
    (_, classes), _ = looked(sides(painted(1, 5, 3)), ignore=5)
    assert (len(classes), classes.ignore) == (4, 5)
    (_, classes), _ = looked(sides(painted(1, 5)), classes=9)
    assert len(classes) == 9
    (_, classes), _ = looked(sides(painted(1, -1, dtype=np.int32)), ignore=-1)
    assert (len(classes), classes.ignore) == (2, -1)


def test_classes_json_lies_beside_the_images(tmp_path):
    told = {"classes": ["sky", "road", "tree"], "ignore_index": 3}
    (tmp_path / "classes.json").write_text(json.dumps(told))
    for address in (tmp_path, f"{tmp_path}/train.parquet", f"{tmp_path}?split=train"):
        (_, classes), _ = looked(sides(painted(1, 3, address=str(address))))
        assert (classes.names, classes.ignore) == (("sky", "road", "tree"), 3)
    (_, classes), _ = looked(sides(painted(1, 2, address=str(tmp_path))), ignore=2, classes=2)
    assert (classes.names, classes.ignore) == (("0", "1"), 2)  # names of another number of classes say nothing
    with pytest.raises(DataError, match="known/1 has the class 3; there are 2"):
        looked(sides(painted(1, 3)), classes=2)
    for wrong in (
        '["sky"]',
        '{"classes": []}',
        '{"classes": [1]}',
        '{"classes": ["x", "x", "y"]}',
        "{",
        '{"classes": ["a", "b"], "ignore_index": "x"}',
        '{"classes": ["a", "b"], "ignore_index": 2147483648}',
    ):
        (tmp_path / "classes.json").write_text(wrong)
        with pytest.raises(DataError, match=r"classes\.json") as error:
            looked(sides(painted(1, address=str(tmp_path))))
        assert len(str(error.value).splitlines()) == 1


def test_a_source_that_names_its_classes_is_believed():
    known = painted(1)
    known.mask_names = ("a", "b", "c")
    (_, classes), _ = looked(sides(known))
    assert (classes.names, classes.ignore) == (("a", "b", "c"), 255)
    known.mask_names = ("a", "b", "a")
    refused(sides(known), "known: 'a' is the name of several classes; each takes one of its own")


def refused(both, match, **words):
    with pytest.raises(DataError, match=match) as error:
        looked(both, **words)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_no_class_is_refused():
    refused(sides(painted(1), painted(1, 7, address="asked")), r"asked/1 has the class 7; there are 2, from 0, and 255")
    refused(sides(painted(1, -1, dtype=np.int32)), r"known/1 has -1 in its mask")
    refused(sides(painted(1, 60_000, dtype=np.uint16)), r"known/1 has 60000 in its mask")
    refused(sides(painted(0)), r"know one class alone")
    refused(sides(painted(1), painted(9, address="asked", size=(4, 6))), r"asked/0 has the class 9")


def test_masks_of_another_size_are_refused():
    odd = painted(1, 1)
    odd.masks[1] = np.zeros((4, 5), np.uint8)
    refused(sides(odd), r"known/1: the mask has 5x4 pixels and the picture 6x4; they must agree")


def test_images_without_a_mask_are_left_out_and_counted(capsys):
    known = painted(1, 2, 3)
    known.masks[1] = None
    (both, classes), _ = looked(sides(known))
    assert both.known.columns["id"].tolist() == ["known/0", "known/2"]
    assert len(classes) == 4
    assert "1 of 3 images have no mask and are left out" in capsys.readouterr().err
    known.masks = [None] * 3
    refused(sides(known), "has no mask that can be read")


def test_masks_of_nothing_known_are_refused():
    known = painted(1)
    known.masks = [np.full((4, 6), 255, np.uint8)]
    refused(sides(known), "every pixel of its masks is 255, which is ignored")
    refused(sides(painted(1), Painted(known.pictures, known.masks, "asked")), "asked: every pixel")
