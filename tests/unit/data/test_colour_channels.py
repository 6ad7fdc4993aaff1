"""Colours of views that are not red, green and blue, by hand."""

import torch

from dinoforge.data.augment import PARAMETERS, ColourConfig
from dinoforge.data.photometric import recolour

PLAIN = {"jitter": 0, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, "order": 0, "grey": 0, "sigma": 0,
         "solarise": 0}  # fmt: skip
OFF = {"saturation": 0, "hue": 0, "grey": 0}


def coloured(views, *, mean=(0.0,), std=(1.0,), **values):
    row = {**PLAIN, **values}
    colours = torch.tensor([[float(row[name]) for name in PARAMETERS]])
    return recolour(views[None], colours, ColourConfig(mean=mean, std=std, **OFF))[0]


def test_brightness_then_contrast_towards_the_mean_of_all_channels():
    """Two pixels of two channels: 0.2 0.4 and 0.6 0.8 of 255; brightened by half, their mean is 0.75."""
    views = torch.tensor([[[51, 102]], [[153, 204]]], dtype=torch.uint8)
    got = coloured(views, jitter=1, brightness=1.5, contrast=0.5)
    want = torch.tensor([[[0.3, 0.6]], [[0.9, 1.0]]])  # 1.2 is cut off
    torch.testing.assert_close(got, want.mean() + 0.5 * (want - want.mean()), rtol=0, atol=1 / 255)  # whole levels


def test_solarise_and_normalise_each_channel():
    views = torch.tensor([[[0]], [[127]], [[128]], [[255]]], dtype=torch.uint8)
    got = coloured(views, solarise=1, mean=(0.0, 0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0, 5.0))
    want = torch.tensor([0, 127 / 255 / 2 - 0.05, (127 / 255 - 0.2) / 4, -0.06])
    torch.testing.assert_close(got.flatten(), want)


def test_blur_of_many_channels_is_that_of_each():
    views = torch.randint(0, 256, (5, 12, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    got = coloured(views, sigma=1.3)
    for channel in range(5):
        torch.testing.assert_close(got[channel : channel + 1], coloured(views[channel : channel + 1], sigma=1.3))
