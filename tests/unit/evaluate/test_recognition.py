"""Answers with a confidence, and GAP, against slow definitions and by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from dinoforge.base.errors import DataError
from dinoforge.evaluate.recognition import RecognitionConfig, recognised, recognition_scores
from given import noise


def slow_answer(query, gallery, labels, config):
    """One thing after the other, in plain probabilities."""
    cosines = torch.cosine_similarity(query[None], gallery, dim=-1).tolist()
    near = sorted(range(len(gallery)), key=lambda row: -cosines[row])[: config.neighbours]
    weight = {}
    for thing in set(labels.tolist()):
        mine = [cosines[row] for row in near if labels[row] == thing]
        weight[thing] = math.exp(max([0.0, *mine]) / config.temperature)
    answer = labels[near[0]]
    return answer, weight[answer] / sum(weight.values())


@pytest.mark.parametrize("neighbours", [1, 5, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_answers_equal_their_definition(neighbours, temperature):
    labels = np.random.default_rng(0).integers(0, 9, 30) * 11
    queries, gallery = noise(20, 6), noise(30, 6, seed=1)
    config = RecognitionConfig(neighbours=neighbours, temperature=temperature)
    answers, confidence = recognised(queries, gallery, labels, config=config)
    want = [slow_answer(query, gallery, labels, config) for query in queries]
    assert answers.tolist() == [answer for answer, _ in want]
    np.testing.assert_allclose(1 / (1 + np.exp(-confidence)), [sure for _, sure in want], rtol=1e-4)


def test_many_neighbours_take_no_more_memory_than_the_ranking():
    """Of 1,000 queries with 600 neighbours each; a table of all pairs of these would have 360 MB."""
    labels = np.arange(600) % 50
    tracemalloc.start()
    recognised(noise(1000, 4), noise(600, 4, seed=1), labels, config=RecognitionConfig(neighbours=600))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # numpy's arrays alone: a dozen tables of 5 MB


def test_near_certain_answers_keep_their_order():
    """At a small temperature both probabilities round to 1; the nearer query is still the surer one."""
    queries = torch.tensor([[1.0, 0.1], [1.0, 0.0]])
    _, confidence = recognised(
        queries, torch.eye(2), np.asarray([0, 1]), config=RecognitionConfig(temperature=0.01, neighbours=2)
    )
    assert (1 / (1 + np.exp(-confidence))).tolist() == [1, 1]
    assert confidence[1] > confidence[0]


def test_one_thing_alone_is_certain():
    answers, confidence = recognised(noise(3, 4), noise(2, 4), np.asarray([7, 7]), config=RecognitionConfig())
    assert answers.tolist() == [7, 7, 7]
    assert confidence.tolist() == [math.inf] * 3
    found = recognition_scores(noise(3, 4), noise(2, 4), np.asarray([7, -1, -1]), np.asarray([7, 7]), config=RecognitionConfig(),
                               seen="x")  # fmt: skip
    assert found[0].value == pytest.approx(1 / 3)  # all are equally sure


def slow_gap(confidence, right, answerable):
    order = sorted(range(len(right)), key=lambda query: -confidence[query])
    hits, total = 0, 0.0
    for place, query in enumerate(order, start=1):
        hits += right[query]
        total += right[query] * hits / place
    return total / sum(answerable)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_their_definition(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 40)
    labels[:3] = -1  # of things that have no name: no answer
    centres = noise(6, 8, seed=seed) * 1.5
    asked = rng.integers(-1, 7, 60)  # 6 is in no gallery: a distractor as well
    gallery = centres[torch.from_numpy(labels)] + noise(40, 8, seed=seed + 1)
    queries = centres[torch.from_numpy(np.where(asked > 5, 0, asked))] + noise(60, 8, seed=seed + 2)
    config = RecognitionConfig(neighbours=4)
    found = {s.name: s for s in recognition_scores(queries, gallery, asked, labels, config=config, seen="x")}
    named = labels >= 0
    answers = [slow_answer(query, gallery[torch.from_numpy(named)], labels[named], config) for query in queries]
    known = [label in set(labels[named].tolist()) for label in asked.tolist()]
    right = [fine and answer == label for fine, (answer, _), label in zip(known, answers, asked.tolist(), strict=True)]
    sure = [confidence for _, confidence in answers]
    assert 0 < sum(right) < sum(known) < 60
    assert found["GAP"].value == pytest.approx(slow_gap(sure, right, known))
    some = np.flatnonzero(known).tolist()
    assert found["GAP_without_distractors"].value == pytest.approx(
        slow_gap([sure[q] for q in some], [right[q] for q in some], [True] * len(some))
    )
    assert found["accuracy"].value == pytest.approx(sum(right) / sum(known))
    assert f"{60 - sum(known)} distractors" in found["GAP"].protocol
    assert found["GAP"].value < found["GAP_without_distractors"].value < found["accuracy"].value
    low, high = found["GAP"].interval
    assert low < found["GAP"].value < high


def test_distractors_alone_are_refused():
    with pytest.raises(DataError, match="every query is a distractor"):
        recognition_scores(torch.ones(2, 2), torch.ones(2, 2), np.asarray([-1, 7]), np.asarray([0, 1]), config=RecognitionConfig(),
                           seen="x")  # fmt: skip


def test_a_perfect_backbone_scores_one():
    labels = np.arange(30)
    queries = torch.cat([torch.eye(30), torch.full((10, 30), 0.1)])
    asked = np.concatenate([labels, np.full(10, -1)])
    found = recognition_scores(queries, torch.eye(30), asked, labels, config=RecognitionConfig(), seen="x")
    assert [score.value for score in found] == [1, 1, 1]


def test_a_constant_backbone_scores_chance():
    """By hand: one answer, equally sure, to every query, right for h of 10, 8 of them with one: h/10 of h/8."""
    asked = np.asarray([0, 0, 1, 1, 1, 2, 2, 2, -1, -1])
    labels = np.asarray([0, 1, 2])
    found = {s.name: s.value for s in recognition_scores(torch.ones(10, 4), torch.ones(3, 4), asked, labels,
                                                         config=RecognitionConfig(neighbours=1), seen="x")}  # fmt: skip
    hits = found["accuracy"] * 8
    assert round(hits) in {2, 3}  # whichever of the three the shuffle puts first
    assert found["GAP"] == pytest.approx(hits / 10 * hits / 8)
    assert found["GAP_without_distractors"] == pytest.approx((hits / 8) ** 2)
