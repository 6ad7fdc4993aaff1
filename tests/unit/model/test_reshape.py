"""Another native size, another number of channels: what stays the same."""

import pytest
import torch

from dinoforge.base.errors import ConfigError
from dinoforge.model.reshape import at_pixels, with_channels
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing

CONFIG = VitConfig(width=64, depth=2, heads=2, patch=8, pixels=32)


def backbone(config=CONFIG, preprocessing=None):
    module = build(config, seed=0).eval()
    return Backbone(module, config, preprocessing or Preprocessing.usual(config.channels))


def prepared(raw, how):
    """Numbers from 0 to 1 as the backbone takes them."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (how.mean, how.std))
    return (raw - mean) / std


def seen(found, raw):
    features = found.module(prepared(raw, found.preprocessing))
    return torch.cat([features.image.unsqueeze(1), features.patches.flatten(1, 2)], dim=1)


def noise(channels):
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("registers", [0, 2])
@torch.no_grad()
def test_at_the_new_size_nothing_changes(registers):
    how = {"position_offset": 0.0, "position_antialias": True} if registers else {}
    before = backbone(VitConfig.build(CONFIG.model_dump() | {"registers": registers, **how}))
    for pixels in (48, 16, 32):
        after = at_pixels(before, pixels)
        assert after.config.pixels == pixels
        assert after.module.pos_embed.shape[1] == 1 + (pixels // 8) ** 2
        x = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
        assert torch.equal(after.module(x).patches, before.module(x).patches)
        assert torch.equal(after.module(x).image, before.module(x).image)


def test_sizes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"no multiple of backbone.patch=8; 40 or 48 would be"):
        at_pixels(backbone(), 44)
    with pytest.raises(ConfigError, match="pixels=48 has no effect"):
        at_pixels(backbone(VitConfig(width=64, depth=1, heads=2, patch=8, positions="rope")), 48)


@pytest.mark.parametrize(("before", "after"), [(3, 4), (3, 7), (3, 6), (1, 5), (3, 1), (3, 2), (5, 3), (4, 1)])
@torch.no_grad()
def test_copied_channels_change_nothing(before, after):
    """From raw numbers on: other means and deviations of each channel included."""
    how = Preprocessing(
        channels=before,
        mean=tuple(0.3 + 0.05 * c for c in range(before)),
        std=tuple(0.2 + 0.02 * c for c in range(before)),
    )
    old = backbone(VitConfig.build(CONFIG.model_dump() | {"channels": before}), how)
    new = with_channels(old, after)
    assert new.config.channels == new.preprocessing.channels == after
    if after > before:
        raw = noise(before)
        old_raw, new_raw = raw, raw[:, [c % before for c in range(after)]]
    else:
        raw = noise(after)
        old_raw, new_raw = raw[:, [c % after for c in range(before)]], raw
    torch.testing.assert_close(seen(new, new_raw), seen(old, old_raw), rtol=0, atol=2e-5)


@torch.no_grad()
def test_grey_is_grey():
    """All channels equal, as a grey picture has them: the same features from 3, 8 and 1 channels; there and back is bit-equal."""
    old, grey = backbone(), noise(1)
    want = seen(old, grey.expand(-1, 3, -1, -1))
    for channels in (8, 1):
        torch.testing.assert_close(
            seen(with_channels(old, channels), grey.expand(-1, channels, -1, -1)), want, rtol=0, atol=2e-5
        )
    there = with_channels(with_channels(old, 6), 3)
    assert all(torch.equal(there.module.state_dict()[k], v) for k, v in old.module.state_dict().items())


def test_each_channel_counts_by_itself():
    """By hand: the red weights of RGB in five channels are shared by channels 0 and 3, a half each."""
    old = backbone()
    new = with_channels(old, 5).module.patch_embed.proj.weight
    weight = old.module.patch_embed.proj.weight
    assert torch.equal(new[:, 0], weight[:, 0] / 2)
    assert torch.equal(new[:, 3], weight[:, 0] / 2)
    assert torch.equal(new[:, 4], weight[:, 1] / 2)
    assert torch.equal(new[:, 2], weight[:, 2])


def test_channels_that_do_not_fit():
    with pytest.raises(ConfigError, match="channels=3 has no effect"):
        with_channels(backbone(), 3)
    how = Preprocessing(channels=3, range=[[0, 1], [0, 2], [0, 3]])
    assert with_channels(backbone(preprocessing=how), 4).preprocessing.range[3] == (0, 1)
    with pytest.raises(ConfigError, match="read with different ranges"):
        with_channels(backbone(preprocessing=how), 1)
