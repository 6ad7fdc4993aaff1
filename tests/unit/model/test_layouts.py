"""Layouts of weights: names and shapes as published, round trips bit for bit, features as Hugging Face's classes compute them."""

import json

import pytest
import torch

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.model import timm
from dinoforge.model.layouts import FORMATS, LAYOUTS, composed, open_layout, write_layout
from dinoforge.model.official import unwrapped
from dinoforge.model.table import build
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.model.weights import load_backbone

TABLE = VitConfig(width=128, depth=3, heads=2, patch=8, pixels=32)
ROPE = VitConfig(width=128, depth=3, heads=2, patch=8, registers=4, positions="rope", norm_eps=1e-5)
SIZE = {"position_offset": 0.0, "position_antialias": True}


def changed(config, **values):
    return VitConfig.build(config.model_dump() | values)


OURS = {
    "table": TABLE,
    "table, registers": changed(TABLE, registers=4, **SIZE),
    "table, swiglu": changed(TABLE, ffn="swiglu"),
    "table, registers, swiglu": changed(TABLE, registers=4, ffn="swiglu", **SIZE),
    "table, local norm": changed(TABLE, untie_local_norm=True),
    "rope": ROPE,
    "rope, swiglu": changed(ROPE, ffn="swiglu", ffn_ratio=6),
    "rope, no bias": changed(ROPE, qkv_bias=False),
    "rope, another base": changed(ROPE, rope_base=50),
    "rope, no registers": changed(ROPE, registers=0),
    "rope, local norm": changed(ROPE, untie_local_norm=True),
}
EXPECTED_LOSS = {"official": set(), "huggingface": set(), "timm": {"mask_token"}}


def shaken(module, keys_without_bias=True):
    """Every weight away from its start, so that a skipped or swapped one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if keys_without_bias and name.endswith("attn.qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return module.eval()


def picture(height, width, channels=3):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def tokens(features):
    return torch.cat([features.image.unsqueeze(1), features.registers, features.patches.flatten(1, 2)], dim=1)


def saved(folder, layout, found):
    place = folder / ("out" if layout.format == "huggingface" else "out.safetensors")
    write_layout(place, found)
    return place


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_round_trip(name, form, tmp_path):
    """Ours, out and back: every tensor bit for bit but for those said to be left out, and the same features."""
    config = OURS[name]
    if form == "timm" and name == "rope, another base":
        with pytest.raises(WeightsError, match=r"timm DINOv3 has no form for backbone.rope_base=50"):
            composed(config, build(config, seed=0).state_dict(), form)
        return
    module = shaken(build(config, seed=0))
    layout, found, differs = composed(config, module.state_dict(), form)
    back = load_backbone(saved(tmp_path, layout, found))
    state = back.module.state_dict()
    lost = {
        key for key in module.state_dict() if key not in state or not torch.equal(state[key], module.state_dict()[key])
    }
    folded = (
        {"cls_token", "pos_embed"} if form == "timm" and config.registers and config.positions == "table" else set()
    )
    untied = {"local_cls_norm.weight", "local_cls_norm.bias"} if config.untie_local_norm else set()
    if layout.name == "official DINOv3":
        untied = set()
    assert lost == EXPECTED_LOSS[form] | folded | untied
    assert {key.partition("[")[0] for key in found.dropped} == (lost - {"cls_token"})
    x = picture(32, 32)
    torch.testing.assert_close(tokens(back.module(x)), tokens(module(x)), rtol=0, atol=0)
    # and once more there and back, where nothing is left to lose
    _, again, _ = composed(back.config, state, form)
    assert all(torch.equal(again.tensors[key], found.tensors[key]) for key in found.tensors)
    assert bool(differs) == (form != "official" and config.positions == "table" and not config.position_antialias)


@pytest.mark.parametrize(
    ("config", "form", "count"),
    [
        (VitConfig(pixels=518), "official", 175),
        (VitConfig(pixels=518, registers=4, **SIZE), "official", 176),
        (VitConfig(width=1024, depth=24, heads=16, pixels=518), "official", 343),
        (VitConfig(width=1536, depth=40, heads=24, pixels=518, ffn="swiglu"), "official", 567),
        (VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5), "official", 188),
        (VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5, ffn="swiglu", ffn_ratio=6), "official", 212),
        (VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5, width=1024, depth=24, heads=16), "official", 368),
        (
            VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5, width=512, depth=40, heads=4, ffn="swiglu",
                      ffn_ratio=3, qkv_bias=False, untie_local_norm=True), "official", 610,
        ),
        (
            VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5, width=1280, depth=32, heads=20, ffn="swiglu",
                      ffn_ratio=6), "official", 552,
        ),
        (VitConfig(pixels=518), "timm", 174),
        (VitConfig(pixels=518, registers=4, **SIZE), "timm", 175),
    ],
)  # fmt: skip
def test_released_sizes_have_as_many_tensors_as_published(config, form, count):
    """Of S, L, g and DINOv3's S, S+, L, H+, 7B (narrower, with its heads); the architecture is read back from the shapes.

    From networks of one and two blocks, for every block has as many.
    """
    layout = next(one for one in LAYOUTS if one.format == form and one.positions == config.positions)
    counts = []
    for depth in (1, 2):
        with torch.device("meta"):
            state = Vit(changed(config, depth=depth)).state_dict()
        found = layout.compose(config, {key: torch.zeros(1).expand(value.shape) for key, value in state.items()})
        counts.append(len(found.tensors))
    assert counts[0] + (config.depth - 1) * (counts[1] - counts[0]) == count
    back = layout.parse(found.tensors, None, "x").config
    for name in ("width", "heads", "ffn", "ffn_ratio", "registers", "norm_eps", "rope_base", "qkv_bias", "patch"):
        assert getattr(back, name) == getattr(config, name), name


def test_the_largest_of_timm_has_wider_heads():
    """DINOv3's 7B: 32 heads of 128 channels (all others have heads of 64), which no tensor of timm's says."""
    for width, heads in ((4096, 32), (1280, 20)):
        config = VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5, width=width, depth=1, heads=heads)
        with torch.device("meta"):
            state = Vit(config).state_dict()
        found = timm.EVA.compose(config, {key: torch.zeros(1).expand(value.shape) for key, value in state.items()})
        assert timm.EVA.parse(found.tensors, None, "x").config.heads == heads


def test_published_parameter_counts():
    """DINOv3's tables: S 21,601,152, S+ 28,697,472, B 85,669,632; biases of keys are parameters there."""
    for expected, more in (
        (21_601_152, {}),
        (28_697_472, {"ffn": "swiglu", "ffn_ratio": 6}),
        (85_669_632, {"width": 768, "heads": 12}),
    ):
        with torch.device("meta"):
            module = Vit(VitConfig(positions="rope", patch=16, registers=4, norm_eps=1e-5, **more))
        assert sum(parameter.numel() for parameter in module.parameters()) == expected


def test_names_of_timm():
    """As published: plain names; registers and the class token's position; the packed gated layer; EVA's names."""
    config = OURS["table, registers, swiglu"]
    module = shaken(build(config, seed=0))
    state = module.state_dict()
    _, found, _ = composed(config, state, "timm")
    theirs = found.tensors
    assert {"cls_token", "pos_embed", "reg_token", "patch_embed.proj.weight", "norm.bias"} <= set(theirs)
    assert {name for name in theirs if name.startswith("blocks.1.mlp")} == {
        f"blocks.1.mlp.fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")
    }
    assert torch.equal(theirs["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.w12.weight"])
    assert torch.equal(theirs["cls_token"], state["cls_token"] + state["pos_embed"][:, :1])
    assert theirs["pos_embed"].shape == (1, 16, 128)
    config = OURS["rope, swiglu"]
    state = shaken(build(config, seed=0)).state_dict()
    theirs = composed(config, state, "timm")[1].tensors
    assert {name.removeprefix("blocks.2.") for name in theirs if name.startswith("blocks.2.")} == {
        "gamma_1", "gamma_2", "attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias",
        "mlp.fc1_g.weight", "mlp.fc1_g.bias", "mlp.fc1_x.weight", "mlp.fc1_x.bias", "mlp.fc2.weight", "mlp.fc2.bias",
        "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
    }  # fmt: skip
    assert "pos_embed" not in theirs


def test_names_of_official_dinov3():
    state = shaken(build(ROPE, seed=0)).state_dict()
    theirs = composed(ROPE, state, "official")[1].tensors
    assert set(theirs) - set(state) == {"storage_tokens", "rope_embed.periods"} | {
        f"blocks.{n}.attn.qkv.bias_mask" for n in range(3)
    }
    # 100 to the power 2k / 32, as published: 1, 1.3335, …, 74.99
    assert [round(theirs["rope_embed.periods"][k].item(), 4) for k in (0, 1, 15)] == [1.0, 1.3335, 74.9894]
    mask = theirs["blocks.0.attn.qkv.bias_mask"]
    assert mask.chunk(3)[1].sum() == 0
    assert mask.sum() == 256


def test_what_a_mask_hides_does_not_count():
    """The stored bias of keys is meaningless in official files, and may be no number."""
    module = shaken(build(ROPE, seed=0))
    theirs = composed(ROPE, module.state_dict(), "official")[1].tensors
    spoilt = {key: value.clone() for key, value in theirs.items()}
    for key in spoilt:
        if key.endswith("attn.qkv.bias"):
            spoilt[key].chunk(3)[1].fill_(float("nan"))
    layout = next(one for one in LAYOUTS if one.name == "official DINOv3")
    back = layout.parse(spoilt, None, "x")
    assert all(torch.equal(back.state[key], value) for key, value in module.state_dict().items())


def test_a_bias_of_keys_is_never_lost():
    """It counts with rotary positions: layouts without one refuse it, the others hold it."""
    module = shaken(build(ROPE, seed=0), keys_without_bias=False)
    state = module.state_dict()
    with pytest.raises(WeightsError, match="no form for the bias of keys"):
        composed(ROPE, state, "timm")
    assert composed(ROPE, state, "huggingface")[1].settings["key_bias"] is True
    assert composed(ROPE, state, "official")[1].tensors["blocks.0.attn.qkv.bias_mask"].all()


def test_what_a_layout_cannot_hold_is_refused():
    narrow = changed(TABLE, heads=4)
    with pytest.raises(WeightsError, match=r"official DINOv2 has no form for backbone.heads=4 \(there it is 2\)"):
        composed(narrow, build(narrow, seed=0).state_dict(), "official")
    other = changed(ROPE, norm_eps=1e-6)
    with pytest.raises(WeightsError, match=r"norm_eps=1e-06 \(there it is 1e-05\).*to=huggingface"):
        composed(other, build(other, seed=0).state_dict(), "official")
    assert composed(other, build(other, seed=0).state_dict(), "huggingface")[1].settings["layer_norm_eps"] == 1e-6
    with pytest.raises(ConfigError, match=r"Unknown format 'offical'. Did you mean 'official'"):
        composed(TABLE, {}, "offical")


def test_layouts_are_told_apart():
    """Every layout's tensors are known by it and by no other."""
    for config in OURS.values():
        if config.rope_base == 100:
            state = shaken(build(config, seed=0)).state_dict()
            for form in FORMATS:
                layout, found, _ = composed(config, state, form)
                assert [one.name for one in LAYOUTS if one.knows(found.tensors)] == [layout.name]


def test_training_exports():
    """Wrapped, prefixed, chunked, with heads beside: the backbone comes out, and what is left is told."""
    state = shaken(build(ROPE, seed=0)).state_dict()
    theirs = composed(ROPE, state, "official")[1].tensors
    chunked = {k.replace("blocks.", "blocks.0.", 1) if k.startswith("blocks.") else k: v for k, v in theirs.items()}
    export = {"teacher": {f"module.backbone.{k}": v for k, v in chunked.items()}, "iteration": 7}
    export["teacher"]["dino_head.mlp.0.bias"] = torch.zeros(3)
    found, dropped = unwrapped(export)
    assert set(found) == set(theirs)
    assert dropped == {"iteration": "beside teacher", "dino_head.mlp.0.bias": "no part of the backbone"}


transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")

SIZES = {"S": (384, 6), "B": (768, 12)}
V2 = {
    "plain": (transformers.Dinov2Model, transformers.Dinov2Config, {}),
    "registers": (transformers.Dinov2WithRegistersModel, transformers.Dinov2WithRegistersConfig, {}),
}
V3 = {
    "v3": {},
    "v3, gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "v3, no bias": {"query_bias": False, "value_bias": False},
    "v3, bias of keys": {"key_bias": True},
}


def theirs(kind, size):
    """Random weights in Hugging Face's class, two blocks of the real width."""
    width, heads = SIZES[size]
    shape = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 2}
    torch.manual_seed(0)
    if kind in V2:
        model, settings, more = V2[kind]
        return shaken(model(settings(**shape, patch_size=14, image_size=56, **more)))
    hidden = {"intermediate_size": width * 4}
    config = transformers.DINOv3ViTConfig(**shape, **hidden, num_register_tokens=4, image_size=64, **V3[kind])
    return shaken(transformers.DINOv3ViTModel(config))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*V2, *V3])
@torch.no_grad()
def test_features_are_those_of_hugging_face(kind, size, tmp_path):
    """Theirs in ours, and what we write in theirs, on squares and not."""
    model = theirs(kind, size)
    model.save_pretrained(tmp_path / "theirs")
    ours = load_backbone(tmp_path / "theirs")
    _, found, differs = composed(ours.config, ours.module.state_dict(), "huggingface")
    assert not differs
    write_layout(tmp_path / "ours", found)
    again = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(model)
    patch = ours.config.patch
    for rows, columns in ((4, 4), (3, 5)):
        x = picture(rows * patch, columns * patch)
        want = model(pixel_values=x).last_hidden_state
        assert want.abs().max() > 0.5
        # Rounding of either form differs by processor; the widest gated one came to 1.1e-5 on one.
        torch.testing.assert_close(tokens(ours.module(x)), want, rtol=0, atol=2e-5)
        torch.testing.assert_close(again(pixel_values=x).last_hidden_state, want, rtol=0, atol=0)


def test_settings_beside_the_tensors_count(tmp_path):
    """Heads, eps and periods stand in config.json alone; a file beside it is read with it."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, intermediate_size=96, num_register_tokens=2,
        layer_norm_eps=1e-4, rope_theta=30.0, image_size=48,
    )  # fmt: skip
    shaken(transformers.DINOv3ViTModel(config)).save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "model.safetensors"):
        found = load_backbone(place).config
        assert (found.heads, found.norm_eps, found.rope_base, found.ffn_ratio) == (4, 1e-4, 30.0, 1.5)
        assert (found.pixels, found.registers) == (48, 2)


def test_an_activation_of_another_kind_is_refused(tmp_path):
    """But not where gated layers ignore it."""
    small = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    for name, more in (("plain", {"hidden_act": "relu"}), ("gated", {"hidden_act": "relu", "use_swiglu_ffn": True})):
        transformers.Dinov2Model(transformers.Dinov2Config(**small, **more)).save_pretrained(tmp_path / name)
    with pytest.raises(WeightsError, match=r"plain: hidden_act 'relu' is not supported; 'gelu' is\.$"):
        load_backbone(tmp_path / "plain")
    assert load_backbone(tmp_path / "gated").config.ffn == "swiglu"


def test_weights_in_several_files(tmp_path):
    model = theirs("v3", "S")
    model.save_pretrained(tmp_path, max_shard_size="3MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    back = load_backbone(tmp_path)
    assert back.loaded.partition("/")[0] == str(len(back.module.state_dict()))
    index = tmp_path / "model.safetensors.index.json"
    facts = json.loads(index.read_text())
    facts["weight_map"] = dict.fromkeys(facts["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=f"{tmp_path.name}/elsewhere.safetensors does not exist"):
        load_backbone(tmp_path)


def test_a_classifier_on_top_is_left_out_and_told(tmp_path):
    config = transformers.Dinov2Config(hidden_size=64, num_attention_heads=1, num_hidden_layers=1, image_size=28)
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    opened = open_layout(tmp_path)
    assert opened.parsed.dropped == dict.fromkeys(("classifier.weight", "classifier.bias"), "a classifier on top")
    assert load_backbone(tmp_path).config.width == 64
