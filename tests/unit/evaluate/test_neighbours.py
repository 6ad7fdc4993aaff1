"""The vote for several numbers of neighbours, and of a few images a class: against slow loops, laws and hands."""

import math

import numpy as np
import pytest
import torch

import dinoforge.evaluate.knn
from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.fewshot import FewshotConfig, chosen
from dinoforge.evaluate.knn import KnnConfig, knn_classify, nearest_in
from dinoforge.evaluate.neighbours import VoteConfig, best, vote_ranks
from dinoforge.evaluate.table import EVALUATIONS
from given import GivenEyes, Made

KNN, FEWSHOT = EVALUATIONS["knn"].measure, EVALUATIONS["fewshot"].measure


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(count, seed, classes=7, noise=1.5):
    labels = torch.arange(count) % classes
    return made(classes, 12, seed=9)[labels] + made(count, 12, seed=seed) * noise, labels


def sides(known, asked):
    return Sides(*(Made(labels.numpy(), name, image=x) for (x, labels), name in ((known, "train"), (asked, "test"))))


def slow_vote(query, bank, labels, *, classes, count, largest, temperature):
    """As the released evaluation: one softmax over the largest number of neighbours, of which the first are summed by class."""
    cosine = [float(torch.cosine_similarity(query.double(), row.double(), dim=0)) for row in bank]
    near = sorted(range(len(bank)), key=lambda row: -cosine[row])[:largest]
    weights = [math.exp(cosine[row] / temperature) for row in near]
    total, votes = sum(weights), [0.0] * classes
    for row, weight in list(zip(near, weights, strict=True))[:count]:
        votes[int(labels[row])] += weight / total
    return votes


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_equal_their_definition(temperature):
    known, (queries, own) = table(60, 0), table(20, 1)
    counts, config = (1, 5, 30), VoteConfig(temperature=temperature, rows_at_once=6)
    found = vote_ranks(known, (queries, own), classes=7, counts=counts, config=config)
    for place, count in enumerate(counts):
        for row, query in enumerate(queries):
            votes = slow_vote(query, *known, classes=7, count=count, largest=30, temperature=temperature)
            want = sorted(range(7), key=lambda c: (-votes[c], c)).index(int(own[row]))
            assert found[place, row] == want


def test_parts_of_the_bank_change_nothing(monkeypatch):
    (bank, _), (queries, _) = table(50, 0), table(11, 1)
    want = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=-1).sort(1, descending=True)
    for rows, at_once in ((1, 4), (7, 3), (49, 11), (50, 1), (1000, 100)):
        monkeypatch.setattr(dinoforge.evaluate.knn, "_BANK_ROWS", rows)
        similarity, index = nearest_in(queries, bank, count=8, rows_at_once=at_once)
        assert torch.equal(index, want.indices[:, :8])
        torch.testing.assert_close(similarity, want.values[:, :8])
    assert nearest_in(queries[:1], bank, count=80, rows_at_once=4)[1].shape == (1, 50)


def test_one_count_is_the_vote_of_a_run():
    known, (queries, own) = table(80, 0), table(30, 1)
    answers = knn_classify(queries, *known, classes=7, config=KnnConfig(neighbours=9))
    found = vote_ranks(known, (queries, own), classes=7, counts=[9], config=VoteConfig())[0]
    assert (found == 0).tolist() == (answers == own).tolist()


def test_scores_of_the_vote():
    known, asked = table(210, 0), table(70, 1)
    scores = {score.name: score for score in KNN(GivenEyes(), sides(known, asked), VoteConfig())}
    counts = (10, 20, 100, 200)
    each = {count: scores[f"accuracy_k{count}"].value for count in counts}
    found = vote_ranks(known, asked, classes=7, counts=counts, config=VoteConfig())
    assert list(each.values()) == pytest.approx([(one == 0).double().mean().item() for one in found])
    top = max(each, key=each.get)
    assert next(iter(scores)) == "accuracy"
    assert scores["accuracy"].value == each[top]
    assert scores["top5"].value == scores[f"top5_k{top}"].value == (found[counts.index(top)] < 5).double().mean().item()
    assert scores["accuracy"].protocol.startswith(
        f"k={top} (best on the test images of 10, 20, 100, 200), temperature 0.07"
    )
    assert len({*each.values()}) > 1


def test_of_equally_good_counts_the_first():
    assert best(torch.tensor([[[0, 1, 3], [0, 2, 0], [0, 0, 1]]])) == 1
    assert best(torch.tensor([[[0, 1], [0, 0]], [[0, 0], [2, 3]], [[0, 2], [1, 1]]])) == 0  # four right of six, and two


@pytest.mark.parametrize("given", [20, "20", [20], "[20]"])
def test_a_number_of_neighbours_or_a_list(given):
    config = with_settings(VoteConfig(), {"neighbours": given})
    assert config.neighbours == (20,)
    scores = KNN(GivenEyes(), sides(table(40, 0), table(14, 1)), config)
    assert [score.name for score in scores] == ["accuracy", "top5", "mean_class_accuracy"]
    assert scores[0].protocol == "k=20, temperature 0.07, cosine, 40 train rows"


def test_the_default_counts_are_cut_to_the_images_and_others_refused():
    few = sides(table(42, 0), table(14, 1))
    names = [score.name for score in KNN(GivenEyes(), few, VoteConfig())]
    assert [name for name in names if name.startswith("accuracy_")] == ["accuracy_k10", "accuracy_k20", "accuracy_k42"]
    with pytest.raises(ConfigError, match=r"^knn.neighbours must be at most 42, the images of train; got \[5, 43\]\.$"):
        KNN(GivenEyes(), few, VoteConfig(neighbours=[43, 5]))
    for wrong in ([], 0, [3, -1]):
        with pytest.raises(ConfigError, match="whole number above 0"):
            VoteConfig.build({"neighbours": wrong})


def test_perfect_features_are_right_and_constant_ones_are_chance():
    labels = torch.arange(70) % 7
    for name in ("knn", "fewshot"):
        config = {"knn": VoteConfig, "fewshot": FewshotConfig}[name]()
        for x, want in ((torch.eye(7)[labels], 1.0), (torch.ones(70, 3), 1 / 7)):
            for score in EVALUATIONS[name].measure(GivenEyes(), sides((x, labels), (x, labels)), config):
                if name == "fewshot" or "top5" not in score.name:
                    assert score.value == pytest.approx(want if "top5" not in score.name else max(want, 5 / 7))


def test_a_few_shots_are_drawn_class_by_class():
    labels = np.asarray([0, 1, 2] * 5 + [2] * 4)
    first = chosen(labels, 3, seed=0, number=0)
    assert np.bincount(labels[first]).tolist() == [3, 3, 3]
    assert len({*first}) == 9
    assert np.array_equal(first, chosen(labels, 3, seed=0, number=0))
    assert {*chosen(labels, 2, seed=0, number=0)} < {*first}
    others = [chosen(labels, 3, seed=seed, number=number) for seed, number in ((0, 1), (1, 0))]
    assert all({*other} != {*first} for other in others)
    drawn = np.bincount(
        np.concatenate([chosen(labels, 3, seed=0, number=number) for number in range(500)]), minlength=19
    )
    for label, share in ((0, 3 / 5), (2, 3 / 9)):  # each image as often as the others of its class
        assert drawn[labels == label] / 500 == pytest.approx(share, abs=0.08)


def test_few_shot_scores_are_means_over_tries():
    """Equal to the vote of each draw alone."""
    known, asked = table(84, 0), table(70, 1)
    config = FewshotConfig(shots=(4,), tries=3, neighbours=[2, 9], seed=5)
    scores = {score.name: score for score in FEWSHOT(GivenEyes(), sides(known, asked), config)}
    assert list(scores) == ["accuracy_shots4", "top5_shots4"]
    each = {}
    for count in (2, 4):
        for number in range(3):
            rows = chosen(known[1].numpy(), 4, seed=5, number=number)
            bank, labels = known[0][rows], known[1][rows]
            answers = knn_classify(asked[0], bank, labels, classes=7, config=KnnConfig(neighbours=count))
            each.setdefault(count, []).append((answers == asked[1]).double().mean().item())
    top = max(each, key=lambda count: np.mean(each[count]))
    score = scores["accuracy_shots4"]
    assert score.value == pytest.approx(np.mean(each[top]))
    assert score.spread == pytest.approx(np.std(each[top], ddof=1))
    assert score.spread > 0
    assert score.protocol.startswith(f"4 images a class, 3 tries, k={top} (best on the test images of 2, 4)")
    assert FEWSHOT(GivenEyes(), sides(known, asked), FewshotConfig(shots=4, tries=1))[0].spread is None


def test_more_shots_than_a_class_has():
    labels = torch.tensor([0] * 12 + [1] * 12 + [2] * 6)
    few = sides((made(30, 4), labels), (made(6, 4, seed=1), labels[::5]))
    names = [score.name for score in FEWSHOT(GivenEyes(), few, FewshotConfig())]
    assert names == ["accuracy_shots1", "accuracy_shots5"]
    with pytest.raises(
        DataError, match=r"^fewshot.shots must be at most 6, the images of class 2 of train; got \[1, 8\]\.$"
    ):
        FEWSHOT(GivenEyes(), few, FewshotConfig(shots=(8, 1)))


def test_classes_that_do_not_fit():
    with pytest.raises(DataError, match="test has classes that train lacks: 6"):
        KNN(GivenEyes(), sides(table(30, 0, classes=6), table(30, 1)), VoteConfig())
