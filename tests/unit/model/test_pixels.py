"""Thumbnails as a backbone: of the whole and of its parts, by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinoforge.base.errors import WeightsError
from dinoforge.model.foreign import open_backbone


def test_a_thumbnail_is_pillows_about_its_mean():
    found = open_backbone("pixels:8")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    features = found.module(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    small = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BILINEAR), np.float32) / 255
    want = torch.from_numpy(small).permute(2, 0, 1).flatten()
    torch.testing.assert_close(features.image[0], want - want.mean(), atol=1 / 255, rtol=0)
    part = torch.from_numpy(pixels[8:16, 16:24]).permute(2, 0, 1).flatten().float() / 255
    torch.testing.assert_close(features.patches[0, 1, 2], part - part.mean())
    assert features.patches.shape == (1, 4, 4, 192)


def test_sides_tell_backbones_apart_and_nothing_else_is_a_side():
    one, other = open_backbone("pixels:16"), open_backbone("pixels:8")
    assert one.fingerprint != other.fingerprint == open_backbone("pixels:8").fingerprint
    assert (one.preprocessing.short_side, one.preprocessing.side) == (64, 64)
    for wrong in ("pixels:x", "pixels:0", "pixels:65"):
        with pytest.raises(WeightsError, match=f"backbone {wrong} takes the side of a thumbnail, 1 to 64"):
            open_backbone(wrong)


def test_colours_are_the_pixels_of_a_patch():
    found = open_backbone("colours:4")
    pixels = torch.arange(3 * 8 * 12).view(1, 3, 8, 12).float() / 255
    features = found.module(pixels)
    assert features.patches.shape == (1, 2, 3, 48)
    assert torch.equal(features.patches[0, 1, 2], pixels[0, :, 4:8, 8:12].flatten())
    torch.testing.assert_close(features.image[0], features.patches[0].flatten(0, 1).mean(0))
    assert (found.module.width, found.module.patch, found.preprocessing.side) == (48, 4, 224)
    assert found.fingerprint != open_backbone("colours:8").fingerprint != open_backbone("pixels:8").fingerprint


def test_colours_tell_light_from_dark_which_thumbnails_do_not():
    light, dark = (torch.full((1, 3, 8, 8), level) for level in (0.9, -0.9))
    one, other = (open_backbone("colours:8").module(images).patches.flatten() for images in (light, dark))
    assert torch.cosine_similarity(one, other, dim=0) < -0.99
    assert open_backbone("pixels:8").module(light).patches.abs().max() < 1e-6
    with pytest.raises(WeightsError, match="backbone colours:0 takes the side of a patch, 1 to 64, such as colours:8"):
        open_backbone("colours:0")
