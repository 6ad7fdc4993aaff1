"""One program for every size: against ``interpolate``, against a slow definition, and against the backbone."""

import math

import pytest
import torch
import torch.nn.functional as F

from dinoforge.export.dynamic import cubic, exported, features_of, resampled, resampling
from dinoforge.model.layers import resize_positions
from dinoforge.model.vit import VitConfig
from perturbed import perturbed

SIZE = {"position_offset": 0.0, "position_antialias": True}
SMALL = {"width": 32, "depth": 1, "heads": 2, "patch": 8, "pixels": 32}
KINDS = {
    "mlp, table with offset": VitConfig(**SMALL),
    "swiglu, registers, antialiased": VitConfig(**SMALL, ffn="swiglu", registers=3, **SIZE),
    "rope, registers": VitConfig(**SMALL, registers=2, positions="rope", untie_local_norm=True),
    "bare": VitConfig(**SMALL, layerscale=None, qkv_bias=False, proj_bias=False, ffn_bias=False, channels=5),
}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GRIDS = [(1, 1), (1, 7), (2, 3), (4, 4), (4, 9), (9, 4), (5, 5), (16, 16), (16, 9), (15, 16), (17, 17), (32, 32), (37, 37),
         (37, 36), (40, 22), (64, 2), (100, 61)]  # fmt: skip


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("side", [1, 4, 16, 37])
def test_matrices_are_torchs_bicubic_resampling(side, offset, antialias):
    table = noise(1, 1 + side * side, 6, seed=side)
    for grid in GRIDS:
        want = resize_positions(table, grid=grid, offset=offset, antialias=antialias)
        mine = resampled(table, grid=grid, offset=offset, antialias=antialias)
        assert float((mine - want).abs().max()) <= 3e-6 * float(want.abs().max()), grid


def slow(wanted, side, scale, antialias):
    """Weights one by one, in double precision: the places that a new one is made of, and the kernel at each."""
    a = -0.5 if antialias else -0.75

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    rows = torch.zeros(wanted, side, dtype=torch.float64)
    for new in range(wanted):
        centre = scale * (new + 0.5)
        if antialias:
            for old in range(side):
                rows[new, old] = kernel((old + 0.5 - centre) / max(scale, 1))
            rows[new] /= rows[new].sum()
            continue
        first = math.floor(centre - 0.5) - 1
        for place in range(first, first + 4):
            rows[new, min(max(place, 0), side - 1)] += kernel(place - (centre - 0.5))
    return rows


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("wanted", "side"), [(7, 5), (3, 8), (8, 8), (1, 4), (13, 1)])
def test_matrices_are_their_definition(wanted, side, antialias):
    """Rows sum to 1: a table that is the same everywhere stays so."""
    scale = torch.tensor(side / (wanted + 0.1))
    found = resampling(wanted, side, scale=scale, antialias=antialias, device=scale.device)
    torch.testing.assert_close(found.double(), slow(wanted, side, float(scale), antialias), rtol=0, atol=2e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(wanted))


def test_the_native_grid_takes_the_table_as_it_is():
    """Bit for bit, offset or not; a grid of as many patches that is no square does not."""
    table = noise(1, 17, 6)
    for antialias in (False, True):
        for offset in (0.0, 0.1):
            assert torch.equal(resampled(table, grid=(4, 4), offset=offset, antialias=antialias), table)
            assert not torch.allclose(resampled(table, grid=(2, 8), offset=offset, antialias=antialias), table)


def test_the_kernel_by_hand():
    """1 in the middle, 0 at every other whole place; at 1/2 it is 1/2 - a/8, at 3/2 it is a/8 (Keys 1981)."""
    at = torch.tensor([[0.0, 1.0, -1.0, 2.0, 3.0, 0.5, 1.5]])
    assert cubic(at, -0.5).tolist() == [[1, 0, 0, 0, 0, 0.5625, -0.0625]]
    assert cubic(at, -0.75).tolist() == [[1, 0, 0, 0, 0, 0.59375, -0.09375]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", KINDS)
def test_a_program_gives_the_backbones_features_at_every_size(name):
    config = KINDS[name]
    backbone = perturbed(config)
    run = exported(backbone).module()
    with torch.no_grad():
        for count, height, width in ((1, 32, 32), (3, 16, 56), (2, 48, 24), (1, 80, 80), (5, 16, 16)):
            images = noise(count, config.channels, height, width)
            want, found = backbone.module(images), run(images)
            assert set(found) == {"image", "patches"} | ({"registers"} if config.registers else set())
            mine = features_of(found)
            for part in ("image", "registers", "patches"):
                torch.testing.assert_close(getattr(mine, part), getattr(want, part), rtol=0, atol=1e-5)
    with pytest.raises(AssertionError, match="Guard failed"):
        run(noise(1, config.channels, 33, 32))


@pytest.mark.usefixtures("unchecked")
def test_attention_in_a_program_knows_no_size():
    """The way that is taken in training by the number of tokens is not; the backbone keeps its own."""
    backbone = perturbed(KINDS["bare"])
    exported(backbone)
    assert {block.attn.way for block in backbone.module.blocks} == {"auto"}


def test_what_it_is_compared_with_resamples():
    """So that the tests above can fail: away from the native grid a table taken otherwise gives other features."""
    table = noise(1, 17, 6)
    plain = F.interpolate(table[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=(5, 5), mode="bilinear")
    assert not torch.allclose(
        resampled(table, grid=(5, 5), offset=0.0, antialias=False)[:, 1:], plain.flatten(2).mT, atol=1e-2
    )
