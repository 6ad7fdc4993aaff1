"""The order of images: permutations, and rows by weight."""

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.order import Order, SamplingConfig, permute, weights_of


@pytest.mark.parametrize("images", [1, 2, 3, 5, 16, 17, 1000])
def test_every_pass_is_a_permutation(images):
    for number in range(3):
        found = permute(np.arange(images), images=images, seed=number)
        assert sorted(found.tolist()) == list(range(images))


def test_passes_differ_and_hold_every_image_once():
    rows, passes = Order(100, seed=3).at(np.arange(300))
    assert passes.tolist() == [0] * 100 + [1] * 100 + [2] * 100
    assert all(sorted(part) == list(range(100)) for part in rows.reshape(3, 100).tolist())
    assert (rows[:100] != rows[100:200]).mean() > 0.9
    some, _ = Order(100, seed=3).at(np.asarray([150, 7]))
    assert some.tolist() == [rows[150], rows[7]]


def test_order_looks_random():
    """Over many seeds each image comes first about equally often: chi squared of 16 bins, far below its 1e-6 quantile."""
    first = np.asarray([permute(np.zeros(1, int), images=16, seed=seed)[0] for seed in range(4000)])
    counts = np.bincount(first, minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 60


def test_a_thousand_million_images_take_no_table():
    """Positions of a shuffle of 1e9 rows: within range, all different, another order next pass, begun anywhere."""
    order = Order(10**9, seed=0)
    rows, passes = order.at(np.arange(10**9 - 5000, 10**9 + 5000))
    assert passes.tolist() == [0] * 5000 + [1] * 5000
    assert rows.min() >= 0
    assert rows.max() < 10**9
    assert len(set(rows[:5000].tolist())) == 5000
    assert abs(rows.mean() / 10**9 - 0.5) < 0.02


@pytest.mark.parametrize("images", [1, 2, 7, 1000])
def test_rows_by_weight_come_as_often_as_they_should(images):
    """In every pass each row comes its expected number of times, rounded up or down; no two draws of a row are the same."""
    rng = np.random.default_rng(images)
    weights = rng.random(images) * (rng.random(images) > 0.3)
    weights[0] = 1
    rows, draws = Order(images, seed=5, weights=weights).at(np.arange(6 * images))
    assert len(set(zip(rows.tolist(), draws.tolist(), strict=True))) == 6 * images
    expected = weights / weights.sum() * images
    for turn in range(6):
        seen = np.bincount(rows[turn * images : (turn + 1) * images], minlength=images)
        assert (seen >= np.floor(expected - 1e-9)).all()
        assert (seen <= np.ceil(expected + 1e-9)).all()


def test_weights_hold_on_average_and_start_anywhere():
    """Over 400 passes the share of each of five rows is its weight's, to 2 %; any position alone gives the same row."""
    weights = np.asarray([1.0, 2.0, 0.0, 4.0, 0.5])
    order = Order(5, seed=1, weights=weights)
    rows, draws = order.at(np.arange(2000))
    assert np.abs(np.bincount(rows, minlength=5) / 2000 - weights / 7.5).max() < 0.02
    for position in (0, 3, 777, 1999):
        alone = order.at(np.asarray([position]))
        assert (alone[0][0], alone[1][0]) == (rows[position], draws[position])


def test_a_pass_by_weight_is_shuffled():
    rows, _ = Order(1000, seed=0, weights=np.ones(1000)).at(np.arange(1000))
    assert sorted(rows.tolist()) == list(range(1000))
    assert abs(np.corrcoef(rows, np.arange(1000))[0, 1]) < 0.15


def test_balancing_by_hand():
    columns = {
        "id": np.arange(6).astype(str),
        "label": np.asarray([0, 0, 0, 0, 1, 2]),
        "w": np.asarray([1, 1, 1, 1, 3, 1]),
    }
    assert weights_of(columns, SamplingConfig()) is None
    assert weights_of(columns, SamplingConfig(balance="label")).tolist() == [0.25] * 4 + [1, 1]
    assert weights_of(columns, SamplingConfig(balance="label", balance_power=0.5)).tolist() == [0.5] * 4 + [1, 1]
    assert weights_of(columns, SamplingConfig(balance="label", weight="w")).tolist() == [0.25] * 4 + [3, 1]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.0, 0.0], "No image has a weight above 0."),
        ([1.0, -1.0], "row 1 has -1.0"),
        ([np.nan, 1.0], "row 0 has nan"),
    ],
)
def test_weights_that_are_none(weights, said):
    with pytest.raises(DataError, match=said):
        Order(2, seed=0, weights=np.asarray(weights))


def test_columns_that_are_not_there_or_hold_texts():
    columns = {"id": np.asarray(["a", "b"]), "label_name": np.asarray(["x", "y"])}
    with pytest.raises(ConfigError, match=r"data.sampling.balance 'label_nam'. Did you mean 'label_name'"):
        weights_of(columns, SamplingConfig(balance="label_nam"))
    with pytest.raises(DataError, match="takes a column of numbers; it holds texts"):
        weights_of(columns, SamplingConfig(weight="label_name"))
    assert weights_of(columns, SamplingConfig(balance="label_name")).tolist() == [1, 1]
