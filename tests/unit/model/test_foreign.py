"""Models of other libraries: their features become ours; what they cannot do is one line."""

import json
import sys
import types

import pytest
import torch
from torch import nn

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.model.foreign import Foreign, Output, grid_of, open_backbone
from dinoforge.model.weights import load_backbone

transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
       "patch_size": 8}  # fmt: skip


def made(model, config, folder, **processor):
    torch.manual_seed(0)
    model = model(config).eval()
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def vision(name, **settings):
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}Model"), config


MODELS = {
    "ViT": (*vision("ViT", **VIT), 1),
    "DeiT": (*vision("DeiT", **VIT), 2),
    "Beit": (*vision("Beit", **VIT, use_absolute_position_embeddings=True), 1),
    "Dinov2WithRegisters": (*vision("Dinov2WithRegisters", **VIT | {"mlp_ratio": 2}, num_register_tokens=3), 4),
    "CLIPVision": (*vision("CLIPVision", **VIT), 1),
    "SiglipVision": (*vision("SiglipVision", **VIT), 0),
    "Swin": (
        *vision("Swin", image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        0,
    ),
    "ResNet": (*vision("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"), 0),
    "ConvNext": (*vision("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), 0),
    # a pooled token before the patches, without a parameter of its own
    "DINOv3ConvNext": (*vision("DINOv3ConvNext", hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, image_size=32), 1),
    # sides as a list
    "Dinov2": (*vision("Dinov2", **VIT | {"mlp_ratio": 2, "image_size": [32, 32]}), 1),
    "Hiera": (
        *vision(
            "Hiera",
            embed_dim=8,
            image_size=[32, 32],
            depths=[1, 1],
            num_heads=[1, 1],
            num_query_pool=1,
            masked_unit_size=[4, 4],
        ),
        0,
    ),
    "Yolos": (*vision("Yolos", **VIT | {"image_size": [32, 32]}, num_detection_tokens=5), 1),
}
BEHIND = {"Yolos": 5}
"""Tokens after the patches."""


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_the_models_own(name, tmp_path):
    """Tokens in their places on the grid, as the library gives them; the image vector is the model's."""
    model, config, prefix = MODELS[name]
    theirs = made(model, config, tmp_path, size={"height": 32, "width": 32})
    found = open_backbone(f"hf:{tmp_path}")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    got, want = found.module(x), theirs(pixel_values=x)
    tokens = want.last_hidden_state
    if tokens.ndim == 4:
        expected = tokens.permute(0, 2, 3, 1)
    else:
        tokens = tokens[:, : tokens.shape[1] - BEHIND.get(name, 0)]
        side = int((tokens.shape[1] - prefix) ** 0.5)
        expected = tokens[:, prefix:].unflatten(1, (side, side))
    assert torch.equal(got.patches, expected)
    assert got.registers.shape[1] == max(prefix - 1, 0)
    # with a class token it is that one, as after the model's last norm; else what the model pools
    if name == "CLIPVision" or not prefix:
        torch.testing.assert_close(got.image, want.pooler_output.flatten(1), rtol=0, atol=1e-6)
    else:
        assert torch.equal(got.image, tokens[:, 0])
    assert (found.module.width, found.module.patch) == (expected.shape[-1], 32 // expected.shape[1])
    assert "frozen" in found.loaded
    assert len(found.fingerprint) == 16
    assert not any(parameter.requires_grad for parameter in found.module.parameters())


@torch.no_grad()
def test_sides_by_their_names(tmp_path):
    """Some configurations say height and width instead of a number or a list."""
    model, config, _ = MODELS["ViT"]
    made(model, config, tmp_path, size={"height": 32, "width": 32})
    module = open_backbone(f"hf:{tmp_path}").module
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    want = module(x).image
    vars(module.model.config)["image_size"] = {"height": 32, "width": 32}  # past what this kind of configuration checks
    assert torch.equal(module(x).image, want)


@torch.no_grad()
def test_other_sizes(tmp_path):
    theirs = made(*MODELS["ViT"][:2], tmp_path, size={"height": 32, "width": 32})
    module = open_backbone(f"hf:{tmp_path}").module
    x = torch.randn(1, 3, 48, 24, generator=torch.Generator().manual_seed(1))
    want = theirs(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state[:, 1:].unflatten(1, (6, 3))
    assert torch.equal(module(x).patches, want)
    with pytest.raises(ConfigError, match=r"does not take images of 4x32x32"):
        module(torch.zeros(1, 4, 32, 32))
    strange = Foreign("x", nn.Identity(), lambda _, images: Output(images.flatten(2)[..., :5].mT, 0, None))
    with pytest.raises(ConfigError, match=r"x does not take images of 3x4x4 .*: its 5 patch tokens are no grid"):
        strange(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ConfigError, match="is a frozen backbone and cannot be trained"):
        module.train()


def test_a_grid_fits_the_image():
    assert grid_of(16, (32, 32)) == (4, 4)
    assert grid_of(18, (48, 24)) == (6, 3)
    assert grid_of(16, (37, 37)) == (4, 4)
    assert grid_of(49, (224, 224)) == (7, 7)
    with pytest.raises(ValueError, match="its 17 patch tokens are no grid"):
        grid_of(17, (32, 32))


def test_how_pictures_are_read_comes_from_the_processor(tmp_path, capsys):
    made(
        *MODELS["ViT"][:2], tmp_path, size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True,
        resample=2, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1],
    )  # fmt: skip
    how = open_backbone(f"hf:{tmp_path}").preprocessing
    assert (how.short_side, how.side, how.mean, how.std) == (40, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert "resamples otherwise than bicubic" in capsys.readouterr().err
    path = tmp_path / "preprocessor_config.json"
    for change, message in (
        ({"rescale_factor": 2 / 255}, "multiplies pixels by"),
        ({"size": {"width": 3}}, "does not describe an image processor: KeyError"),
        ({"image_mean": [1, 2]}, "mean is for 2 channels"),
        ({"image_std": [0, 0, 0]}, r"std must be above 0; got \[0.0, 0.0, 0.0\]\.$"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(WeightsError, match=message):
            open_backbone(f"hf:{tmp_path}")
    path.unlink()
    assert open_backbone(f"hf:{tmp_path}").preprocessing.mean == (0.485, 0.456, 0.406)
    assert "no preprocessor_config.json" in capsys.readouterr().err


def test_what_is_no_frozen_vision_model(tmp_path):
    with pytest.raises(WeightsError, match=r"is no folder and not in Hugging Face's cache; download it first"):
        open_backbone("hf:nobody/nothing-of-this-name")
    with pytest.raises(WeightsError, match=r"has no config.json"):
        open_backbone(f"hf:{tmp_path}")
    with pytest.raises(WeightsError, match="names no model"):
        open_backbone("hf:")
    (tmp_path / "config.json").write_text('{"model_type": "nonsense", "auto_map": {"AutoModel": "evil.Model"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(WeightsError, match="cannot be opened") as error:
        open_backbone(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)
    words = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    transformers.BertModel(words).save_pretrained(tmp_path / "words")
    with pytest.raises(WeightsError, match="does not take pictures"):
        open_backbone(f"hf:{tmp_path / 'words'}")
    with pytest.raises(WeightsError, match="can be used frozen only"):
        load_backbone(f"hf:{tmp_path}")


def test_missing_tensors_are_never_drawn_at_random(tmp_path):
    from safetensors.torch import load_file, save_file

    made(*MODELS["ViT"][:2], tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[next(name for name in state if "layernorm_before.weight" in name)]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 tensors are missing: .*layernorm_before.weight"):
        open_backbone(f"hf:{tmp_path}")


def test_features_that_change_by_themselves_are_refused(tmp_path):
    config = transformers.ViTMAEConfig(**VIT)
    made(transformers.ViTMAEModel, config, tmp_path, size={"height": 32, "width": 32})
    with pytest.raises((WeightsError, ConfigError), match=r"other features each time|does not take images"):
        open_backbone(f"hf:{tmp_path}")


class StandIn(nn.Module):
    """What is used of a model of timm's."""

    def __init__(self, fmt="NLC", prefix=3):
        super().__init__()
        self.proj, self.output_fmt, self.num_prefix_tokens = nn.Conv2d(3, 6, 8, stride=8), fmt, prefix

    def forward_features(self, images):
        x = self.proj(images)
        if self.output_fmt == "NCHW":
            return x
        if self.output_fmt == "NHWC":
            return x.permute(0, 2, 3, 1)
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([torch.arange(3.0).view(1, 3, 1).expand(len(x), 3, 6), x], dim=1)

    def forward_head(self, tokens, pre_logits):
        assert pre_logits
        return tokens[:, 0] if self.output_fmt == "NLC" else tokens.mean((2, 3)) + 1


@pytest.fixture
def timm(monkeypatch):
    asked = []

    def create_model(name, *, pretrained, num_classes):
        import huggingface_hub.constants

        assert huggingface_hub.constants.HF_HUB_OFFLINE
        asked.append((name, pretrained, num_classes))
        if "nothing" in name:
            raise RuntimeError("Unknown model (nothing)")
        torch.manual_seed(0)
        return StandIn(name if name in {"NCHW", "NHWC"} else "NLC", 3 if name not in {"NCHW", "NHWC"} else 0)

    def resolve_model_data_config(model):
        return {"input_size": (3, 16, 24), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.75,
                "interpolation": "bilinear"}  # fmt: skip

    module = types.ModuleType("timm")
    module.create_model = create_model
    module.data = types.SimpleNamespace(resolve_model_data_config=resolve_model_data_config)
    monkeypatch.setitem(sys.modules, "timm", module)
    return asked


@torch.no_grad()
def test_timm_through_a_stand_in(timm, tmp_path, capsys):
    """timm pulls torchvision, which is not installed here: only the door is tested, on a module of the same calls."""
    found = open_backbone("timm:vit_something")
    assert "resamples bilinear" in capsys.readouterr().err
    assert (found.preprocessing.side, found.preprocessing.short_side) == (24, 32)
    assert (found.preprocessing.mean, found.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    got, plain = found.module(x), StandIn().forward_features
    torch.manual_seed(0)
    plain = StandIn()
    map_ = plain.proj(x).permute(0, 2, 3, 1)
    assert torch.equal(got.patches, map_)
    assert got.image.unique().tolist() == [0.0]
    assert got.registers.unique().tolist() == [1.0, 2.0]
    for fmt in ("NCHW", "NHWC"):
        got = open_backbone(f"timm:{fmt}").module(x)
        assert torch.equal(got.patches, map_)
        torch.testing.assert_close(got.image, map_.mean((1, 2)) + 1)
    open_backbone(f"timm:{tmp_path}")
    assert timm[0] == ("vit_something", True, 0)
    assert timm[-1] == (f"local-dir:{tmp_path}", True, 0)
    with pytest.raises(WeightsError, match=r"timm:nothing cannot be opened: Unknown model \(nothing\)"):
        open_backbone("timm:nothing")


def test_timm_itself():
    timm = pytest.importorskip("timm", reason="timm pulls torchvision, which does not load beside a CPU build of torch")
    assert timm.__version__


@pytest.mark.parametrize(("address", "library"), [("hf:x", "transformers"), ("timm:x", "timm")])
def test_a_missing_library_is_one_line(address, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"needs {library}, which is not installed: pip install") as error:
        open_backbone(address)
    assert "\n" not in str(error.value)


def test_it_shows_no_attention():
    module = Foreign("x", nn.Identity(), lambda _, images: Output(images, 0, None))
    assert module.class_attention(torch.zeros(2, 3, 4, 4)).shape == (2, 0, 4, 4)
