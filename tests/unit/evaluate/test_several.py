"""Images that show several classes: who shows what, by hand; one regression a class, by scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dinoforge.base.errors import DataError
from dinoforge.base.random import torch_generator
from dinoforge.evaluate.classes import classes_of
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.linear import LINEAR, LinearConfig
from dinoforge.evaluate.logistic import LOGISTIC
from dinoforge.evaluate.metrics import average_precision
from dinoforge.evaluate.regression import LogisticConfig
from dinoforge.evaluate.several import shown_classes, shows_several
from dinoforge.evaluate.table import EVALUATIONS
from given import GivenEyes, Made, noise


def several(address, labels, features, difficult=None):
    found = Made(np.zeros(len(labels)), address, image=features)
    del found.columns["label"]
    found.columns["labels"] = np.asarray(labels)
    if difficult is not None:
        found.columns["difficult"] = np.asarray(difficult)
    return found


def test_who_shows_what():
    known = several("a", ["cat\ndog", "", "dog"], None, difficult=["", "cat", ""])
    asked = several("b", ["dog", "cat"], None)
    assert shows_several(known)
    assert not shows_several(Made([0, 1]))
    names, ours, theirs = shown_classes(known, asked)
    assert names == ["cat", "dog"]
    assert ours.tolist() == [[1, 1], [-1, 0], [0, 1]]
    assert theirs.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="b has classes that a lacks: cow"):
        shown_classes(known, several("b", ["cow"], None))
    with pytest.raises(DataError, match="show no class"):
        shown_classes(several("a", ["", ""], None), several("b", [""], None))


def test_a_set_without_its_truth_is_not_scored():
    known, features = several("a", ["cat", "dog"], None), torch.zeros(20, 2)
    with pytest.raises(DataError, match="b: no image that is asked shows a class; a test set without its truth"):
        shown_classes(known, several("b", ["", ""], None))
    held = int(torch.randperm(20, generator=torch_generator(0, "logistic holdout"))[-1])
    known = several("a", ["cat" if row == held else "" for row in range(20)], features)
    with pytest.raises(
        DataError, match=r"a: none of the 2 images held out to choose C shows a class; give logistic.c="
    ):
        LOGISTIC.measure(GivenEyes(), Sides(known, known), LogisticConfig())


def world(count, seed):
    """Three classes that are there where a direction of the features says so, nearly; some are hard to see."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6))
    there = x[:, :3] + 0.7 * rng.normal(size=(count, 3)) > 0.4
    hard = rng.random((count, 3)) < 0.1
    names = np.asarray(["bird", "cat", "dog"])
    labels = ["\n".join(names[row & ~off]) for row, off in zip(there, hard, strict=True)]
    difficult = ["\n".join(names[off]) for off in hard]
    return several(f"w{seed}", labels, torch.from_numpy(x).float(), difficult), x, np.where(hard, -1, there)


def test_one_regression_a_class_is_scikit_learns():
    (known, x, ours), (asked, y, theirs) = world(120, 0), world(80, 1)
    want = []
    for column in range(3):
        rows = ours[:, column] >= 0
        model = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000).fit(x[rows], ours[rows, column])
        want.append(average_precision(model.decision_function(y), theirs[:, column]))
    scores = {one.name: one for one in LOGISTIC.measure(GivenEyes(), Sides(known, asked), LogisticConfig(c=(0.3,)))}
    for name, value in zip(("bird", "cat", "dog"), want, strict=True):
        assert scores[f"ap11_{name}"].value == pytest.approx(value, abs=1e-12)
    assert scores["map11"].value == pytest.approx(np.mean(want), abs=1e-12)
    assert scores["ap11_cat"].n == (theirs[:, 1] >= 0).sum()
    low, high = scores["map11"].interval
    assert low < scores["map11"].value < high


def test_the_penalty_is_chosen_by_precision_on_held_out_images():
    known, asked = world(120, 0)[0], world(80, 1)[0]
    x, marks = torch.from_numpy(world(120, 0)[1]).float(), world(120, 0)[2]
    order = torch.randperm(120, generator=torch_generator(0, "logistic holdout"))
    held, rest = order[:12], order[12:]
    tried = {}
    for c in (1e-4, 0.01, 1.0, 1e4):
        precisions = []
        for column in range(3):
            here, there = (some[torch.from_numpy(marks[some, column] >= 0)] for some in (rest, held))
            model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x[here], marks[here, column])
            precisions.append(average_precision(model.decision_function(x[there]), marks[there, column]))
        tried[c] = np.nanmean(precisions)
    best = max(tried, key=tried.get)
    assert len({*tried.values()}) > 1
    measured = LOGISTIC.measure(GivenEyes(), Sides(known, asked), LogisticConfig(c=tuple(tried)))
    alone = LOGISTIC.measure(GivenEyes(), Sides(known, asked), LogisticConfig(c=(best,)))
    assert f"C={best:.3g}, " in measured[0].protocol
    assert measured[0].value == pytest.approx(alone[0].value)


def test_other_tasks_say_who_takes_them():
    known = world(20, 0)[0]
    assert [name for name, evaluation in EVALUATIONS.items() if evaluation.several] == ["logistic"]
    with pytest.raises(DataError, match="where an image shows several, take tasks=logistic"):
        classes_of(known, known)


def test_labels_that_were_given_again():
    """Four images that a head answers with their own class: one has it among its labels, one has others, one has none."""
    labels = [3, 7, 3, 7]
    blocks = torch.eye(2)[torch.tensor([0, 1, 0, 1])][:, None].expand(-1, 2, -1)
    known, asked = Made(labels, "a", blocks=blocks), Made(labels, "b", blocks=blocks)
    asked.columns["real"] = np.asarray(["7\n3", "3", "", "7"])
    config = LinearConfig(iterations=100, learning_rates=(0.1,), batch=4)
    scores = {one.name: one for one in LINEAR.measure(GivenEyes(), Sides(known, asked), config)}
    assert scores["accuracy"].value == 1
    assert (scores["real_accuracy"].value, scores["real_accuracy"].n) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("odd", ["99999999999999999999", "9" * 5000, "a word"])
def test_a_column_real_that_is_about_something_else_is_passed_over(odd):
    labels = [3, 7, 3, 7]
    known, asked = (Made(labels, name, blocks=noise(4, 2, 2)) for name in "ab")
    asked.columns["real"] = np.asarray(["7", "3", odd, "7"])
    found = LINEAR.measure(GivenEyes(), Sides(known, asked), LinearConfig(iterations=2, learning_rates=(0.1,), batch=4))
    assert [score.name for score in found] == ["accuracy", "mean_class_accuracy"]


def test_few_images_that_show_a_class_have_no_interval():
    """In a sample drawn of six, of which one shows a class, none may: then there is no precision."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    known = several("a", ["cat", "dog"] * 10, x)
    config = LogisticConfig(c=(1.0,))
    for labels, sure in ((["cat", "", "", "", "", ""], False), (["cat", "dog"] * 10, True)):
        found = LOGISTIC.measure(GivenEyes(), Sides(known, several("b", labels, x[: len(labels)])), config)
        assert (found[0].interval is not None) == sure
