"""A second opinion that anyone can get: Hugging Face's own classes, with random weights, both ways."""

import pytest
import torch

from dinoforge.model import huggingface
from dinoforge.model.layouts import write_layout
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import load_backbone

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 48}
KINDS = {
    "plain": (transformers.Dinov2Model, transformers.Dinov2Config, {}),
    "swiglu": (transformers.Dinov2Model, transformers.Dinov2Config, {"use_swiglu_ffn": True}),
    "no qkv bias": (transformers.Dinov2Model, transformers.Dinov2Config, {"qkv_bias": False}),
    "registers": (
        transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, {"num_register_tokens": 3},
    ),
    "registers, swiglu": (
        transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig,
        {"num_register_tokens": 4, "use_swiglu_ffn": True},
    ),
}  # fmt: skip
IMAGES = {"native": (48, 48), "larger": (64, 64), "smaller, not square": (24, 40)}


def shaken(module):
    """Every weight away from its start, so that a skipped term shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def tokens(features):
    return torch.cat([features.image.unsqueeze(1), features.registers, features.patches.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", IMAGES)
@torch.no_grad()
def test_theirs_in_ours(kind, size, tmp_path):
    model, settings, extra = KINDS[kind]
    theirs = shaken(model(settings(**SIZES, **extra)))
    theirs.save_pretrained(tmp_path)
    ours = load_backbone(tmp_path)
    count = len(ours.module.state_dict())
    assert ours.loaded == f"{count}/{count} tensors"
    image = torch.randn(2, 3, *IMAGES[size], generator=torch.Generator().manual_seed(1))
    want = theirs(pixel_values=image).last_hidden_state
    torch.testing.assert_close(tokens(ours.module(image)), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_names_in_memory_are_known_too(kind):
    model, settings, extra = KINDS[kind]
    theirs = shaken(model(settings(**SIZES, **extra)))
    config = huggingface.config_from(theirs.config.to_dict())
    ours = build(config, seed=0)
    ours.load_state_dict(huggingface.from_names(theirs.state_dict()))
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tokens(ours(image)), theirs(pixel_values=image).last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@torch.no_grad()
def test_ours_in_theirs(registers, ffn, tmp_path):
    config = VitConfig(
        width=64, depth=2, heads=4, patch=8, pixels=48, registers=registers, ffn=ffn, position_offset=0,
        position_antialias=registers > 0,
    )  # fmt: skip
    ours = shaken(build(config, seed=3))
    write_layout(tmp_path / "there", huggingface.compose(config, ours.state_dict()))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "there").eval()
    for height, width in IMAGES.values():
        image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        want = theirs(pixel_values=image).last_hidden_state
        torch.testing.assert_close(tokens(ours(image)), want, rtol=0, atol=1e-5)
    masks = torch.rand(2, 36, generator=torch.Generator().manual_seed(2)) < 0.4
    image = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    want = theirs(pixel_values=image, bool_masked_pos=masks).last_hidden_state
    torch.testing.assert_close(tokens(ours(image, masks)), want, rtol=0, atol=1e-5)
