"""Measures of depth against slow definitions, other libraries, laws, and hands."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_percentage_error, mean_squared_error, root_mean_squared_error

from dinoforge.base.errors import DataError
from dinoforge.evaluate.depth_metrics import ALIGNED, MEASURES, aligned_errors, errors, inside


def drawn(seed, shape=(9, 7), holes=0.3):
    rng = np.random.default_rng(seed)
    predicted, truth = (np.exp(rng.normal(0, 1, shape)).astype(np.float32) for _ in range(2))
    valid = rng.random(shape) >= holes
    valid[0, 0] = True
    return predicted, truth, valid


def slow(predicted, truth, valid):
    pairs = [(float(p), float(t)) for p, t, v in zip(predicted.flat, truth.flat, valid.flat, strict=True) if v]
    n = len(pairs)
    logs = [math.log(p) - math.log(t) for p, t in pairs]
    found = {
        "rmse": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "abs_rel": sum(abs(p - t) / t for p, t in pairs) / n,
        "sq_rel": sum((p - t) ** 2 / t for p, t in pairs) / n,
        "rmse_log": math.sqrt(sum(one**2 for one in logs) / n),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / n,
        "silog": math.sqrt(max(sum(one**2 for one in logs) / n - (sum(logs) / n) ** 2, 0)),
    }
    for k in (1, 2, 3):
        found[f"delta{k}"] = sum(max(p / t, t / p) < 1.25**k for p, t in pairs) / n
    return found


@pytest.mark.parametrize("seed", range(6))
def test_errors_are_their_definitions(seed):
    maps = drawn(seed)
    assert errors(*maps) == pytest.approx(slow(*maps), rel=1e-9)
    assert errors(*maps).keys() == MEASURES.keys()


def test_errors_equal_scikit_learn():
    predicted, truth, valid = drawn(7)
    p, t = predicted[valid].astype(float), truth[valid].astype(float)
    found = errors(predicted, truth, valid)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(t, p))
    assert found["abs_rel"] == pytest.approx(mean_absolute_percentage_error(t, p))
    assert found["sq_rel"] == pytest.approx(mean_squared_error(t, p, sample_weight=1 / t) * np.mean(1 / t))
    assert found["rmse_log"] == pytest.approx(root_mean_squared_error(np.log(t), np.log(p)))


def test_by_hand():
    found = errors(np.array([[2.0, 1.0, 8.0]]), np.array([[1.0, 1.0, 4.0]]), np.array([[True, True, True]]))
    assert found == pytest.approx({
        "rmse": math.sqrt(17 / 3), "abs_rel": 2 / 3, "sq_rel": 5 / 3, "rmse_log": math.log(2) * math.sqrt(2 / 3),
        "log10": math.log10(2) * 2 / 3, "silog": math.log(2) * math.sqrt(2) / 3, "delta1": 1 / 3, "delta2": 1 / 3,
        "delta3": 1 / 3,
    })  # fmt: skip


def test_a_ratio_of_exactly_125_hundredths_is_not_within_it():
    one = np.ones((1, 1), bool)
    for predicted, truth in ((1.25, 1.0), (1.0, 1.25)):
        found = errors(np.array([[predicted]]), np.array([[truth]]), one)
        assert (found["delta1"], found["delta2"]) == (0, 1)


def test_what_is_not_valid_does_not_count():
    predicted, truth, valid = drawn(3)
    for odd in (np.nan, np.inf, 0.0, -1.0):
        spoilt = [np.where(valid, one, odd) for one in (predicted, truth)]
        assert errors(*spoilt, valid) == errors(predicted, truth, valid)
        assert aligned_errors(*spoilt, valid) == aligned_errors(predicted, truth, valid)


def test_perfect_depth_and_one_pixel():
    _, truth, valid = drawn(4)
    one = np.zeros_like(valid)
    one[2, 3] = True
    for where in (valid, one):
        for found, about in ((errors(truth, truth, where), MEASURES), (aligned_errors(truth, truth, where), ALIGNED)):
            assert found.keys() == about.keys()
            assert found == pytest.approx({name: float(about[name].higher_is_better) for name in about}, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_aligned_errors_are_those_of_a_linear_regression(seed):
    predicted, truth, valid = drawn(seed)
    p, t = predicted[valid].astype(float), truth[valid].astype(float)
    fitted = LinearRegression().fit(p[:, None], t).predict(p[:, None])
    found = aligned_errors(predicted, truth, valid)
    assert found["abs_rel_aligned"] == pytest.approx(np.mean(np.abs(fitted - t) / t), rel=1e-6)
    for k in (1, 2, 3):
        within = [f > 0 and max(f / o, o / f) < 1.25**k for f, o in zip(fitted, t, strict=True)]
        assert found[f"delta{k}_aligned"] == pytest.approx(np.mean(within))
    assert found["silog"] == pytest.approx(slow(predicted, truth, valid)["silog"], rel=1e-6)


def test_scale_and_shift_do_not_count_when_aligned():
    _, truth, valid = drawn(5)
    found = aligned_errors(0.3 * truth + 2, truth, valid)
    assert found["abs_rel_aligned"] == pytest.approx(0, abs=1e-5)
    assert found["delta1_aligned"] == 1
    assert found["silog"] > 0.1
    assert aligned_errors(5 * truth, truth, valid)["silog"] == pytest.approx(0, abs=1e-6)


def test_an_aligned_constant_is_the_mean():
    _, truth, valid = drawn(6)
    mean = truth[valid].astype(float).mean()
    found = aligned_errors(np.full_like(truth, 3.3), truth, valid)
    assert found["abs_rel_aligned"] == pytest.approx(np.mean(np.abs(mean - truth[valid]) / truth[valid]), rel=1e-6)


def test_a_fit_that_becomes_negative_is_within_no_ratio():
    predicted = np.array([[1.0, 2.0, 3.0, 4.0]])
    truth = np.array([[0.1, 0.1, 0.1, 9.0]])
    fitted = LinearRegression().fit(predicted.T, truth[0]).predict(predicted.T)
    assert fitted.min() < 0
    found = aligned_errors(predicted, truth, np.ones((1, 4), bool))
    assert fitted == pytest.approx([-1.68, 0.99, 3.66, 6.33])  # by hand; only 9 / 6.33 = 1.42 is within 1.25^2 = 1.56
    assert [found[f"delta{k}_aligned"] for k in (1, 2, 3)] == [0, 0.25, 0.25]


def test_crops_are_the_published_ones():
    eigen = inside("eigen", 480, 640, name="x")
    assert (eigen.sum(), eigen[45, 41], eigen[470, 600]) == (426 * 560, True, True)
    assert not any(line.any() for line in (eigen[44], eigen[471], eigen[:, 40], eigen[:, 601]))
    garg = inside("garg", 375, 1242, name="x")
    assert (garg[153, 44], garg[370, 1196], garg.sum()) == (True, True, (371 - 153) * (1197 - 44))
    small = inside("garg", 370, 1224, name="x")
    assert (small[151, 43], small[365, 1179], small.sum()) == (True, True, 215 * 1137)
    assert inside("none", 3, 5, name="x").all()


@pytest.mark.parametrize(("crop", "height", "width"), [("eigen", 480, 641), ("eigen", 375, 1242), ("garg", 480, 640),
                                                       ("garg", 1242, 375), ("eigen", 640, 480)])  # fmt: skip
def test_a_crop_for_another_size_is_one_line(crop, height, width):
    with pytest.raises(DataError, match=rf"depth.crop={crop} .* a.png has {width}x{height}") as error:
        inside(crop, height, width, name="a.png")
    assert len(str(error.value).splitlines()) == 1
