"""The adapter's maps, and masks from frozen tokens."""

import sys

import pytest
import torch

from dinoforge.base.errors import ConfigError
from dinoforge.loss.masks import MaskLossConfig, mask_loss, mask_target
from dinoforge.model import mask2former
from dinoforge.model.adapter import STRIDES, Adapter, as_features
from dinoforge.model.features import Features
from dinoforge.model.mask2former import Mask2Former, Mask2FormerConfig, Masks, semantic
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig

SMALL = Mask2FormerConfig(width=32, heads=2, hidden=32, queries=6, decoder_layers=2)


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers_of(images, *blocks):
    """What the head takes: the images, and blocks of the given patches."""
    return [as_features(images), *(Features(one[:, 0, 0], one[:, :0, 0], one) for one in blocks)]


def small(seed=0, classes=3):
    return Mask2Former(SMALL, channels=3, features=10, classes=classes, seed=seed)


def adapter_of(channels=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Adapter(channels=channels, features=10, width=32)


@pytest.mark.parametrize("size", [(64, 64), (56, 98), (42, 154)])
def test_maps_have_their_strides(size):
    maps = adapter_of(channels=5)(made(2, 5, *size), made(2, size[0] // 14, size[1] // 14, 10))
    assert [m.shape for m in maps] == [(2, 32, *(-(-side // stride) for side in size)) for stride in STRIDES]


def test_every_map_sees_stem_and_tokens_where_they_are():
    """A change in one corner of either is felt in that corner of every map, and no image is felt in another."""
    adapter = adapter_of()
    images, tokens = made(2, 3, 128, 128), made(2, 8, 8, 10)
    before = adapter(images, tokens)
    moved, marked = images.clone(), tokens.clone()
    moved[0, :, :8, :8] += 5
    marked[0, 0, 0] = -marked[0, 0, 0]
    for after in (adapter(moved, tokens), adapter(images, marked)):
        for old, new in zip(before, after, strict=True):
            change = (new - old).abs().amax(1)
            assert change[0, 0, 0] > 3 * change[0, -1, -1]
            assert change[1].max() < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (56, 98), (42, 154), (28, 70)])
def test_shapes_at_any_aspect_ratio(size):
    layers = layers_of(
        made(2, 3, *size), made(2, size[0] // 14, size[1] // 14, 4), made(2, size[0] // 14, size[1] // 14, 6)
    )
    found = small().said(layers)
    assert len(found) == 1 + SMALL.decoder_layers
    assert {part.classes.shape for part in found} == {(2, 6, 4)}
    assert {part.masks.shape for part in found} == {(2, 6, -(-size[0] // 4), -(-size[1] // 4))}
    assert small()(layers).shape == (2, 3, *size)


def test_semantic_scores_equal_a_loop():
    found = Masks(made(2, 4, 6), made(2, 4, 5, 7, seed=1))
    seen = semantic(found, (5, 7))  # no resizing
    for image in range(2):
        for place in [(0, 0), (2, 3), (4, 6)]:
            for one in range(5):
                wanted = 0.0
                for query in range(4):
                    chance = torch.softmax(found.classes[image, query].double(), 0)[one]
                    wanted += float(chance * torch.sigmoid(found.masks[image, query, place[0], place[1]].double()))
                assert seen[image, one, place[0], place[1]].item() == pytest.approx(wanted, rel=1e-5)


def test_semantic_resizes_before_the_sigmoid():
    """Half-way between two places the score is the mean of the logits', not of the chances'."""
    found = Masks(torch.tensor([[[50.0, 0.0]]]), torch.tensor([[[[0.0, 8.0]]]]))
    assert semantic(found, (1, 4))[0, 0, 0].tolist() == pytest.approx(torch.tensor([0.0, 2, 6, 8]).sigmoid().tolist())


def test_masks_go_with_what_the_same_layer_says_of_them():
    """The first guess is made before any layer; what the last one says hangs on every layer."""
    model, images, tokens = small(), made(1, 3, 64, 64), made(1, 4, 4, 10)
    before = model.said(layers_of(images, tokens))
    with torch.no_grad():
        model.decoder.decoder.layers[-1].fc2.weight += made(32, 32)
    after = model.said(layers_of(images, tokens))
    same = [
        (torch.equal(old.classes, new.classes), torch.equal(old.masks, new.masks))
        for old, new in zip(before, after, strict=True)
    ]
    assert same == [(True, True), (True, True), (False, False)]


def test_gradients_reach_adapter_and_decoders_and_not_the_backbone():
    backbone = build(VitConfig(width=16, depth=2, heads=2, patch=8, pixels=64), seed=0).eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = Mask2Former(SMALL, channels=3, features=32, classes=3, seed=0)
    images, labels = made(2, 3, 64, 64), torch.arange(3).repeat_interleave(22)[:64].expand(2, 64, 64)
    for _ in range(2):
        found = model.said([as_features(images), *backbone.intermediate(images, 2)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loss = total(found, labels)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    silent = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().max() > 0]
    assert not silent


def total(found, labels, seed=0):
    targets = [mask_target(one, ignore=255) for one in labels]
    draws = torch.Generator().manual_seed(seed)
    return sum(
        mask_loss(p.classes, p.masks, targets, config=MaskLossConfig(points=256), generator=draws) for p in found
    )


def learnt(labels, images, tokens, steps=60, seed=0):
    """A model after some steps on the same pictures, and its losses."""
    model, losses = small(seed), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        loss = total(model.said(layers_of(images, tokens)), labels, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def test_learns_one_picture_by_heart():
    """Rings, which tokens alone, on a grid of 4 by 4 and all alike, cannot tell."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    labels = ((y**2 + x**2).sqrt() // 12).clamp(max=2).long().unsqueeze(0)
    images = torch.stack([labels == one for one in range(3)], 1).float() + 0.1 * made(1, 3, 64, 64)
    tokens = torch.ones(1, 4, 4, 10)
    model, losses = learnt(labels, images, tokens)
    assert losses[-1] < losses[0] / 4
    right = model(layers_of(images, tokens)).argmax(1) == labels
    assert right.float().mean() > 0.95


def test_the_same_seed_gives_the_same_model_and_the_global_generator_is_left_alone():
    images, tokens = made(1, 3, 48, 48), made(1, 3, 3, 10)
    labels = torch.arange(48).expand(1, 48, 48) // 16
    state = torch.random.get_rng_state()
    first, again, other = (learnt(labels, images, tokens, steps=2, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["adapter.start.0.weight"], other["adapter.start.0.weight"])


def test_bfloat16_says_nearly_the_same():
    model = small().eval()
    images, tokens = made(1, 3, 64, 64), made(1, 4, 4, 10)
    full = model.said(layers_of(images, tokens))[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = model.said(layers_of(images, tokens))[0]
    assert half.masks.dtype == half.classes.dtype == torch.float32
    torch.testing.assert_close(half.masks, full.masks, rtol=0.1, atol=0.1 * float(full.masks.detach().abs().max()))


def test_widths_that_do_not_fit_are_told():
    for settings, told in (({"width": 48}, "multiple of 32"), ({"heads": 3}, "mask2former.heads=3")):
        with pytest.raises(ConfigError, match=told):
            Mask2FormerConfig.build(settings)


def test_a_picture_must_have_two_places_at_the_coarsest_stride():
    with pytest.raises(ConfigError, match="more than 32 pixels a side; got 32x28"):
        small()(layers_of(made(2, 3, 32, 28), made(2, 2, 2, 10)))


def test_without_the_library_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, mask2former._LIBRARY, None)
    with pytest.raises(ConfigError) as told:
        small()
    assert "dinoforge[interop]" in str(told.value)
    assert "\n" not in str(told.value)
