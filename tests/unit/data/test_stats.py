"""Statistics against NumPy over all pixels at once, and the settings that follow from them."""

import shlex

import numpy as np
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken, Picture
from dinoforge.data.sources.source import Source
from dinoforge.data.stats import Levels, Moments, StatsConfig, measured
from dinoforge.verbs.stats import stats


class Given(Source):
    """Pictures that are there already."""

    def __init__(self, pictures):
        self.address, self.given = "given", pictures
        self.columns = {"id": np.asarray([str(number) for number in range(len(pictures))])}

    def encoded(self, row):
        raise Broken("no bytes")

    def picture(self, row):
        if self.given[row] is None:
            raise Broken("gone")
        if isinstance(self.given[row], Exception):
            raise self.given[row]
        return Picture.of(self.given[row])


def pictures(kind, channels, count=7, high=200):
    rng = np.random.default_rng(1)
    sizes = [tuple(rng.integers(3, 30, 2)) for _ in range(count)]
    return [(rng.random((*size, channels)) ** 2 * high + np.arange(channels) * 3).astype(kind) for size in sizes]


def found(given, **settings):
    return measured(Given(given), StatsConfig.build(settings), on_broken=lambda *_: None)


def pixels(given):
    return np.concatenate([picture.reshape(-1, picture.shape[2]) for picture in given]).astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "high", "range"),
    [(np.uint8, 200, None), (np.uint16, 60_000, None), (np.uint16, 4_000, [20, 3000]), (np.float32, 9, [-1, 8]),
     (np.int32, 9_000, [[0, 5000], [10, 9000], [0, 8000]])],
)  # fmt: skip
def test_mean_and_deviation_are_numpys(kind, high, range):
    given = pictures(kind, 3, high=high)
    ends = range or [0, np.iinfo(kind).max]
    low, top = np.asarray(ends, dtype=float).T
    unit = ((pixels(given) - low) / (top - low)).clip(0, 1)
    got = found(given, **({"range": range} if range else {}))
    np.testing.assert_allclose(got.moments.mean, unit.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.moments.std, unit.std(0), rtol=1e-6)
    np.testing.assert_array_equal(got.lowest, pixels(given).min(0))
    np.testing.assert_array_equal(got.highest, pixels(given).max(0))
    assert got.sizes == [picture.shape[:2] for picture in given]


def test_moments_of_parts_are_those_of_the_whole_wherever_they_lie():
    """A mean of a hundred million with a deviation of one, which sums of squares in float64 would lose."""
    values = np.random.default_rng(0).standard_normal((9_000, 2)) + 1e8
    parts = [Moments.of(values[start:stop]) for start, stop in ((0, 1), (1, 4_000), (4_000, 9_000))]
    for order in ((0, 1, 2), (2, 0, 1)):
        first, second, third = (parts[number] for number in order)
        for joined in ((first + second) + third, first + (second + third)):
            assert joined.count == 9_000
            np.testing.assert_allclose(joined.mean - 1e8, (values - 1e8).mean(0), atol=1e-6)
            np.testing.assert_allclose(joined.std, (values - 1e8).std(0), rtol=1e-7)


def test_percentiles_of_whole_numbers_are_exact():
    given = pictures(np.uint16, 2, high=5_000)
    got, every = found(given), np.sort(pixels(given), axis=0)
    for percent in (0.5, 50, 99.5):
        want = every[int(np.ceil(percent / 100 * len(every))) - 1]
        np.testing.assert_array_equal(got.percentile(percent), want)


def test_levels_of_floats_are_near_and_in_order():
    values = np.concatenate(
        [[-np.inf, np.nan, np.inf, 0.0, -0.0], np.random.default_rng(0).standard_normal(5_000) * 1e3]
    )
    levels = Levels.of(values.astype(np.float32)[:, None])
    assert levels.counts.sum() == 5_002
    edges = levels.edges()
    inner = edges[np.isfinite(edges)]
    assert (np.diff(inner) >= 0).all()
    got = found([values[5:].astype(np.float32).reshape(50, 100, 1)])
    for percent in (0.5, 20, 99.5):
        want = np.percentile(values[5:], percent)
        assert abs(got.percentile(percent)[0] - want) <= abs(want) * 0.01


def test_a_range_is_proposed_where_the_type_does_not_give_one():
    assert found(pictures(np.uint8, 3)).range is None
    assert found(pictures(np.uint16, 3, high=60_000)).range is None  # uses its bits
    given = pictures(np.uint16, 2, count=60, high=4_000)
    given[0] = given[0].copy()
    given[0][0, 0] = 65_535  # one glaring pixel
    got = found(given)
    low, high = np.percentile(pixels(given), [0.5, 99.5], axis=0, method="inverted_cdf")
    assert got.range == tuple(zip(low, high, strict=True))
    unit = ((pixels(given) - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(got.moments.mean, unit.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.moments.std, unit.std(0), rtol=1e-6)
    flat = found([np.full((4, 4, 1), 0.25, np.float32)])
    assert flat.range == ((0.25, 1.25),)


def test_each_type_of_a_mixture_is_judged_by_itself():
    """A range for 16 bits makes 8 bits black, and one of both makes 16 bits white: pretrain scales each by its own highest."""
    eight, twelve = pictures(np.uint8, 3), pictures(np.uint16, 3, count=2, high=4_000)
    got = found([*eight, *twelve])
    unit = np.concatenate([pixels(eight) / 255, pixels(twelve) / 65_535])
    assert got.range is None
    assert got.mixed() == "uint8 and uint16 are mixed and no one range fits; give them apart."
    np.testing.assert_allclose(got.moments.mean, unit.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.moments.std, unit.std(0), rtol=1e-6)

    full = found([*eight, *pictures(np.uint16, 3, count=2, high=60_000)])
    assert (full.range, full.mixed()) == (None, None)  # each type serves

    aside = found([*eight, *pictures(np.float32, 3)])
    assert aside.range is None
    assert "Without one pretrain sets float32 aside" in aside.mixed()
    np.testing.assert_allclose(aside.moments.mean, (pixels(eight) / 255).mean(0), rtol=1e-6)

    heights = [*pictures(np.int16, 1, high=3_000), *pictures(np.float32, 1, high=3_000)]
    assert found(heights).range == pytest.approx(np.percentile(pixels(heights), [0.5, 99.5])[None], rel=0.02)
    assert "only if their numbers are of the same unit" in found(heights).mixed()


def test_what_is_no_number_counts_as_the_network_sees_it():
    """The lowest, in mean and deviation; not at all in extremes and percentiles."""
    got = found([np.asarray([[[np.nan], [1.0], [3.0], [np.inf]]], np.float32)], range=[1, 3])
    assert (got.lowest, got.highest) == (1.0, 3.0)
    assert got.moments.mean.tolist() == [0.5]


def test_channels_follow_most_images_and_the_rest_is_set_aside():
    grey, colours, bands = pictures(np.uint8, 1)[0], pictures(np.uint8, 3)[0], pictures(np.uint8, 5)[0]
    mixed = found([grey, grey, colours, bands, None])
    assert mixed.channels == 3
    assert mixed.types == {"uint8": 3}
    assert mixed.reasons == {"has 5 channels, the backbone takes 3": 1, "gone": 1}
    assert found([grey, grey]).channels == 1
    assert found([bands, bands, colours]).channels == 5
    assert found([bands, bands, colours], channels=3).types == {"uint8": 1}
    with pytest.raises(DataError, match="No image of given could be used"):
        found([bands], channels=3)
    with pytest.raises(ConfigError, match="range is for 2 channels, the images have 5"):
        found([bands], range=[[0, 1], [0, 2]])


def test_what_a_library_raises_costs_one_image():
    got = found([ValueError("out\nof luck"), *pictures(np.uint8, 3)])
    assert (got.reasons, got.types) == ({"cannot be read: ValueError: out of luck": 1}, {"uint8": 7})
    with pytest.raises(ConfigError, match="no such extra"):
        found([ConfigError("no such extra"), *pictures(np.uint8, 3)])


def test_the_verb_prints_what_pretrain_takes(tmp_path, capsys):
    from dinoforge.recipes.settle import settle

    rng = np.random.default_rng(0)
    for number in range(5):
        np.save(tmp_path / f"{number}.npy", (rng.random((6, 8, 4)) * [1, 10, 100, 0]).astype(np.float32))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "notes.md").write_text("no image")
    got = stats(data=str(tmp_path))
    assert (got.images, got.rejected, got.channels, got.types) == (5, 2, 4, {"float32": 5})
    assert got.height == {"min": 6, "median": 6, "max": 6}
    assert got.std[3] == 0
    assert got.settings in capsys.readouterr().err
    recipe = settle(dict(word.split("=", 1) for word in shlex.split(got.settings)) | {"data": "x"}).recipe
    assert recipe.backbone.channels == 4
    assert recipe.data.augment.colour.mean == pytest.approx(got.mean, abs=1e-4)
    assert recipe.data.augment.colour.std[3] == 1.0
    assert recipe.data.range == tuple(tuple(pair) for pair in got.range)
    again = stats(data=str(tmp_path), range=str(got.range))
    assert again.mean == pytest.approx(got.mean, rel=1e-9)


def test_the_verb_says_that_types_are_mixed(tmp_path, capsys):
    Image.fromarray(pictures(np.uint8, 3)[0]).save(tmp_path / "a.png")
    Image.fromarray(pictures(np.uint16, 1, high=4_000)[0][:, :, 0]).save(tmp_path / "b.png")
    got = stats(data=str(tmp_path))
    assert got.types == {"uint8": 1, "uint16": 1}
    assert "data.range" not in got.settings
    assert "uint8 and uint16 are mixed and no one range fits; give them apart." in capsys.readouterr().err
    stats(data=str(tmp_path), range="[0,4000]")
    assert "mixed" not in capsys.readouterr().err


def test_photos_need_no_more_than_mean_and_deviation(tmp_path):
    Image.fromarray(pictures(np.uint8, 3)[0]).save(tmp_path / "a.png")
    got = stats(data=str(tmp_path), images="1")
    assert [word.split("=")[0] for word in shlex.split(got.settings)] == [
        "data.augment.colour.mean", "data.augment.colour.std",
    ]  # fmt: skip
