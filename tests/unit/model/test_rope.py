"""Rotary positions: against complex numbers, against another implementation, and by the laws that they are chosen for."""

import cmath
import math

import pytest
import torch

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.model import huggingface, vit
from dinoforge.model.features import Inputs, Subset
from dinoforge.model.layouts import write_layout
from dinoforge.model.rope import rotated, turns
from dinoforge.model.table import build, empty
from dinoforge.model.toy import ToyConfig
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import load_backbone

CPU = torch.device("cpu")
SIZES = {"square": (32, 32), "flat": (16, 40), "tall": (24, 8), "one patch": (8, 8)}


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(grid, *, width=8, base=100.0, without=0, rescale=None):
    return turns(grid, width=width, base=base, without=without, device=CPU, rescale=rescale)


def shaken(module):
    """Weights large enough that heads attend to some tokens more than to others."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize(("width", "base"), [(4, 100.0), (12, 7.0)])
def test_equals_its_definition(grid, width, base):
    """Patch by patch and pair by pair: a complex number times ``exp(2 pi i coordinate / period)``."""
    rows, columns = grid
    qkv = made(rows * columns, 3, 2, width).double()
    want = qkv.clone()
    for row in range(rows):
        for column in range(columns):
            coordinates = (2 * (row + 0.5) / rows - 1, 2 * (column + 0.5) / columns - 1)
            for which in range(2):
                for head in range(2):
                    x = qkv[row * columns + column, which, head]
                    for pair in range(width // 2):
                        axis, number = divmod(pair, width // 4)
                        period = base ** (2 * number / (width / 2))
                        point = complex(x[pair], x[pair + width // 2])
                        point *= cmath.exp(2j * math.pi * coordinates[axis] / period)
                        want[row * columns + column, which, head, pair] = point.real
                        want[row * columns + column, which, head, pair + width // 2] = point.imag
    got = rotated(qkv, table(grid, width=width, base=base)[0])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # angles are float32
    assert torch.equal(got[:, 2], qkv[:, 2])


def test_gradients_against_finite_differences():
    x, angles = made(6, 3, 2, 8).double().requires_grad_(), table((2, 3))[0].double()
    assert torch.autograd.gradcheck(lambda qkv: rotated(qkv, angles), x)


def test_lengths_stay_and_precision_is_given_back():
    """In bf16 the rotation is computed in float32: as near as rounding its result once."""
    qkv, angles = made(12, 3, 2, 8), table((3, 4))[0]
    exact, rough = rotated(qkv, angles), rotated(qkv.bfloat16(), angles)
    torch.testing.assert_close(exact.norm(dim=-1), qkv.norm(dim=-1))
    assert angles.dtype == torch.float32
    assert rough.dtype == torch.bfloat16
    assert torch.equal(rough, rotated(qkv.bfloat16().float(), angles).bfloat16())


def test_scores_depend_on_differences_of_coordinates_alone():
    """The same query and key at all pairs of patches: as many scores as differences; on both axes, in any order."""
    rows, columns = 4, 5
    qkv = made(1, 3, 1, 8).double().expand(rows * columns, -1, -1, -1)
    query, key, _ = rotated(qkv, table((rows, columns))[0])[:, :, 0].unbind(1)
    scores = (query @ key.T).view(rows, columns, rows, columns)
    found = {}
    for a in range(rows):
        for b in range(columns):
            for c in range(rows):
                for d in range(columns):
                    found.setdefault((c - a, d - b), []).append(scores[a, b, c, d].item())
    for difference, values in found.items():
        assert max(values) - min(values) < 1e-5, difference
    assert len({round(values[0], 4) for values in found.values()}) == len(found) == 7 * 9


def test_tokens_before_the_patches_are_left_alone():
    qkv = made(3 + 6, 3, 2, 8)
    got = rotated(qkv, table((2, 3), without=3)[0])
    assert torch.equal(got[:3], qkv[:3])
    assert torch.equal(got[3:], rotated(qkv[3:], table((2, 3))[0]))
    assert (got[3:, :2] != qkv[3:, :2]).any(dim=-1).all()


def test_a_factor_multiplies_the_coordinates_of_its_own_image():
    """Half the coordinates of a 2 x 2 grid are those of the middle of a 4 x 4 grid."""
    got = table((2, 2), rescale=torch.tensor([1.0, 0.5]), without=1)
    assert got.shape == (2, 5, 8)
    torch.testing.assert_close(got[:1], table((2, 2), without=1))
    torch.testing.assert_close(got[1, 1:], table((4, 4))[0, [5, 6, 9, 10]])


def theirs(transformers, **more):
    """Hugging Face's model of random weights, and ours of the same."""
    config = transformers.DINOv3ViTConfig(
        hidden_size=48, intermediate_size=128, num_hidden_layers=3, num_attention_heads=3, patch_size=8, image_size=32,
        layer_norm_eps=1e-6, rope_theta=60.0, attn_implementation="eager", **more,
    )  # fmt: skip
    model = shaken(transformers.DINOv3ViTModel(config))
    gated, registers = config.use_gated_mlp, config.num_register_tokens
    ours = empty(
        VitConfig(
            width=48, depth=3, heads=3, patch=8, pixels=32, registers=registers, ffn="swiglu" if gated else "mlp",
            ffn_ratio=4 if gated else 128 / 48, positions="rope", rope_base=60,
        )
    )  # fmt: skip
    ours.load_state_dict(renamed(model.state_dict(), registers=registers))
    return model, ours.eval()


def renamed(state, *, registers):
    """Their tensors under our names; keys have no bias there, and a table of no registers is no tensor here."""
    outside = {
        "embeddings.cls_token": "cls_token", "embeddings.register_tokens": "register_tokens",
        "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.bias": "patch_embed.proj.bias", "norm.weight": "norm.weight", "norm.bias": "norm.bias",
    }  # fmt: skip
    found = {ours: state[name] for name, ours in outside.items()} | {"mask_token": state["embeddings.mask_token"][0]}
    if not registers:
        del found["register_tokens"]
    inside = {
        "norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "mlp.down_proj": "mlp.w3",
        "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    }  # fmt: skip
    for number in range(3):
        layer = {
            name.removeprefix(f"model.layer.{number}."): value
            for name, value in state.items()
            if name.startswith(f"model.layer.{number}.")
        }
        layer["attention.k_proj.bias"] = torch.zeros(48)
        gated = "mlp.gate_proj.weight" in layer
        parts = {"attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"]} | (
            {"mlp.w12": ["mlp.gate_proj", "mlp.up_proj"]} if gated else {"mlp.fc1": ["mlp.up_proj"]}
        )
        names = inside if gated else inside | {"mlp.down_proj": "mlp.fc2"}
        for kind in ("weight", "bias"):
            for ours, own in parts.items():
                found[f"blocks.{number}.{ours}.{kind}"] = torch.cat([layer.pop(f"{name}.{kind}") for name in own])
        for name, value in layer.items():
            stem = next(stem for stem in names if name == stem or name.startswith(stem + "."))
            found[f"blocks.{number}.{names[stem]}{name[len(stem) :]}"] = value
    return found


def tokens(features):
    return torch.cat([features.image[:, None], features.registers, features.patches.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "more", [{"num_register_tokens": 4}, {"use_gated_mlp": True, "hidden_act": "silu"}], ids=["registers", "gated"]
)
@torch.no_grad()
def test_equals_another_implementation(more, size):
    """Last features, inner ones and the class token's attention; masked too."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    model, ours = theirs(transformers, **more)
    images = made(2, 3, *size)
    want = model(pixel_values=images, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(tokens(ours(images)), want.last_hidden_state, rtol=0, atol=1e-5)
    inner = ours.intermediate(images, [0, 1], norm=False)
    for mine, their in zip(inner, want.hidden_states[1:3], strict=True):
        torch.testing.assert_close(tokens(mine), their, rtol=0, atol=1e-5)
    maps = want.attentions[-1][:, :, 0, 1 + ours.config.registers :]
    torch.testing.assert_close(ours.class_attention(images).flatten(2), maps, rtol=0, atol=1e-5)
    masks = torch.rand(2, maps.shape[-1], generator=torch.Generator().manual_seed(2)) < 0.4
    want = model(pixel_values=images, bool_masked_pos=masks).last_hidden_state
    torch.testing.assert_close(tokens(ours(images, masks)), want, rtol=0, atol=1e-5)


ROPE = VitConfig(width=16, depth=3, heads=2, patch=8, pixels=16, registers=2, positions="rope")


def test_it_has_no_table_and_tells_places_apart():
    """Without positions, patches that change places would change places in the output and nothing else."""
    module, x = shaken(build(ROPE, seed=0)), made(1, 3, 16, 16)
    assert not any("pos_embed" in name for name in module.state_dict())
    swapped = torch.cat([x[..., 8:], x[..., :8]], dim=-1)
    assert not torch.allclose(module(x).image, module(swapped).image, atol=1e-3)


def test_no_token_starts_with_a_gradient_above_all_others():
    """A class token of next to nothing has one of dozens of times any other, and clipping would shrink all."""
    module = build(ROPE.model_copy(update={"width": 384, "heads": 6}), seed=0)
    for token in (module.cls_token, module.register_tokens):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
    module(made(4, 3, 16, 16)).image[:, :8].sum().backward()
    largest = max(p.grad.norm() for name, p in module.named_parameters() if "token" not in name)
    assert module.cls_token.grad.norm() < 20 * largest


def test_angles_are_computed_once_for_each_size_and_not_for_a_table(monkeypatch):
    calls = []
    monkeypatch.setattr(vit, "turns", lambda *args, **settings: calls.append(args) or turns(*args, **settings))
    inputs = [Inputs(made(2, 3, 16, 16)), Inputs(made(3, 3, 8, 8))]
    build(ROPE, seed=0)(inputs)
    assert calls == [((2, 2),), ((1, 1),)]
    build(ROPE.model_copy(update={"positions": "table"}), seed=0)(inputs)
    assert len(calls) == 2


def test_a_factor_stays_with_its_image_where_branches_are_dropped():
    """Images that keep their branches get what they get alone, each with its own factor."""
    module, x = shaken(build(ROPE, seed=0)), made(4, 3, 16, 24)
    rescale = torch.tensor([0.5, 1.0, 1.5, 2.0])
    kept = torch.tensor([3, 1])
    some = [(Subset(kept, 1.0), Subset(kept, 1.0))] * 3
    together = module([Inputs(x, None, some, rescale)])[0]
    alone = module([Inputs(x[kept], None, None, rescale[kept])])[0]
    torch.testing.assert_close(together.image[kept], alone.image)
    torch.testing.assert_close(together.patches[kept], alone.patches)
    assert not torch.allclose(alone.image, module(x[kept]).image, atol=1e-3)


def test_coordinates_to_rescale_where_there_are_none():
    for config, message in (
        (ROPE.model_copy(update={"positions": "table"}), "no coordinates"),
        (ToyConfig(), "no posit"),
    ):
        with pytest.raises(ValueError, match=message):
            build(config, seed=0)([Inputs(made(1, 3, 16, 16), rescale=torch.ones(1))])


def test_local_views_have_a_norm_of_their_own():
    """For class token and registers; patches, global views and evaluation use the other."""
    module = shaken(build(ROPE.model_copy(update={"untie_local_norm": True}), seed=0))
    wide, near = made(2, 3, 16, 16), made(3, 3, 8, 8)
    mine = module([Inputs(wide), Inputs(near, local=True)])
    for found, want in zip(mine, (module(wide), module(near)), strict=True):
        torch.testing.assert_close(found.patches, want.patches)
    torch.testing.assert_close(mine[0].image, module(wide).image)
    bare = tokens(module.intermediate(near, 1, norm=False)[0])[:, :3]
    torch.testing.assert_close(tokens(mine[1])[:, :3], module.local_cls_norm(bare))
    assert not torch.allclose(mine[1].image, module(near).image)
    assert not torch.allclose(mine[1].registers, module(near).registers)


def test_export_to_classes_without_rotary_positions(tmp_path):
    """They are refused; a norm that only training uses is left out."""
    rotary, untied = ROPE, VitConfig(width=16, depth=1, heads=2, patch=8, pixels=16, untie_local_norm=True)
    with pytest.raises(WeightsError, match=r"no form for backbone.positions=rope"):
        huggingface.compose(rotary, build(rotary, seed=0).state_dict())
    module = build(untied, seed=0)
    write_layout(tmp_path / "b", huggingface.compose(untied, module.state_dict()))
    again = load_backbone(tmp_path / "b").module
    x = made(1, 3, 16, 16)
    torch.testing.assert_close(again(x).image, module(x).image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 36, "heads": 6}, r"takes heads of a multiple of 4 channels; got 6 \(backbone.width=36"),
        ({"position_offset": 0.0}, "backbone.position_offset=0.0 has no effect with backbone.positions=rope"),
        (
            {"position_std": 1},
            "backbone.position_std=1.0 has no effect with backbone.positions=rope; leave it at 0.02 or take",
        ),
        ({"position_antialias": True}, "backbone.position_antialias=True has no effect with backbone.positions=rope"),
        (
            {"positions": "table", "rope_base": 50},
            "backbone.rope_base=50.0 has no effect with backbone.positions=table",
        ),
        (
            {"positions": "table", "rope_rescale": 2},
            "rope_rescale=2.0 has no effect with backbone.positions=table; leave",
        ),
        ({"rope_rescale": 0.5}, "rope_rescale must be at least 1; got 0.5"),
        ({"rope_base": 1}, "rope_base must be above 1; got 1"),
        ({"positions": "alibi"}, "positions must be one of 'table' or 'rope'; got 'alibi'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        VitConfig.build({"positions": "rope"} | settings)


def test_defaults_of_the_other_kind_are_no_mistake():
    """Settings that are dumped and read again name all of them."""
    for positions in ("table", "rope"):
        config = VitConfig.build({"positions": positions})
        assert VitConfig.build(config.model_dump()) == config
