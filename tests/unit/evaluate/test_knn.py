"""k-NN against scikit-learn and by hand; effective rank against its definition and its bounds."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dinoforge.evaluate.health import effective_rank
from dinoforge.evaluate.knn import KnnConfig, knn_classify, knn_scores, nearest_in


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(count, seed):
    labels = torch.arange(count) % 4
    return made(4, 12, seed=9)[labels] + made(count, 12, seed=seed) * 1.5, labels


@pytest.mark.parametrize("neighbours", [1, 5, 20])
def test_equals_scikit_learn(neighbours):
    bank, labels = clusters(200, 0)
    queries, _ = clusters(60, 1)
    config = KnnConfig(neighbours=neighbours)
    theirs = KNeighborsClassifier(
        n_neighbors=neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / config.temperature)
    ).fit(bank.numpy(), labels.numpy())
    got = knn_classify(queries, bank, labels, classes=4, config=config)
    assert got.tolist() == theirs.predict(queries.numpy()).tolist()


def test_rows_at_once_changes_nothing():
    bank, labels = clusters(50, 0)
    queries, _ = clusters(17, 1)
    want = knn_classify(queries, bank, labels, classes=4, config=KnnConfig())
    for rows in (1, 5, 100):
        assert torch.equal(knn_classify(queries, bank, labels, classes=4, config=KnnConfig(rows_at_once=rows)), want)


@pytest.mark.parametrize("part", [1, 7, 64, 1000])
def test_of_equally_near_neighbours_the_first_ones_vote_however_the_bank_is_cut(part, monkeypatch):
    """Against a stable sort of all cosines; every feature is in the bank many times."""
    monkeypatch.setattr("dinoforge.evaluate.knn._BANK_ROWS", part)
    bank, queries = torch.eye(4)[torch.arange(90) * 7 % 4], torch.eye(4) + 0.5
    similarity, rows = nearest_in(queries, bank, count=30, rows_at_once=3)
    cosines = torch.cosine_similarity(queries[:, None], bank[None], dim=-1)
    want, order = cosines.round(decimals=4).sort(dim=-1, descending=True, stable=True)
    assert torch.equal(rows, order[:, :30])
    torch.testing.assert_close(similarity, want[:, :30], rtol=0, atol=1e-4)


def test_a_near_neighbour_outvotes_two_far_ones():
    """By hand: cosines 1, 0.8 and 0.8 weigh exp(14.29) against 2 exp(11.43); at temperature 10 the two win."""
    bank = torch.tensor([[1.0, 0], [0.8, 0.6], [0.8, -0.6]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0]])
    assert knn_classify(query, bank, labels, classes=2, config=KnnConfig(neighbours=3)).item() == 0
    far = KnnConfig(neighbours=3, temperature=10)
    assert knn_classify(query, bank, labels, classes=2, config=far).item() == 1
    cold = KnnConfig(neighbours=3, temperature=1e-4)
    assert knn_classify(query, bank, labels, classes=2, config=cold).item() == 0


def test_a_perfect_backbone_scores_one_and_a_constant_one_chance():
    labels = torch.arange(40) % 4
    perfect = torch.eye(4)[labels]
    (score,) = knn_scores(perfect, labels, perfect, labels, config=KnnConfig(neighbours=5))
    assert score.value == 1.0
    assert score.n == 40
    (score,) = knn_scores(torch.ones(40, 3), labels, torch.ones(40, 3), labels, config=KnnConfig(neighbours=40))
    assert score.value == 0.25


def test_effective_rank_is_exp_of_the_entropy_of_singular_values():
    x = made(30, 6).double()
    values = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)
    share = values / values.sum()
    want = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(x.float()) == pytest.approx(want, rel=1e-4)
    assert effective_rank(x[:5].float()) < 5  # fewer images than channels


def test_effective_rank_at_its_ends():
    assert effective_rank(torch.ones(10, 4)) == 0.0
    line = torch.arange(10.0).unsqueeze(1) * torch.tensor([[1.0, 2, 3]])
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-3)
    corners = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(corners) == pytest.approx(8.0, rel=1e-6)
    assert effective_rank(corners + 100) == pytest.approx(8.0, rel=1e-3)
