"""Intersection over union and its kin, against a slow loop, scikit-learn, and cases by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from dinoforge.evaluate.dense.labels import MaskClasses
from dinoforge.evaluate.dense.overlap import counted, overlap_scores

IGNORE = 255


def scores(answers, truths, classes, ignore=IGNORE):
    known = MaskClasses(tuple(str(number) for number in range(classes)), ignore)
    counts = np.stack([counted(np.asarray(a), np.asarray(t), known) for a, t in zip(answers, truths, strict=True)])
    return {score.name: score for score in overlap_scores("task", counts, known, protocol="p")}


def slowly(answers, truths, classes, ignore=IGNORE):
    """The definition, pixel by pixel."""
    ious, recalls, right, all_known = [], [], 0, 0
    for number in range(classes):
        both = either = there = 0
        for answer, truth in zip(answers, truths, strict=True):
            for a, t in zip(np.asarray(answer).ravel().tolist(), np.asarray(truth).ravel().tolist(), strict=True):
                if t == ignore:
                    continue
                both += a == number and t == number
                either += number in (a, t)
                there += t == number
        right, all_known = right + both, all_known + there
        if there:
            ious.append(both / either)
            recalls.append(both / there)
    return float(np.mean(ious)), right / all_known, float(np.mean(recalls))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.9]))
def test_equal_a_slow_loop(seed, classes, pictures, unknown):
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 6)), int(rng.integers(1, 6))) for _ in range(pictures)]
    answers = [rng.integers(0, classes, shape) for shape in shapes]
    truths = [rng.integers(0, max(1, classes - int(rng.integers(0, 2))), shape) for shape in shapes]
    truths = [np.where(rng.random(t.shape) < unknown, IGNORE, t) for t in truths]
    truths[0].flat[0] = 0  # something is known
    found = scores(answers, truths, classes)
    expected = slowly(answers, truths, classes)
    assert [found[name].value for name in ("miou", "pixel_accuracy", "mean_class_accuracy")] == pytest.approx(expected)


def test_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.choice(7, (30, 40), p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05, 0.0])
    answer = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 7, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = IGNORE
    known = truth != IGNORE
    t, a, there = truth[known], answer[known], np.unique(truth[known])
    found = scores([answer], [truth], 7)
    each = jaccard_score(t, a, labels=there, average=None)
    assert [found[f"iou_{number}"].value for number in there] == pytest.approx(each)
    assert found["miou"].value == pytest.approx(each.mean())
    assert found["pixel_accuracy"].value == pytest.approx(accuracy_score(t, a))
    assert found["mean_class_accuracy"].value == pytest.approx(recall_score(t, a, labels=there, average="macro"))
    assert "iou_6" not in found  # which the truth does not have, though it was told


def test_by_hand():
    # Class 0: 2 right of 2 there and 3 told; class 1: 1 of 2 and 1; the pixel that is ignored was told wrongly.
    found = scores([[[0, 0, 0, 1, 1]]], [[[0, 0, 1, 1, IGNORE]]], 3)
    assert found["iou_0"].value == pytest.approx(2 / 3)
    assert found["iou_1"].value == pytest.approx(1 / 2)
    assert found["miou"].value == pytest.approx(7 / 12)
    assert found["pixel_accuracy"].value == pytest.approx(3 / 4)
    assert found["mean_class_accuracy"].value == pytest.approx(3 / 4)
    assert [name for name in found if name.startswith("iou")] == ["iou_0", "iou_1"]


def test_all_pictures_are_one_set_of_pixels():
    """Not the mean over pictures: a small picture counts less."""
    found = scores([[[0]], [[1, 1, 1, 1]]], [[[0]], [[1, 1, 0, 0]]], 2)
    assert found["iou_0"].value == pytest.approx(1 / 3)
    assert found["iou_1"].value == pytest.approx(2 / 4)


def test_any_number_may_be_ignored():
    assert scores([[[0, 1]]], [[[0, 2]]], 2, ignore=2)["pixel_accuracy"].value == 1
    assert scores([[[0, 1]]], [[[0, -1]]], 2, ignore=-1)["miou"].value == 1


def test_the_interval_is_that_of_pictures_drawn_again():
    """Pictures that are wholly right or wholly wrong: the accuracy of a sample is the share of right ones in it."""
    right = np.arange(40) % 4 != 0
    truths = [np.zeros((2, 2), int) if n % 2 else np.ones((2, 2), int) for n in range(40)]
    answers = [t if good else 1 - t for t, good in zip(truths, right, strict=True)]
    found = scores(answers, truths, 2)["pixel_accuracy"]
    assert found.value == pytest.approx(0.75)
    low, high = found.interval
    spread = np.sqrt(0.75 * 0.25 / 40)
    assert low == pytest.approx(0.75 - 1.96 * spread, abs=0.03)
    assert high == pytest.approx(0.75 + 1.96 * spread, abs=0.03)
    assert found.n == 40


def test_one_picture_and_nothing_known_in_others():
    found = scores([[[0, 1]], [[1, 1]]], [[[0, 1]], [[IGNORE, IGNORE]]], 2)
    assert found["miou"].value == 1
    assert found["iou_0"].n == 1
    assert all(np.isfinite(found[name].interval).all() for name in ("miou", "pixel_accuracy", "mean_class_accuracy"))
