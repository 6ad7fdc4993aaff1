"""The transformer's parts against slow definitions; subsets, positions, intermediate layers."""

import math

import pytest
import torch

from dinoforge.base.errors import ConfigError
from dinoforge.base.random import torch_generator
from dinoforge.model.attention import GROUPS, attend, attend_packed
from dinoforge.model.layers import (
    Attention,
    Subset,
    SwiGlu,
    drop_rates,
    resize_positions,
    swiglu_hidden,
)
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig

WAYS = ("auto", "fused", "written_out")


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_equals_its_definition():
    query, key, value = made(2, 3, 5, 4), made(2, 3, 5, 4, seed=1), made(2, 3, 5, 4, seed=2)
    want = torch.empty_like(query)
    for b in range(2):
        for h in range(3):
            for t in range(5):
                weights = torch.stack([query[b, h, t] @ key[b, h, s] / math.sqrt(4) for s in range(5)]).softmax(0)
                want[b, h, t] = sum(weights[s] * value[b, h, s] for s in range(5))
    for way in WAYS:
        got = attend(torch.stack([query, key, value]).permute(1, 3, 0, 2, 4), way)
        torch.testing.assert_close(got.unflatten(-1, (3, 4)).transpose(1, 2), want)


@pytest.mark.parametrize("way", WAYS)
def test_attention_in_bf16_stays_near_its_definition(way):
    """Values and gradients within bf16's rounding of the answer in float64."""
    rough = made(2, 9, 3, 3, 4).bfloat16().requires_grad_()
    exact = rough.detach().double().requires_grad_()
    want, got = attend(exact, "fused"), attend(rough, way)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=0.02, atol=0.02)
    want.square().sum().backward()
    got.square().sum().backward()
    torch.testing.assert_close(rough.grad.double(), exact.grad, rtol=0.05, atol=0.05)


def test_gradients_of_attention_written_out():
    """Against finite differences, in float64."""
    assert torch.autograd.gradcheck(lambda x: attend(x, "written_out"), made(2, 3, 3, 2, 2).double().requires_grad_())


SHAPES = [(2, 37), (3, 5), (1, 50), (4, 5), (2, 17), (1, 1)]
"""Samples and tokens of groups, more than one call for each is made for on a GPU."""


def group_by_group(qkv, shapes, heads, way):
    """Attention of each group on its own."""
    groups = qkv.split([samples * tokens for samples, tokens in shapes])
    return torch.cat(
        [attend(group.view(*shape, 3, heads, -1), way).flatten(0, 1) for group, shape in zip(groups, shapes, strict=True)]
    )  # fmt: skip


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1], SHAPES[:GROUPS]])
@pytest.mark.parametrize("way", WAYS)
def test_packed_attention_is_that_of_each_group(way, shapes):
    packed = made(sum(samples * tokens for samples, tokens in shapes), 3 * 2 * 4).double()
    got = attend_packed(packed, shapes, 2, way)
    torch.testing.assert_close(got, group_by_group(packed, shapes, 2, "written_out"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("way", ["auto", "fused"])
def test_packed_attention_in_one_call_on_a_gpu(way):
    """Values and gradients within bf16's rounding of each group's own, computed in float32 from the same numbers."""
    assert len(SHAPES) > GROUPS
    heads, channels = 2, 64
    rows = sum(samples * tokens for samples, tokens in SHAPES)
    rough = made(rows, 3 * heads * channels).cuda().bfloat16().requires_grad_()
    exact = rough.detach().float().requires_grad_()
    towards = made(rows, heads * channels, seed=1).cuda().bfloat16()
    got, want = attend_packed(rough, SHAPES, heads, way), group_by_group(exact, SHAPES, heads, "written_out")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)
    got.backward(towards)
    want.backward(towards.float())
    torch.testing.assert_close(rough.grad.float(), exact.grad, rtol=0.05, atol=0.05)


def test_rows_of_qkv_are_queries_keys_values_head_by_head():
    """By hand: with one head's value rows zero, that head adds nothing to the output."""
    attention = Attention(8, 2, qkv_bias=False, proj_bias=False)
    with torch.no_grad():
        attention.proj.weight.copy_(torch.eye(8))
        attention.qkv.weight.copy_(made(24, 8))
        attention.qkv.weight[16:20] = 0  # values of head 0
    out = attention(made(3, 8), [(1, 3)])
    assert (out[..., :4] == 0).all()
    assert (out[..., 4:] != 0).all()


def test_swiglu_gates_with_its_first_half():
    layer = SwiGlu(4, 8, bias=False)
    with torch.no_grad():
        layer.w12.weight[:8] = 0  # silu(0) = 0
    assert (layer(made(1, 2, 4)) == 0).all()


@pytest.mark.parametrize(("requested", "hidden"), [(6144, 4096), (4096, 2736), (3072, 2048), (1536, 1024)])
def test_swiglu_width(requested, hidden):
    assert swiglu_hidden(requested) == hidden


@pytest.mark.parametrize("registers", [0, 3])
def test_class_attention_equals_its_definition(registers):
    """Token by token and head by head, from the last block's own matrices; what goes to no patch is left out."""
    config = VitConfig(width=12, depth=3, heads=3, patch=4, pixels=16, registers=registers)
    module, images = build(config, seed=0).double().eval(), made(2, 3, 8, 12).double()
    with torch.no_grad():
        for block in module.blocks:
            block.attn.qkv.weight.mul_(30)  # fresh weights attend to all alike
        got = module.class_attention(images)
        x = module.embed(images)
        shape, x = x.shape[:2], x.flatten(0, 1)
        for block in module.blocks[:2]:
            x = block(x, [shape])
        last = module.blocks[2]
        normed = last.norm1(x).view(*shape, 12)
        rows = last.attn.qkv.weight.view(3, 3, 4, 12)  # queries, keys, values; heads; channels
        assert got.shape == (2, 3, 2, 3)
        for image in range(2):
            for head in range(3):
                query = rows[0, head] @ normed[image, 0]
                scores = [query @ (rows[1, head] @ normed[image, token]) / 2 for token in range(normed.shape[1])]
                share = torch.stack(scores).softmax(0)
                assert share[1 + registers :].sum() < 1
                torch.testing.assert_close(
                    got[image, head].double().flatten(), share[1 + registers :], rtol=1e-5, atol=1e-6
                )


SIZES = {
    "small": (VitConfig(width=384, depth=12, heads=6, pixels=518), 22_056_576, 175),
    "base": (VitConfig(width=768, depth=12, heads=12, pixels=518), 86_580_480, 175),
    "large": (VitConfig(width=1024, depth=24, heads=16, pixels=518), 304_368_640, 343),
    "giant": (VitConfig(width=1536, depth=40, heads=24, pixels=518, ffn="swiglu"), 1_136_480_768, 567),
    "giant, registers": (
        VitConfig(width=1536, depth=40, heads=24, pixels=518, ffn="swiglu", registers=4), 1_136_486_912, 568,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_released_sizes(name):
    """Parameters and tensors of the released models (counted on the official modules)."""
    from dinoforge.model.vit import Vit

    config, parameters, tensors = SIZES[name]
    with torch.device("meta"):
        state = Vit(config).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert len(state) == tensors


def test_a_branch_on_all_samples_is_the_plain_block():
    block, x = (
        build(VitConfig(width=16, depth=1, heads=2, patch=8, pixels=16, layerscale=0.5), seed=0).blocks[0],
        made(4, 5, 16),
    )
    every, x = Subset(torch.arange(4), 1.0), x.flatten(0, 1)
    torch.testing.assert_close(block(x, [(4, 5)], [(every, every)]), block(x, [(4, 5)]))


def test_expectation_over_subsets_is_the_plain_branch():
    """Over all pairs of three samples, each scaled by 3/2, the mean is the whole branch (a law of the scale)."""
    block, x = (
        build(VitConfig(width=16, depth=1, heads=2, patch=8, pixels=16, layerscale=0.5), seed=0).blocks[0],
        made(3, 5, 16),
    )
    nothing = Subset(torch.zeros(0, dtype=torch.long), 1.0)
    x, shapes = x.flatten(0, 1), [(3, 5)]
    some = [block(x, shapes, [(Subset(torch.tensor(pair), 1.5), nothing)]) for pair in ((0, 1), (0, 2), (1, 2))]
    want = x + block.ls1.gamma * block.attn(block.norm1(x), shapes)
    torch.testing.assert_close(torch.stack(some).mean(0), want)


def test_rates_rise_to_the_last_block_or_are_all_the_same():
    assert drop_rates(3, 0.2, uniform=False) == [0.0, 0.1, 0.2]
    assert drop_rates(3, 0.2, uniform=True) == [0.2, 0.2, 0.2]


def cubic(x, a):
    """Keys' kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("grid", [(7, 7), (3, 9), (20, 16)])
def test_offset_resampling_equals_its_formula(grid):
    """source = (target + 0.5) / s - 0.5 with s = (h + 0.1) / M, Keys' kernel with a = -0.75, borders repeated."""
    side = 16
    table = made(1, 1 + side * side, 2).double()
    image = table[0, 1:].unflatten(0, (side, side))
    want = torch.zeros(*grid, 2, dtype=torch.float64)
    weights = []
    for size in grid:
        scale = (size + 0.1) / side
        rows = torch.zeros(size, side, dtype=torch.float64)
        for target in range(size):
            source = (target + 0.5) / scale - 0.5
            for tap in range(math.floor(source) - 1, math.floor(source) + 3):
                rows[target, min(max(tap, 0), side - 1)] += cubic(source - tap, -0.75)
        weights.append(rows)
    want = torch.einsum("ay,bx,yxd->abd", *weights, image)
    got = resize_positions(table, grid=grid, offset=0.1, antialias=False)
    torch.testing.assert_close(got[0, 1:].unflatten(0, grid), want, rtol=0, atol=2e-5)
    assert torch.equal(got[:, :1], table[:, :1])


def test_positions_of_the_native_grid_are_untouched():
    table = made(1, 17, 3)
    assert resize_positions(table, grid=(4, 4), offset=0.1, antialias=False) is table
    assert resize_positions(table, grid=(2, 8), offset=0.1, antialias=False) is not table


def test_intermediate_layers_end_with_the_output():
    vit, x = (
        build(VitConfig(width=16, depth=3, heads=2, patch=8, pixels=16, registers=2), seed=0).eval(),
        made(2, 3, 16, 24),
    )
    last = vit.intermediate(x, 2)
    torch.testing.assert_close(last[1].patches, vit(x).patches)
    torch.testing.assert_close(last[0].image, vit.intermediate(x, [1])[0].image)
    for layers in (4, [0, 3], [-1], 0):
        with pytest.raises(ValueError, match="asks for blocks that a backbone of 3 blocks does not have"):
            vit.intermediate(x, layers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 50, "heads": 4}, "backbone.width=50 is no multiple of backbone.heads=4"),
        ({"pixels": 30, "patch": 8}, "backbone.pixels=30 is no multiple of backbone.patch=8; 24 or 32 would be"),
        ({"drop_path": 1.0}, "drop_path must be below 1; got 1.0"),
        ({"ffn": "relu"}, "ffn must be one of 'mlp' or 'swiglu'; got 'relu'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        VitConfig.build(settings)


@pytest.mark.parametrize("positions", ["table", "rope"])
def test_the_residual_stream_stays_in_float32(positions):
    """In bfloat16 a branch of a hundred thousandth would be lost beside what it is added to."""
    vit = build(VitConfig(width=32, depth=2, heads=2, patch=8, pixels=32, registers=1, positions=positions), seed=0)
    images = torch.zeros(1, 3, 32, 32)
    masks = torch.ones(1, 16, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        assert vit.embed(images).dtype == vit.embed(images, masks).dtype == torch.float32


def test_an_offset_of_a_patch_is_no_offset():
    """The table would be resampled to another number of patches than the image has."""
    with pytest.raises(ConfigError, match="position_offset"):
        VitConfig.build({"position_offset": 1.0})


def test_positions_start_as_wide_as_they_are_set():
    """And at the official spread they are what they were before there was a setting."""
    table = torch.empty(1, 1 + 256, 64)
    torch.nn.init.trunc_normal_(table, std=0.02, generator=torch_generator(3, "backbone"))
    official = build(VitConfig(width=64, depth=1, heads=2, patch=2, pixels=32), seed=3)
    torch.testing.assert_close(official.pos_embed.detach(), table, rtol=0, atol=0)
    wide = build(VitConfig(width=64, depth=1, heads=2, patch=2, pixels=32, position_std=1.0), seed=3)
    torch.testing.assert_close(wide.pos_embed.detach(), 50 * table)
    torch.testing.assert_close(wide.blocks[0].mlp.fc1.weight, official.blocks[0].mlp.fc1.weight)
    with pytest.raises(ConfigError, match="position_std must be above 0; got 0"):
        VitConfig.build({"position_std": 0})
