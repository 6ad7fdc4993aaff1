"""Crops: picture and map stay together, whatever is drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoforge.base.errors import ConfigError
from dinoforge.evaluate.dense.cut import CropsConfig, Cut, draw_crop, draw_cut, resized_to
from dinoforge.evaluate.dense.distort import distorted
from dinoforge.evaluate.dense.truth import Pair

FILL = np.asarray([7.0, 7.0, 7.0])


def ramp(height, width):
    """A picture whose red says the row and whose green the column, and the same as maps of whole numbers."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 / max(height - 1, 1), columns * 255 / max(width - 1, 1), 0 * rows], -1)
    return pixels.round().astype(np.uint8), rows, columns


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(20, 90), st.integers(20, 90), st.integers(8, 60), st.booleans())
def test_picture_and_map_show_the_same_place(seed, height, width, side, mirrored):
    """The map's numbers are rows and columns of the original, the picture's colours tell them too, to within a step."""
    rng = np.random.default_rng(seed)
    pixels, rows, columns = ramp(height, width)
    size = resized_to((height, width), float(rng.integers(10, 100)))
    corner = tuple(int(rng.integers(0, max(length - side, 0) + 1)) for length in size)
    cut = Cut(size, (side, side), corner, mirrored)
    picture = cut.picture(pixels, FILL).numpy().astype(float)
    down, across = cut.truth(rows, -1), cut.truth(columns, -1)
    inside = down >= 0
    assert (inside == (across >= 0)).all()
    assert inside.sum() == min(side, size[0] - corner[0]) * min(side, size[1] - corner[1])
    assert (picture[:, ~inside] == 7).all()
    for plane, truth, length, part in ((picture[0], down, height, size[0]), (picture[1], across, width, size[1])):
        # A pixel of the original, or of the resized picture, whichever is coarser; and what a bicubic edge may add.
        step = 255 / max(length - 1, 1) * max(1, length / part) * 1.1 + 2
        assert np.abs(plane - truth * 255 / max(length - 1, 1))[inside].max() <= step


def test_nothing_changes_at_the_size_of_the_original():
    pixels, rows, columns = ramp(12, 20)
    cut = Cut((12, 20), (12, 20))
    assert np.array_equal(cut.picture(pixels, FILL).permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(cut.truth(rows, -1), rows)
    turned = Cut((12, 20), (12, 20), mirrored=True)
    assert np.array_equal(turned.truth(columns, -1), columns[:, ::-1])
    assert np.array_equal(turned.picture(pixels, FILL).permute(1, 2, 0).numpy(), pixels[:, ::-1])


@pytest.mark.parametrize(("length", "size"), [(10, 10), (10, 20), (10, 30), (30, 10), (7, 5), (5, 7), (1, 4)])
def test_the_nearest_pixel_is_that_which_covers_the_middle(length, size):
    slowly = [min(range(length), key=lambda s: (abs((s + 0.5) - (at + 0.5) * length / size), -s)) for at in range(size)]
    assert Cut((size, 1), (size, 1)).origin(length, 0).tolist() == slowly


def test_beyond_the_picture_nothing_is_known():
    pixels, rows, _ = ramp(4, 4)
    cut = Cut((4, 4), (6, 8), mirrored=True)
    truth = cut.truth(rows, 255)
    assert truth[0].tolist() == [255] * 4 + [0] * 4
    assert truth[5].tolist() == [255] * 8
    assert cut.truth(rows.astype(np.float32), 0.0).dtype == np.float32
    assert cut.picture(pixels, FILL).shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [((480, 640), 512, (512, 683)), ((100, 1000), 100, (40, 400)), ((1, 1), 7, (7, 7)), ((1000, 10), 20, (80, 1))],
)
def test_a_picture_keeps_its_shape_and_no_side_is_over_four_times_the_short_one(size, short_side, expected):
    assert resized_to(size, short_side) == expected


def test_a_crop_of_one_class_is_drawn_again_where_others_are():
    """Half of the picture is of one class: of ten crops the first with a quarter of others is taken."""
    truth = np.zeros((64, 256), int)
    truth[:, 128:] = 1
    config = CropsConfig(ratio=(1.0, 1.0))

    def shares(config):
        found = []
        for seed in range(40):
            cut = draw_cut(np.random.default_rng(seed), truth, config, short_side=64, window=(64, 64), ignore=255)
            found.append((cut.truth(truth, 255) == 1).mean())
        return np.asarray(found)

    held, free = (np.abs(shares(one) - 0.5) < 0.25 for one in (config, CropsConfig(ratio=(1.0, 1.0), most_of_one=1)))
    assert held.mean() > 0.8
    assert free.mean() < 0.4
    # What is ignored does not count: a crop that knows one class alone is never varied.
    cut = draw_cut(np.random.default_rng(0), truth * 255, config, short_side=64, window=(64, 64), ignore=255)
    assert cut.window == (64, 64)


def test_sizes_are_drawn_between_the_ratios():
    truth = np.arange(100 * 150).reshape(100, 150) % 3
    config = CropsConfig(ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    sizes = [draw_cut(rng, truth, config, short_side=60, window=(60, 60), ignore=255).size[0] for _ in range(400)]
    assert 30 <= min(sizes) < 35
    assert 115 < max(sizes) <= 120
    assert np.mean(sizes) == pytest.approx(75, abs=4)


def test_a_crop_is_a_function_of_its_seed():
    pixels, rows, _ = ramp(50, 70)
    pair, config = Pair(pixels, rows), CropsConfig()

    def crop(seed):
        return draw_crop(
            np.random.default_rng(seed), pair, config, short_side=40, window=(32, 32), ignore=255, fill=FILL
        )

    (one, truth), (again, same), (other, _) = crop(1), crop(1), crop(2)
    assert torch.equal(one, again)
    assert np.array_equal(truth, same)
    assert not torch.equal(one, other)


def test_colours_change_half_of_the_time_and_never_leave_their_range():
    picture = torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = [distorted(np.random.default_rng(seed), picture) for seed in range(300)]
    same = np.mean([torch.equal(one, picture) for one in found])
    assert same == pytest.approx(1 / 16, abs=0.04)  # none of the four changes
    grey = torch.full((1, 4, 4), 100, dtype=torch.uint8)
    levels = np.asarray([int(distorted(np.random.default_rng(seed), grey)[0, 0, 0]) for seed in range(400)])
    # Brightness by at most 32 levels, then contrast by a factor between a half and three halves.
    assert 34 <= levels.min() < 50
    assert 160 < levels.max() <= 198
    assert distorted(np.random.default_rng(3), grey).dtype == torch.uint8


def test_hue_turns_and_saturation_stretches():
    """Of a pure colour: brightness and contrast aside, its value stays and its hue turns by at most 36 degrees."""
    red = torch.zeros(3, 1, 1, dtype=torch.uint8)
    red[0] = 200
    seen = {tuple(distorted(np.random.default_rng(seed), red).flatten().tolist()) for seed in range(200)}
    assert any(blue and not green for _, green, blue in seen)
    assert any(green and not blue for _, green, blue in seen)
    assert all(green <= 0.62 * first + 1 for first, green, blue in seen if not blue)


def test_settings_out_of_range_are_one_line():
    with pytest.raises(ConfigError, match="enlarged at most 16 times"):
        CropsConfig.build({"ratio": (1.0, 40.0)})
    with pytest.raises(ConfigError, match="most_of_one"):
        CropsConfig.build({"most_of_one": 0.0})
