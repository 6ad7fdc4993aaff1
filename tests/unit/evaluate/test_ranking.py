"""Rankings and average precision against slow definitions, scikit-learn, and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from dinoforge.base.errors import DataError
from dinoforge.evaluate.decisions import Decisions
from dinoforge.evaluate.ranking import Places, rankings
from given import noise


def slow_ranking(relevant, ignored):
    """Places of the relevant images when the ignored ones are taken out of the list, one after the other."""
    kept = [image for image in range(len(relevant)) if not ignored[image]]
    return [place for place, image in enumerate(kept, start=1) if relevant[image]]


def slow_plain(places):
    return sum(nth / place for nth, place in enumerate(places, start=1)) / len(places)


def slow_trapezoid(places):
    """The area below precision over recall, cut into trapezia at every image of the ranking, as Oxford5k's program does."""
    area, precision, recall, hits = 0.0, 1.0, 0.0, 0
    for place in range(1, max(places) + 1):
        hits += place in places
        now = hits / place
        area += (hits / len(places) - recall) * (now + precision) / 2
        recall, precision = hits / len(places), now
    return area


def drawn(queries, images, seed, share=0.2):
    rng = np.random.default_rng(seed)
    relevant = rng.random((queries, images)) < share
    return relevant, ~relevant & (rng.random((queries, images)) < 0.3)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_its_definition(seed):
    relevant, ignored = drawn(12, 40, seed)
    places = Places.of(relevant, ~ignored)
    for trapezoid, slow in ((False, slow_plain), (True, slow_trapezoid)):
        want = [slow(slow_ranking(*lines)) for lines in zip(relevant, ignored, strict=True)]
        assert places.average_precision(trapezoid=trapezoid) == pytest.approx(want)


def test_plain_average_precision_is_scikit_learn_s():
    relevant, ignored = drawn(10, 50, 7)
    falling = -np.arange(50.0)
    got = Places.of(relevant, ~ignored).average_precision()
    want = [average_precision_score(hit[~out], falling[~out]) for hit, out in zip(relevant, ignored, strict=True)]
    assert got == pytest.approx(want)


def test_by_hand():
    """Hits at places 1 and 4 of four: (1 + 1/2) / 2 plain; trapezoidal (1 + 1)/2 and (1/2 + 1/3)/2, halved."""
    found = Places.of(np.asarray([[1, 0, 0, 1]], bool), np.ones((1, 4), bool))
    assert found.average_precision().item() == pytest.approx(0.75)
    assert found.average_precision(trapezoid=True).item() == pytest.approx((1 + 5 / 12) / 2)
    assert found.first().item() == 1
    one = Places.of(np.asarray([[0, 0, 0, 0, 1]], bool), np.ones((1, 5), bool))
    assert one.average_precision().item() == pytest.approx(1 / 5)
    assert one.average_precision(trapezoid=True).item() == pytest.approx(1 / 10)
    assert one.first().item() == 0


def test_ignored_images_are_as_if_they_were_not_there():
    relevant = np.asarray([[0, 1, 0, 1]], bool)
    counted = np.asarray([[0, 1, 0, 1]], bool)
    assert Places.of(relevant, counted).average_precision(trapezoid=True).item() == 1
    both = Places.of(np.ones((1, 3), bool), np.asarray([[0, 1, 1]], bool))  # relevant and ignored: ignored
    assert both.count.tolist() == [2]


def test_nothing_to_find_is_no_number():
    found = Places.of(np.zeros((2, 3), bool), np.asarray([[1, 1, 1], [0, 0, 0]], bool))
    for values in (
        found.average_precision(),
        found.average_precision(trapezoid=True),
        found.precision_at(5),
        found.first(),
    ):
        assert np.isnan(values).all()


def test_precision_at_k_goes_down_to_the_last_relevant_image():
    """By hand: hits at 1, 3, 7. Of the first 2 half, of 5 two; at 10 the last hit, 3 of 7, decides."""
    relevant = np.zeros((2, 12), bool)
    relevant[0, [0, 2, 6]] = True
    relevant[1, :4] = True
    found = Places.of(relevant, np.ones((2, 12), bool))
    assert found.precision_at(2).tolist() == [0.5, 1]
    assert found.precision_at(5).tolist() == [2 / 5, 1]  # four relevant images, all first: 1, not 4/5
    assert found.precision_at(10).tolist() == [3 / 7, 1]


def test_rankings_are_by_cosine_and_hold_every_image_once(monkeypatch):
    queries, gallery = noise(9, 5), noise(30, 5, seed=1) * torch.arange(1, 31)[:, None]
    whole = [np.concatenate(part) for part in zip(*rankings(queries, gallery), strict=True)]
    monkeypatch.setattr("dinoforge.evaluate.ranking._PAIRS_AT_ONCE", 60)
    parts = list(rankings(queries, gallery))
    assert [len(rows) for rows, _, _ in parts] == [2, 2, 2, 2, 1]
    for got, want in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_allclose(np.concatenate(got), want, atol=1e-6)
    rows, order, near = whole
    assert rows.tolist() == list(range(9))
    assert (np.sort(order, axis=1) == np.arange(30)).all()
    want = torch.cosine_similarity(queries[:, None], gallery[None], dim=-1).numpy()
    np.testing.assert_allclose(near, np.take_along_axis(want, order, axis=1), atol=1e-6)
    assert (np.diff(near, axis=1) <= 0).all()
    _, few, _ = next(iter(rankings(queries, gallery, count=4)))
    assert (few == order[:2, :4]).all()


@pytest.mark.parametrize("count", [1, 10, 150, 200])
def test_the_beginning_of_a_ranking_is_that_of_the_whole_where_similarities_are_equal(count):
    rng = np.random.default_rng(0)
    queries, gallery = (torch.from_numpy(rng.integers(0, 2, (rows, 4))).float() for rows in (20, 200))
    ((_, whole, _),) = rankings(queries, gallery)
    ((_, first, _),) = rankings(queries, gallery, count=count)
    np.testing.assert_array_equal(first, whole[:, :count])


def test_equal_similarities_come_in_an_order_that_knows_nothing_of_groups():
    """A collapsed backbone on a gallery sorted by group scores chance: of R relevant images among N in random order
    E[AP] = (R - 1) / (N - 1) + (N - R) / (N (N - 1)) * (1 + 1/2 + ... + 1/N)."""
    groups = np.repeat(np.arange(20), 10)
    _, order, _ = next(iter(rankings(torch.ones(200, 3), torch.ones(200, 3))))
    relevant = groups[order] == groups[:, None]
    found = Places.of(relevant, np.ones_like(relevant)).average_precision().mean()
    sorted_gallery = groups[None].repeat(200, 0) == groups[:, None]
    inflated = Places.of(sorted_gallery, np.ones_like(relevant)).average_precision().mean()
    chance = 9 / 199 + 190 / (200 * 199) * sum(1 / place for place in range(1, 201))
    assert found == pytest.approx(chance, rel=0.15)
    assert inflated > 1.5 * chance  # in the gallery's own order


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="features of the gallery hold numbers that are not finite"):
        list(rankings(torch.ones(1, 2), torch.tensor([[1.0, math.nan]])))


def decisions(confidence, right, query=None, wanted=None):
    query = np.zeros(len(right), int) if query is None else np.asarray(query)
    wanted = [int(np.sum(right))] if wanted is None else wanted
    return Decisions(np.asarray(confidence, float), np.asarray(right, bool), query, np.asarray(wanted))


@pytest.mark.parametrize("seed", range(4))
def test_micro_average_precision_is_scikit_learn_s_with_ties_and_without(seed):
    rng = np.random.default_rng(seed)
    right = rng.random(200) < 0.3
    for confidence in (rng.random(200), rng.integers(0, 6, 200), np.ones(200)):
        found = decisions(confidence, right)
        assert found.average_precision() == pytest.approx(average_precision_score(right, confidence))
    assert decisions(np.ones(200), right).average_precision() == pytest.approx(right.mean())  # chance


def test_what_is_never_decided_is_missed():
    """By hand: right at 1 and 3 of four, five to make: (1 + 2/3) / 5."""
    found = decisions([4, 3, 2, 1], [1, 0, 1, 0], wanted=[5])
    assert found.average_precision() == pytest.approx((1 + 2 / 3) / 5)


def slow_recall(confidence, right, wanted, precision):
    best = 0.0
    for threshold in set(confidence):
        taken = [hit for sure, hit in zip(confidence, right, strict=True) if sure >= threshold]
        if sum(taken) / len(taken) >= precision:
            best = max(best, sum(taken) / wanted)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_recall_at_a_precision_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 30, 80)
    right = rng.random(80) < 1 / (1 + np.exp(12 - confidence / 1.2))
    found = decisions(confidence, right, wanted=[int(right.sum()) + 3])
    for precision in (0.5, 0.9, 1.0):
        want = slow_recall(confidence.tolist(), right.tolist(), int(right.sum()) + 3, precision)
        assert found.recall_at(precision) == pytest.approx(want)
    assert decisions([2, 1], [0, 1]).recall_at(0.9) == 0


def test_the_interval_draws_queries_with_all_their_decisions():
    """Against sets of decisions that are written out as often as their queries are drawn."""
    rng = np.random.default_rng(0)
    query = np.repeat(np.arange(30), 3)
    found = decisions(rng.integers(0, 20, 90), rng.random(90) < 0.4, query, np.full(30, 2))
    times = np.bincount(rng.integers(0, 30, 30), minlength=30)
    often = np.repeat(np.arange(90), times[query])
    want = decisions(found.confidence[often], found.right[often], query[often], [2 * 30])
    assert found._average_precision(times.astype(float)) == pytest.approx(
        Decisions(want.confidence, want.right, np.zeros(len(often), int), np.asarray([60])).average_precision()
    )
    low, high = found.interval()
    assert low < found.average_precision() < high
    assert decisions([1, 2], [0, 1], [0, 1], [1, 0]).interval() is None
