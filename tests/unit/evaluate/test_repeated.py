"""Several seeds: means and spreads by hand, and nothing repeated where nothing is drawn."""

import math
import statistics

import pytest
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.repeated import measured, seeded
from dinoforge.evaluate.score import Score
from dinoforge.evaluate.table import EVALUATIONS
from given import GivenEyes, Made

SIDES = Sides(Made([0, 1], "known"), Made([0, 1], "asked"))
VALUES = {4: 0.5, 5: 0.25, 6: 0.9}


class Drawn(Config):
    seed: int = Field(default=0, ge=0)


class Still(Config):
    neighbours: int = 10


def task(config, *, alike=True, partly=False):
    asked = []

    def measure(eyes, sides, own):
        asked.append(own)
        value = VALUES[getattr(own, "seed", 4)]
        protocol = "always so" if alike else f"rate {value}"
        within = None if partly and value > 0.8 else (value - 0.125, value + 0.0625)
        return [Score("made", "accuracy", value, "fraction", True, 7, protocol, interval=within),
                Score("made", "opposite", 1 - value, "fraction", False, 9, protocol)]  # fmt: skip

    return Evaluation(config, "classes", measure), asked


def test_mean_and_spread_by_hand():
    made, asked = task(Drawn)
    accuracy, opposite = measured(made, GivenEyes(), SIDES, Drawn(seed=4), seeds=3)
    assert [config.seed for config in asked] == [4, 5, 6]
    assert accuracy.value == pytest.approx(1.65 / 3)
    assert accuracy.spread == pytest.approx((((0.05) ** 2 + 0.3**2 + 0.35**2) / 2) ** 0.5)
    assert accuracy.interval == pytest.approx((1.65 / 3 - 0.125, 1.65 / 3 + 0.0625))
    assert accuracy.protocol == "mean of seeds 4 to 6: always so"
    assert (opposite.value, opposite.interval) == (pytest.approx(1.35 / 3), None)
    assert opposite.spread == pytest.approx(statistics.stdev([0.5, 0.75, 0.1]))
    assert (opposite.n, opposite.higher_is_better) == (9, False)


def test_where_seeds_choose_differently_it_says_whose_choice_it_names():
    made, _ = task(Drawn, alike=False)
    found = measured(made, GivenEyes(), SIDES, Drawn(seed=4), seeds=2)
    assert found[0].protocol == "mean of seeds 4 to 5; of seed 4: rate 0.5"


def test_an_interval_that_a_seed_lacks_is_none():
    made, _ = task(Drawn, partly=True)
    assert measured(made, GivenEyes(), SIDES, Drawn(seed=4), seeds=3)[0].interval is None


@pytest.mark.parametrize(("config", "seeds"), [(Still(), 3), (Drawn(seed=4), 1)])
def test_once_is_enough_where_nothing_is_drawn_or_one_seed_is_asked(config, seeds):
    made, asked = task(type(config))
    found = measured(made, GivenEyes(), SIDES, config, seeds=seeds)
    assert len(asked) == 1
    assert (found[0].value, found[0].spread, found[0].protocol) == (0.5, None, "always so")


@pytest.mark.parametrize(
    ("name", "settings", "drawn"),
    [
        ("logistic", {}, True), ("logistic", {"c": [1.0]}, False), ("logistic", {"c": [1.0, 2.0]}, True),
        ("video", {}, True), ("video", {"head": "knn"}, False), ("knn", {}, False), ("linear", {}, True),
    ],
)  # fmt: skip
def test_where_something_is_drawn(name, settings, drawn):
    """Of one C no images are held out, and neighbours vote alike whatever the seed."""
    evaluation = EVALUATIONS[name]
    assert seeded(evaluation, evaluation.config.build(settings)) == drawn


@pytest.mark.parametrize("values", [(0.5, math.nan), (math.inf, math.nan), (math.inf, -math.inf), (math.inf, 1.0)])
def test_scores_that_are_not_finite_have_a_mean_that_is_no_number_and_no_spread(values):
    found = [Score("made", "ratio", value, "ratio", False, 3, "so", interval=(0.0, value)) for value in values]
    made = Evaluation(Drawn, "classes", lambda eyes, sides, own: [found[own.seed]])
    (score,) = measured(made, GivenEyes(), SIDES, Drawn(), seeds=2)
    assert math.isnan(score.value)
    assert (score.spread, score.interval) == (None, None)
