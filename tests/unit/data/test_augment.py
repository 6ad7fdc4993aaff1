"""Crops against torchvision's rule and Pillow's resize; colours against Pillow and colorsys; probabilities by counting."""

import colorsys
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from dinoforge.base.errors import ConfigError
from dinoforge.data.augment import PARAMETERS, AugmentConfig, ColourConfig, centre, crop_box, draw_views, resize
from dinoforge.data.photometric import ORDERS, blur, brightness, contrast, hue, recolour, saturation


def picture(height, width, seed=0):
    """A smooth picture with some detail."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(9 * (i + 1) * x + 7 * y * (i - 1)) for i in range(3)]
    return ((np.stack(waves, -1) * 0.35 + 0.5 + rng.normal(0, 0.05, (height, width, 3))).clip(0, 1) * 255).astype(
        np.uint8
    )


@pytest.mark.parametrize(("height", "width", "side"), [(90, 70, 32), (33, 47, 64), (200, 100, 24)])
def test_resize_is_pillows(height, width, side):
    pixels = picture(height, width)
    want = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    got = resize(torch.from_numpy(pixels).permute(2, 0, 1), side, side).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).max() <= 1


def test_boxes_have_the_area_and_shape_asked_for():
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(3000):
        top, left, h, w = crop_box(rng, height=300, width=400, scale=(0.1, 0.5), aspect=(3 / 4, 4 / 3))
        assert 0 <= top <= 300 - h
        assert 0 <= left <= 400 - w
        areas.append(h * w / 120_000)
        ratios.append(math.log(w / h))
    assert min(areas) >= 0.098
    assert max(areas) <= 0.502
    # Uniform area and log-uniform aspect: means of the two distributions, known to a few standard errors.
    assert np.mean(areas) == pytest.approx(0.3, abs=5 * 0.4 / math.sqrt(12 * 3000))
    assert np.mean(ratios) == pytest.approx(0.0, abs=5 * 0.575 / math.sqrt(12 * 3000))


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (1, 7)])
def test_boxes_of_extreme_images_are_the_middle(height, width):
    top, left, h, w = crop_box(
        np.random.default_rng(0), height=height, width=width, scale=(0.9, 1.0), aspect=(3 / 4, 4 / 3)
    )
    assert 1 <= h <= height
    assert 1 <= w <= width
    assert abs((height - h) / 2 - top) <= 0.5
    assert abs((width - w) / 2 - left) <= 0.5


def test_views_are_a_function_of_the_generator():
    config, pixels = AugmentConfig(global_pixels=32, local_pixels=16, local_views=3), picture(50, 60)
    one, same, other = (draw_views(pixels, np.random.default_rng(seed), config) for seed in (1, 1, 2))
    assert one.globals.shape == (2, 3, 32, 32)
    assert one.locals.shape == (3, 3, 16, 16)
    assert one.colours.shape == (5, len(PARAMETERS))
    assert torch.equal(one.globals, same.globals)
    assert np.array_equal(one.colours, same.colours)
    assert not torch.equal(one.globals, other.globals)
    assert not torch.equal(one.globals[0], one.globals[1])
    assert draw_views(pixels, np.random.default_rng(1), config.model_copy(update={"local_views": 0})).locals.shape == (
        0,
        3,
        16,
        16,
    )


def test_probabilities():
    """Counted over many draws, within five standard errors; blur as the released models had it."""
    config = AugmentConfig(global_pixels=8, local_pixels=8, local_views=1)
    rng, draws = np.random.default_rng(0), 2000
    colours = np.stack([draw_views(np.zeros((8, 8, 3), np.uint8), rng, config).colours for _ in range(draws)])
    column = {name: colours[:, :, number] for number, name in enumerate(PARAMETERS)}
    wanted = {
        "jitter": (0.8, 0.8, 0.8), "grey": (0.2, 0.2, 0.2), "sigma": (0.0, 0.9, 0.5), "solarise": (0.0, 0.2, 0.0),
    }  # fmt: skip
    for name, probabilities in wanted.items():
        for view, p in enumerate(probabilities):
            assert (column[name][:, view] > 0).mean() == pytest.approx(
                p, abs=5 * math.sqrt(p * (1 - p) / draws) + 1e-9
            ), name
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        values = column[name]
        assert low <= values.min() < low + 0.01 * (high - low) + 0.005
        assert high - 0.01 * (high - low) - 0.005 < values.max() <= high + 1e-6
    sigma = column["sigma"][column["sigma"] > 0]
    assert sigma.min() >= 0.1
    assert sigma.max() <= 2.0
    assert set(np.unique(column["order"])) == set(range(24))


def unit(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(brightness, ImageEnhance.Brightness), (contrast, ImageEnhance.Contrast), (saturation, ImageEnhance.Color)],
)
def test_changes_are_pillows(mine, theirs, factor):
    pixels = picture(20, 30)
    want = np.asarray(theirs(Image.fromarray(pixels)).enhance(factor)).astype(float)
    got = mine(unit(pixels), torch.tensor([[[[factor]]]]))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(got - want).max() <= 2  # Pillow rounds grey and result to whole levels


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.07, 0.5])
def test_hue_is_that_of_colorsys(turn):
    pixels = picture(6, 7)
    got = hue(unit(pixels), torch.tensor([[[[turn]]]]))[0].permute(1, 2, 0).numpy()
    for y in range(6):
        for x in range(7):
            h, s, v = colorsys.rgb_to_hsv(*(pixels[y, x] / 255))
            assert got[y, x] == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=2e-6)


def test_blur_equals_its_definition():
    x, sigma = unit(picture(14, 13)), 1.3
    weights = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(x[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    want = np.zeros(x.shape[1:])
    for dy in range(9):
        for dx in range(9):
            want += weights[dy] * weights[dx] * padded[:, dy : dy + 14, dx : dx + 13]
    torch.testing.assert_close(
        blur(x, torch.tensor([[[[sigma]]]]))[0].double(), torch.from_numpy(want), rtol=0, atol=1e-6
    )


def parameters(**values):
    row = {
        "jitter": 0,
        "brightness": 1,
        "contrast": 1,
        "saturation": 1,
        "hue": 0,
        "order": 0,
        "grey": 0,
        "sigma": 0,
        "solarise": 0,
    }
    return [float({**row, **values}[name]) for name in PARAMETERS]


PLAIN = ColourConfig(mean=(0, 0, 0), std=(1, 1, 1))


def test_each_view_by_its_own_parameters():
    pixels = torch.from_numpy(picture(16, 16)).permute(2, 0, 1)
    views = pixels.expand(5, -1, -1, -1).contiguous()
    colours = torch.tensor(
        [
            parameters(),
            parameters(grey=1),
            parameters(solarise=1),
            parameters(jitter=1, brightness=1.3, contrast=0.7, order=0),
            parameters(jitter=1, brightness=1.3, contrast=0.7, order=ORDERS.index((1, 0, 2, 3))),
        ]
    )
    plain, grey, solarised, first, second = recolour(views, colours, PLAIN)
    x = pixels.float() / 255
    torch.testing.assert_close(plain, x)
    assert (grey[0] == grey[1]).all()
    torch.testing.assert_close(solarised, torch.where(pixels >= 128, 1 - x, x))
    bright, flat = torch.tensor([[[[1.3]]]]), torch.tensor([[[[0.7]]]])
    torch.testing.assert_close(first, contrast(brightness(x.unsqueeze(0), bright), flat)[0])
    torch.testing.assert_close(second, brightness(contrast(x.unsqueeze(0), flat), bright)[0])
    assert not torch.allclose(first, second)


def test_normalised_last():
    grey = torch.full((1, 3, 9, 9), 128, dtype=torch.uint8)
    got = recolour(grey, torch.tensor([parameters(sigma=1.0)]), ColourConfig())
    want = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(got[0, :, 4, 4], want)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300), (10, 900), (64, 64)])
def test_centre_is_pillows_resize_and_middle(height, width):
    pixels = picture(height, width)
    got = centre(pixels, short_side=64, side=56)
    assert got.shape == (3, 56, 56)
    factor = 64 / min(height, width)
    size = (max(round(width * factor), 56), max(round(height * factor), 56))
    whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(int)
    top, left = (size[1] - 56) // 2, (size[0] - 56) // 2
    want = whole[top : top + 56, left : left + 56]
    assert np.abs(got.permute(1, 2, 0).numpy().astype(int) - want).max() <= 1


def test_centre_is_that_of_the_resized_whole_for_any_size():
    """Against the plain way, by torch's resize: one grey level for ordinary sizes, one a direction for tiny and thin ones."""
    rng = np.random.default_rng(5)
    sizes = [tuple(rng.integers(1, 160, 2).tolist()) for _ in range(40)]
    for height, width in [*sizes, (56, 56), (56, 61), (1, 1), (1, 300), (300, 2)]:
        pixels = picture(height, width, seed=height)
        short_side = int(rng.choice([56, 64]))
        factor = short_side / min(height, width)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        whole = resize(image, max(round(height * factor), 56), max(round(width * factor), 56)).int()
        top, left = (whole.shape[1] - 56) // 2, (whole.shape[2] - 56) // 2
        got = centre(pixels, short_side=short_side, side=56).int()
        ordinary = min(height, width) >= 28
        apart = (got - whole[:, top : top + 56, left : left + 56]).abs()
        assert apart.max() <= (1 if ordinary else 2), (height, width, short_side)
        assert (apart > 1).float().mean() < 0.001


@pytest.mark.parametrize("shape", [(1, 65_535, 3), (65_535, 1, 3)])
def test_centre_of_a_strip_takes_little_memory(shape):
    """The resized whole would be 13 GB; the limit leaves 512 MB."""
    resource = pytest.importorskip("resource")
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        pytest.skip("no /proc")
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        got = centre(np.full(shape, 77, dtype=np.uint8), short_side=256, side=224)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert (got == 77).all()


@pytest.mark.parametrize(
    "settings",
    [{"global_scale": (0.5, 0.2)}, {"local_scale": (0, 0.5)}, {"global_scale": (0.5, 1.1)}, {"aspect": (2, 1)}, {"flip": 1.5},
     {"colour": {"blur": (0.1, 2.0, 0.0)}}, {"local_views": -1}],
)  # fmt: skip
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        AugmentConfig.build(settings)
