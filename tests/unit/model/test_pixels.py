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
