"""Colours against a slow definition in float64, against Pillow's in whole levels, and against colorsys."""

import colorsys
import math

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image, ImageEnhance, ImageOps

from device import no_waiting
from dinoforge.base.errors import ConfigError
from dinoforge.data.augment import PARAMETERS, AugmentConfig, ColourConfig, draw_views
from dinoforge.data.photometric import ORDERS, hue, recolour, recolour_floats, solarise
from dinoforge.data.photometric_bytes import recolour_bytes
from dinoforge.data.picture import Picture

PLAIN = ColourConfig(mean=(0,), std=(1 / 255,))
"""Leaves the scale 0 to 255."""
GREY = ColourConfig(mean=(0,), std=(1 / 255,), saturation=0, hue=0, grey=0)
LUMA = np.asarray([0.299, 0.587, 0.114])


def picture(height, width, seed=0, channels=3):
    """A smooth picture with some detail, of strong and of weak colours, ``[Y, X, C]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(9 * (i + 1) * x + (7 + seed) * y * (i - 1)) for i in range(channels)]
    noise = rng.normal(0, 0.05, (height, width, channels))
    return ((np.stack(waves, -1) * 0.35 + 0.5 + noise).clip(0, 1) * 255).astype(np.uint8)


def row(**values):
    plain = dict.fromkeys(PARAMETERS, 0) | {"brightness": 1, "contrast": 1, "saturation": 1}
    return [float((plain | values)[name]) for name in PARAMETERS]


def draw(rng, views):
    """Colours of so many views, strong and weak ones of every kind, each thing happening half of the time."""
    half = ColourConfig(
        jitter=0.9, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, grey=0.2, blur=(0.5,) * 3, solarise=1
    )
    config = AugmentConfig(global_pixels=8, local_pixels=8, local_views=1, colour=half)
    dot = Picture.of(np.zeros((8, 8, 3), np.uint8))
    return torch.from_numpy(np.stack([draw_views(dot, rng, config).colours[rng.integers(3)] for _ in range(views)]))


def gaussian(x, sigma):
    """Blur by its definition: nine pixels wide, edges mirrored, one sum over 81 neighbours."""
    weights = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(x, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    total = np.zeros(x.shape)
    for dy in range(9):
        for dx in range(9):
            total += weights[dy] * weights[dx] * padded[dy : dy + x.shape[0], dx : dx + x.shape[1]]
    return total


def defined(pixels, colours):
    """One view by the definition: floats between 0 and 1, one change after the other, each cut off before the next."""
    value = dict(zip(PARAMETERS, colours.tolist(), strict=True))
    x = pixels / 255.0
    grey = (lambda x: x @ LUMA) if x.shape[2] == 3 else (lambda x: x.mean(2))
    if value["jitter"]:
        for change in ORDERS[int(value["order"])]:
            if change == 0:
                x = (value["brightness"] * x).clip(0, 1)
            elif change == 1:
                x = (value["contrast"] * x + (1 - value["contrast"]) * grey(x).mean()).clip(0, 1)
            elif change == 2:
                x = (value["saturation"] * x + (1 - value["saturation"]) * grey(x)[:, :, None]).clip(0, 1)
            elif value["hue"]:
                for y, place in np.ndindex(x.shape[:2]):
                    h, s, v = colorsys.rgb_to_hsv(*x[y, place])
                    x[y, place] = colorsys.hsv_to_rgb((h + value["hue"]) % 1, s, v)
    if value["grey"]:
        x = np.repeat(grey(x)[:, :, None], x.shape[2], axis=2)
    if value["sigma"]:
        x = gaussian(x, value["sigma"])
    if value["solarise"]:
        x = np.where(x < 127.5 / 255, x, 1 - x)
    return x * 255


def stacked(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def decibels(view, want):
    return 10 * math.log10(255**2 / max(np.mean((view.permute(1, 2, 0).numpy() - want) ** 2), 1e-9))


def test_equals_its_definition():
    """120 views of all kinds in one batch: in floats within a hundredth of a grey level, in whole levels 33 decibels.

    Colours are changed more strongly here than any recipe does, and in whole levels the hue turns by whole 255ths, as published.
    """
    pictures = [picture(13, 16, seed=seed) for seed in range(120)]
    colours = draw(np.random.default_rng(0), 120)
    want = [defined(*of) for of in zip(pictures, colours, strict=True)]
    floats = recolour_floats(stacked(pictures), colours, PLAIN)
    worst = [np.abs(view.permute(1, 2, 0).numpy() - one).max() for view, one in zip(floats, want, strict=True)]
    assert max(worst) < 0.01
    # A pixel at the edge between the halves may be solarised or not: they differ by one level, so nothing is lost by it.
    levels = recolour_bytes(stacked(pictures), colours, PLAIN)
    agreed = [decibels(view, one) for view, one in zip(levels, want, strict=True)]
    assert min(agreed) > 33
    assert np.median(agreed) > 45
    assert len(set(colours[:, PARAMETERS.index("order")].tolist())) == 24


def test_normalised_last():
    pixels = stacked([picture(12, 12)])
    for channels in (3, 1):
        mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
        colours = torch.tensor([row(sigma=1.0, jitter=1, brightness=1.2)])
        plain = recolour(pixels, colours, PLAIN) / 255
        got = recolour(pixels, colours, PLAIN.model_copy(update={"mean": mean, "std": std}))
        want = (plain - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels(channels):
    """Contrast about the mean of all channels; what needs red, green and blue is refused."""
    pictures = [picture(12, 11, seed, channels) for seed in range(24)]
    rng = np.random.default_rng(1)
    colours = torch.tensor(
        [row(jitter=1, brightness=b, contrast=c, order=order, sigma=s, solarise=order % 2)
         for order, (b, c, s) in enumerate(rng.uniform(0.5, 1.5, (24, 3)))]
    )  # fmt: skip
    for coloured, within in ((recolour_floats, 0.01), (recolour_bytes, 2.5)):
        got = coloured(stacked(pictures), colours, GREY)
        for view, pixels, numbers in zip(got, pictures, colours, strict=True):
            np.testing.assert_allclose(view.permute(1, 2, 0).numpy(), defined(pixels, numbers), rtol=0, atol=within)
    for settings in ({"saturation": 0.1}, {"hue": 0.1}, {"grey": 0.1}):
        with pytest.raises(ConfigError, match=f"{channels} channels have no saturation"):
            recolour(stacked(pictures), colours, GREY.model_copy(update=settings))
    recolour(stacked(pictures), colours, GREY.model_copy(update={"saturation": 0.1, "jitter": 0.0}))
    with pytest.raises(
        ConfigError, match=rf"mean has 3 numbers for images of {channels} channels; give 1 or {channels}\."
    ):
        recolour(stacked(pictures), colours, GREY.model_copy(update={"mean": (0, 0, 0)}))


@pytest.mark.parametrize("coloured", [recolour_bytes, recolour_floats])
def test_a_view_does_not_depend_on_its_neighbours(coloured):
    """Bit for bit: alone, in another order, with another number of threads."""
    pictures, colours = stacked([picture(33, 33, seed) for seed in range(30)]), draw(np.random.default_rng(2), 30)
    want = coloured(pictures, colours, ColourConfig())
    alone = [coloured(pictures[n : n + 1], colours[n : n + 1], ColourConfig()) for n in range(30)]
    assert torch.equal(torch.cat(alone), want)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(30))
    assert torch.equal(coloured(pictures[shuffled], colours[shuffled], ColourConfig()), want[shuffled])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        assert torch.equal(coloured(pictures, colours, ColourConfig()), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("recolour", [recolour_bytes, recolour_floats])
def test_what_comes_in_stays(recolour):
    pictures, colours = stacked([picture(9, 9, seed) for seed in range(6)]), draw(np.random.default_rng(3), 6)
    before = pictures.clone(), colours.clone()
    recolour(pictures, colours, ColourConfig())
    assert torch.equal(pictures, before[0])
    assert torch.equal(colours, before[1])
    assert recolour(pictures[:0], colours[:0], ColourConfig()).shape == (0, 3, 9, 9)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 1 / 3, 0.5])
def test_hue_is_that_of_colorsys(turn):
    pixels = picture(9, 9)
    pixels[0, :6] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90], [0, 0, 0], [200, 200, 10]]
    x = stacked([pixels]).float()
    hue(x, ((6 * turn - torch.tensor([0.0, 2.0, 4.0]) + 3) % 6 - 3).view(1, 3, 1, 1))
    for y, place in np.ndindex(9, 9):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[y, place] / 255))
        want = np.asarray(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
        assert x[0, :, y, place].numpy() == pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize("side", [(14, 13), (3, 5), (9, 2), (1, 7)])
def test_blur_equals_the_definition(side):
    """Also where a picture is narrower than the kernel, which then ends at the picture's edge."""
    pictures = [picture(*side, seed) for seed in range(3)]
    colours = torch.tensor([row(sigma=sigma) for sigma in (2.0, 1.1, 0.2)])
    reach = min(4, *(length - 1 for length in side))
    for coloured, within in ((recolour_floats, 1e-3), (recolour_bytes, 1.5)):
        got = coloured(stacked(pictures), colours, PLAIN)
        for view, pixels, sigma in zip(got, pictures, (2.0, 1.1, 0.2), strict=True):
            whole = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
            whole /= whole.sum()
            padded = np.pad(pixels.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
            want = sum(
                whole[dy] * whole[dx] * padded[dy : dy + side[0], dx : dx + side[1]]
                for dy in range(len(whole)) for dx in range(len(whole))
            )  # fmt: skip
            np.testing.assert_allclose(view.permute(1, 2, 0).numpy(), want, rtol=0, atol=within)


def test_whole_levels_are_solarised_from_128_on():
    levels = torch.arange(256.0).view(1, 1, 16, 16)
    assert torch.equal(solarise(levels), torch.where(levels >= 128, 255 - levels, levels))


def by_pillow(pixels, colours):
    """The published way: Pillow in whole levels throughout, hue in its 8-bit HSV; blur alone is computed in floats."""
    value = dict(zip(PARAMETERS, colours.tolist(), strict=True))
    image = Image.fromarray(pixels)
    if value["jitter"]:
        for change in ORDERS[int(value["order"])]:
            if change == 3:
                h, s, v = image.convert("HSV").split()
                turned = (np.asarray(h).astype(int) + int(value["hue"] * 255)) % 256
                image = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), s, v)).convert("RGB")
            else:
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
                image = kind(image).enhance(value[("brightness", "contrast", "saturation")[change]])
    if value["grey"]:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if value["sigma"]:
        image = Image.fromarray(
            gaussian(np.asarray(image).astype(float), value["sigma"]).round().clip(0, 255).astype(np.uint8)
        )
    return np.asarray(ImageOps.solarize(image, 128) if value["solarise"] else image)


def published(rng, views):
    """Colours of second global and local views as the recipes draw them."""
    config = AugmentConfig(global_pixels=8, local_pixels=8, local_views=1)
    dot = Picture.of(np.zeros((8, 8, 3), np.uint8))
    return torch.from_numpy(np.concatenate([draw_views(dot, rng, config).colours for _ in range(views // 3)]))


@pytest.mark.parametrize("coloured", [recolour_bytes, recolour_floats])
def test_pictures_are_those_of_the_published_definition(coloured):
    """Pillow rounds to whole levels after every change, and hue and saturation to 256 steps: that is all that differs."""
    pictures = [picture(48, 48, seed) for seed in range(90)]
    colours = published(np.random.default_rng(4), 90)
    got = coloured(stacked(pictures), colours, PLAIN)
    wanted = [by_pillow(pixels, numbers) for pixels, numbers in zip(pictures, colours, strict=True)]
    assert min(decibels(view, want) for view, want in zip(got, wanted, strict=True)) > 35


def test_parameters_are_distributed_as_asked():
    """3,000 pictures: shares by the binomial, ranges by Kolmogorov and Smirnov, orders by chi squared. Blur as released."""
    config = AugmentConfig(global_pixels=8, local_pixels=8, local_views=1)
    dot, rng, draws = Picture.of(np.zeros((8, 8, 3), np.uint8)), np.random.default_rng(0), 3000
    colours = np.stack([draw_views(dot, rng, config).colours for _ in range(draws)])
    column = {name: colours[:, :, number].astype(float) for number, name in enumerate(PARAMETERS)}
    wanted = {"jitter": (0.8, 0.8, 0.8), "grey": (0.2, 0.2, 0.2), "sigma": (0.0, 0.9, 0.5), "solarise": (0.0, 0.2, 0.0)}
    for name, probabilities in wanted.items():
        for view, p in enumerate(probabilities):
            happened = int((column[name][:, view] > 0).sum())
            assert scipy.stats.binomtest(happened, draws, p).pvalue > 1e-3, (name, view)
    uniform = {"brightness": (0.6, 0.8), "contrast": (0.6, 0.8), "saturation": (0.8, 0.4), "hue": (-0.1, 0.2)}
    for name, place in uniform.items():
        for view in range(3):
            assert scipy.stats.kstest(column[name][:, view], "uniform", args=place).pvalue > 1e-3, (name, view)
    sigma = column["sigma"][column["sigma"] > 0]
    assert scipy.stats.kstest(sigma, "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    counts = np.bincount(column["order"].astype(int).ravel(), minlength=24)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    together = np.corrcoef(np.concatenate([column[name].T for name in uniform] + [column["order"].T]))
    assert np.abs(together - np.eye(len(together))).max() < 5 / math.sqrt(draws), "views and parameters are independent"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device_without_waiting_for_it():
    pictures, colours = stacked([picture(33, 40, seed) for seed in range(30)]), draw(np.random.default_rng(5), 30)
    want, there = recolour_floats(pictures, colours, ColourConfig()), pictures.cuda()
    recolour(there, colours, ColourConfig())
    with no_waiting():
        got = recolour(there, colours, ColourConfig())
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-3)
