"""Metrics against scikit-learn, slow loops and hands, on ties, absent classes and what is no number."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score

from dinoforge.evaluate.metrics import (
    accuracy_scores,
    average_precision,
    mean_average_precision,
    mean_class_accuracy,
    mean_class_interval,
    ranks,
    real_right,
)


def drawn(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, classes)).astype(np.float32), rng.integers(0, classes, count)


def test_ranks_equal_scikit_learn():
    scores, labels = drawn(300, 9)
    found = ranks(torch.from_numpy(scores), torch.from_numpy(labels)).numpy()
    for k in (1, 2, 5, 8):
        theirs = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(9))
        assert (found < k).mean() == pytest.approx(theirs)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ranks_of_equal_scores_are_a_stable_order(levels):
    """Slow definition: sorted by score, then by class."""
    rng = np.random.default_rng(levels)
    scores, labels = rng.integers(0, levels, (40, 6)).astype(np.float32), rng.integers(0, 6, 40)
    want = [sorted(range(6), key=lambda c: (-row[c], c)).index(own) for row, own in zip(scores, labels, strict=True)]
    assert ranks(torch.from_numpy(scores), torch.from_numpy(labels)).tolist() == want


def test_ranks_of_many_heads_at_once_and_of_one_query():
    scores, labels = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
    assert ranks(scores, labels).tolist() == [ranks(one, labels).tolist() for one in scores]
    assert ranks(torch.tensor([[0.0, 2.0]]), torch.tensor([0])).tolist() == [1]


def test_what_is_no_number_is_never_right():
    nan, inf = math.nan, math.inf
    scores = torch.tensor([[nan, nan], [nan, 1.0], [1.0, nan], [inf, 1.0], [-inf, -inf]])
    assert ranks(scores, torch.tensor([0, 0, 0, 0, 0])).tolist() == [2, 2, 1, 0, 0]


@pytest.mark.parametrize("present", [range(5), [1, 4], [0, 3]])
def test_mean_class_accuracy_equals_scikit_learn(present):
    rng = np.random.default_rng(0)
    labels, answers = rng.choice(list(present), 60), rng.choice(list(present), 60)
    assert mean_class_accuracy(answers == labels, labels) == pytest.approx(balanced_accuracy_score(labels, answers))


def test_mean_class_accuracy_by_hand():
    """Three of four and none of one: 0.375, where the accuracy is 0.6. Class 1 has no image."""
    labels = np.asarray([0, 0, 0, 0, 2])
    right = np.asarray([True, True, True, False, False])
    assert mean_class_accuracy(right, labels) == pytest.approx(0.375)
    low, high = mean_class_interval(right, labels)
    assert 0 <= low < 0.375 < high <= 1
    assert mean_class_interval(labels >= 0, labels) == (1, 1)  # perfect, whatever classes a sample lacks


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of 200 samples of a classifier of known accuracies, nine tenths of the intervals or more hold the mean of its classes."""
    rng, truth, held = np.random.default_rng(0), np.asarray([0.9, 0.5, 0.7]), 0
    for _ in range(200):
        labels = rng.choice(3, 120, p=[0.6, 0.25, 0.15])
        low, high = mean_class_interval(rng.random(120) < truth[labels], labels)
        held += low <= truth.mean() <= high
    assert 0.9 <= held / 200 <= 0.99


def test_real_right_by_hand():
    labels = torch.tensor([[3, -1, -1], [1, 2, -1], [-1, -1, -1], [0, 4, 5]])
    assert real_right(torch.tensor([3, 0, 7, 4]), labels).tolist() == [True, False, True]
    assert real_right(torch.tensor([-1, 1, -1, 5]), labels).tolist() == [False, True, True]
    assert real_right(torch.tensor([1]), torch.tensor([[-1]])).tolist() == []


def slow_eleven_points(scores, there):
    """Every threshold, one after the other: images at or above it are found."""
    points = []
    for threshold in sorted({*scores}):
        found = scores >= threshold
        points.append((there[found].sum() / there.sum(), there[found].mean()))
    return np.mean([max((p for r, p in points if r >= level / 10 - 1e-9), default=0) for level in range(11)])


@pytest.mark.parametrize("levels", [2, 7, 10_000])
def test_eleven_point_precision_equals_its_definition(levels):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = rng.integers(0, levels, 50).astype(np.float32)
        there = (rng.random(50) < 0.2).astype(np.int64)
        there[0] = 1
        assert average_precision(scores, there) == pytest.approx(slow_eleven_points(scores, there))
        order = rng.permutation(50)
        assert average_precision(scores[order], there[order]) == average_precision(scores, there)


def test_eleven_point_precision_by_hand():
    """Found are yes, no, yes: precision 1 to recall 0.5, then 2/3. Six levels of 1 and five of 2/3."""
    scores, there = np.asarray([3.0, 2.0, 1.0]), np.asarray([1, 0, 1])
    assert average_precision(scores, there) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert average_precision(np.asarray([4.0, *scores]), np.asarray([-1, *there])) == average_precision(scores, there)
    assert average_precision(np.ones(8), np.arange(8) % 4 // 3) == pytest.approx(
        0.25
    )  # constant: the share of positives
    assert average_precision(np.arange(8.0), np.arange(8) // 6) == 1
    assert math.isnan(average_precision(scores, np.zeros(3, np.int64)))


def test_recalls_of_tenths_are_reached():
    """Positives before all negatives, as many as tenths and not: precision 1 at each recall, however that is rounded."""
    for count in range(1, 121):
        assert average_precision(-np.arange(150.0), (np.arange(150) < count).astype(np.int64)) == 1


def test_eleven_points_are_near_the_area():
    """Another average of the same curve: it lies within a step of the eleven levels."""
    rng = np.random.default_rng(1)
    there = (rng.random(4000) < 0.3).astype(np.int64)
    scores = there + rng.normal(size=4000)
    assert average_precision(scores, there) == pytest.approx(average_precision_score(there, scores), abs=0.03)


def test_mean_average_precision_leaves_out_classes_without_a_positive():
    scores, _ = drawn(30, 3)
    there = np.stack([np.arange(30) % 2, np.zeros(30), np.arange(30) % 3 == 0], axis=1).astype(np.int64)
    want = np.mean([average_precision(scores[:, column], there[:, column]) for column in (0, 2)])
    assert mean_average_precision(scores, there) == pytest.approx(want)


@pytest.mark.parametrize("classes", [5, 6])
def test_scores_of_a_table(classes):
    scores, labels = drawn(100, classes)
    found = ranks(torch.from_numpy(scores), torch.from_numpy(labels))
    made = {
        score.name: score
        for score in accuracy_scores("t", found, torch.from_numpy(labels), classes=classes, protocol="p")
    }
    assert ("top5" in made) == (classes > 5)  # five of five are always right
    assert made["accuracy"].value == pytest.approx((scores.argmax(1) == labels).mean())
    assert made["mean_class_accuracy"].value == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    for score in made.values():
        assert score.interval[0] <= score.value <= score.interval[1]
        assert (score.n, score.task, score.protocol) == (100, "t", "p")
