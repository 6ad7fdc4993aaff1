"""Logistic regression: the minimum of scikit-learn, the path of penalties, and what it is shown."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.random import torch_generator
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.logistic import LOGISTIC, fitted
from dinoforge.evaluate.regression import Logistic, LogisticConfig, strengths
from given import GivenEyes, Made

FEW = LogisticConfig(c=[1e-3, 1e-1, 10, 1e3])


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(count, seed, classes=5, channels=8, offset=3.0):
    """Far from the middle and of unequal scales, as features before any norm may be."""
    labels = torch.arange(count) % classes
    x = made(classes, channels, seed=9)[labels] + made(count, channels, seed=seed) * 1.5
    return x * torch.linspace(0.2, 3, channels) + offset, labels


def theirs(x, labels, c):
    return LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(x.double().numpy(), labels.numpy())


def shares(found, x):
    return found.scores(x).softmax(-1).numpy()


def sides(known, asked):
    return Sides(*(Made(labels.numpy(), name, image=x) for (x, labels), name in ((known, "train"), (asked, "test"))))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("c", [1e-6, 1e-2, 1.0, 1e3])
def test_equals_scikit_learn(classes, c):
    x, labels = table(120, 0, classes)
    found = Logistic(x, labels, classes=classes, config=LogisticConfig(iterations=20_000))
    found.fit(c)
    want = theirs(x, labels, c)
    np.testing.assert_allclose(shares(found, x), want.predict_proba(x.double().numpy()), atol=1e-4)
    if classes > 2:  # of two classes they keep one vector, which is the difference of ours
        np.testing.assert_allclose(found.weight[:, :-1].numpy(), want.coef_, atol=1e-3 * max(1, abs(want.coef_).max()))


def test_gradient_is_that_of_torch():
    """Of C times the sum of cross-entropies, and half the square of the weights without the biases."""
    x, labels = table(30, 0)
    found = Logistic(x, labels, classes=5, config=LogisticConfig())
    flat = made(5, 9, seed=3).double()
    weight = flat.clone().requires_grad_()
    scores = (x - x.mean(0)).double() @ weight[:, :-1].T + weight[:, -1]
    loss = 0.7 * torch.nn.functional.cross_entropy(scores, labels, reduction="sum") + weight[:, :-1].square().sum() / 2
    loss.backward()
    got, slope = found._loss(flat.flatten().numpy(), 1 / (0.7 * 30))
    assert got * 0.7 * 30 == pytest.approx(loss.item())
    np.testing.assert_allclose(slope * 0.7 * 30, weight.grad.flatten().numpy(), rtol=1e-5)


def test_beginning_where_another_ended_changes_nothing():
    x, labels = table(100, 0)
    warm, cold = (Logistic(x, labels, classes=5, config=LogisticConfig()) for _ in range(2))
    for c in FEW.c:
        warm.fit(c)
    cold.fit(FEW.c[-1])
    np.testing.assert_allclose(shares(warm, x), shares(cold, x), atol=1e-4)


def test_the_penalty_is_chosen_on_a_held_out_tenth():
    """Of equally good ones the smallest C; then all images are learnt from."""
    x, labels = table(200, 0)
    found, c = fitted(x, labels, classes=5, config=FEW)
    order = torch.randperm(200, generator=torch_generator(0, "logistic holdout"))
    held, rest = order[:20], order[20:]
    right = [
        (theirs(x[rest], labels[rest], one).predict(x[held].double().numpy()) == labels[held].numpy()).sum()
        for one in FEW.c
    ]
    assert len({*right}) > 1
    assert c == FEW.c[int(np.argmax(right))]
    np.testing.assert_allclose(shares(found, x), theirs(x, labels, c).predict_proba(x.double().numpy()), atol=1e-4)


def test_the_penalty_may_be_chosen_by_the_mean_of_classes():
    """Where one class is rare, the smallest C is right most often: it answers the other one always, which no mean rewards."""
    x, labels = table(600, 5, classes=2)
    kept = (labels == 0) | (torch.arange(600) % 7 == 0)
    x, labels = x[kept], labels[kept]
    held, rest = torch.randperm(len(x), generator=torch_generator(0, "logistic holdout")).tensor_split([34])
    judges = {"accuracy": accuracy_score, "mean_class_accuracy": balanced_accuracy_score}
    chosen = []
    for select, judge in judges.items():
        config = LogisticConfig(c=[1e-6, 1e-2, 1e2], select=select)
        answers = [theirs(x[rest], labels[rest], c).predict(x[held].double().numpy()) for c in config.c]
        chosen.append(fitted(x, labels, classes=2, config=config)[1])
        assert chosen[-1] == config.c[int(np.argmax([judge(labels[held].numpy(), answer) for answer in answers]))]
    assert chosen == [1e-6, 1e2]
    (score, *_) = LOGISTIC.measure(GivenEyes(), sides((x, labels), (x, labels)), config)
    assert "(best of 3 by mean_class_accuracy on a tenth of the train rows)" in score.protocol


def test_a_choice_without_effect_is_refused():
    with pytest.raises(
        ConfigError, match=r"select=mean_class_accuracy has no effect: there is one c, 0\.5; give several"
    ):
        LogisticConfig.build({"c": [0.5], "select": "mean_class_accuracy"})
    several = Made(np.zeros(4), "train", image=made(4, 2))
    several.columns["labels"] = np.asarray(["a\nb", "a", "b", "a"])
    del several.columns["label"]
    with pytest.raises(ConfigError, match="has no effect on train, whose images show several classes"):
        LOGISTIC.measure(GivenEyes(), Sides(several, several), LogisticConfig(select="mean_class_accuracy"))


def test_of_equally_good_penalties_the_smallest_c():
    labels = torch.arange(100) % 4
    assert fitted(torch.eye(4)[labels] * 9, labels, classes=4, config=FEW)[1] == FEW.c[0]


def test_scores_are_scikit_learns():
    known, asked = table(150, 0), table(75, 1)
    (accuracy, per_class) = LOGISTIC.measure(GivenEyes(), sides(known, asked), LogisticConfig(c=[0.5]))
    want = theirs(*known, 0.5).score(asked[0].double().numpy(), asked[1].numpy())
    assert (accuracy.name, per_class.name) == ("accuracy", "mean_class_accuracy")
    assert [accuracy.value, per_class.value] == pytest.approx([want, want])  # as many of each class
    assert 1 / 5 < want < 1
    assert accuracy.protocol == "C=0.5, L-BFGS, short side 224, middle 224, 150 train rows"


def test_it_sees_the_middle_as_large_as_it_can_be():
    eyes = GivenEyes()
    (accuracy, *_) = LOGISTIC.measure(eyes, sides(table(60, 0), table(30, 1)), FEW)
    assert eyes.views == [(name, "image", "short side 224, middle 224") for name in ("train", "test")]
    assert "(best of 4 on a tenth of the train rows)" in accuracy.protocol


def test_the_penalties_of_the_released_evaluation():
    values = strengths(LogisticConfig())
    assert len(values) == 45
    assert np.log10(values) == pytest.approx(np.linspace(-6, 5, 45))
    assert LogisticConfig().iterations == 1000


def test_perfect_features_are_right_and_constant_ones_are_chance():
    labels = torch.arange(100) % 4
    for x, want in ((torch.eye(4)[labels], 1.0), (torch.ones(100, 3), 0.25)):
        for score in LOGISTIC.measure(GivenEyes(), sides((x, labels), (x, labels)), FEW):
            assert score.value == pytest.approx(want)


def test_classes_that_are_rare():
    """One image of a class, which may be held out; and one query."""
    x, labels = table(40, 0, classes=3)
    labels[labels == 2] = 1
    labels[7] = 2
    (accuracy, *_) = LOGISTIC.measure(GivenEyes(), sides((x, labels), (x[:1], labels[:1])), FEW)
    assert accuracy.n == 1
    assert accuracy.value in {0.0, 1.0}


def test_what_cannot_be():
    with pytest.raises(DataError, match="train has one class, 0"):
        LOGISTIC.measure(GivenEyes(), sides((made(9, 2), torch.zeros(9).long()), table(10, 0)), FEW)
    for wrong in ([], [0.0], [-1.0]):
        with pytest.raises(ConfigError, match=r"^c\b"):
            LogisticConfig.build({"c": wrong})


def test_penalties_are_written_with_commas_or_as_lists():
    for written in ("10,0.1", [10, 0.1], "[0.1, 10]"):
        assert with_settings(LogisticConfig(), {"c": written}).c == (0.1, 10)
    assert with_settings(LogisticConfig(), {"c": "0.5"}).c == (0.5,)
    with pytest.raises(ConfigError, match="c"):
        with_settings(LogisticConfig(), {"c": "0.1,-1"})
