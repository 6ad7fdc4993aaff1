"""Classes: numbered from 0, and what does not fit together is said in one line."""

import numpy as np
import pytest

from dinoforge.base.errors import DataError
from dinoforge.evaluate.classes import classes_of, told_apart
from given import Made


def test_any_numbers_become_places():
    known, asked = Made([7, 3, 900, 3]), Made([900, 3])
    classes = classes_of(known, asked)
    assert (classes.labels.tolist(), classes.names, len(classes)) == ([3, 7, 900], ("3", "7", "900"), 3)
    assert classes.of(known).tolist() == [1, 0, 2, 0]
    assert classes.of(asked).tolist() == [2, 0]  # class 7 is not asked, which is no error


def test_names_go_with_their_numbers():
    known = Made([1, 0, 1], names=["dog", "cat", "dog"])
    assert classes_of(known, Made([0], names=["cat"])).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("known", "asked", "message"),
    [
        (Made([4, 4], "a", ["cat"] * 2), Made([4], "b", ["cat"]), "a has one class, cat; to be told apart there must be two."),
        (Made([0, 1], "a", ["cat", "dog"]), Made([1, 5, 6], "b", ["dog", "cow", "owl"]),
         "b has classes that a lacks: cow, owl."),
        (Made([0, 1], "a"), Made(np.arange(12), "b"), "b has classes that a lacks: 2, 3, 4, 5, 6 and 5 more."),
        (Made([0, 1], "a", ["cat", "dog"]), Made([0, 1], "b", ["cat", "cow"]), "Classes of a and b differ: 1 is dog and cow."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(known, asked, message):
    with pytest.raises(DataError) as error:
        classes_of(known, asked)
    assert str(error.value) == message


def test_classes_of_one_name_are_told_apart():
    """ImageNet has two cranes, the bird and the machine."""
    assert told_apart(["crane", "dog", "crane"], [134, 151, 517]) == ("crane (134)", "dog", "crane (517)")
