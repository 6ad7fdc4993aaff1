"""Features at any size: padding by hand, a map back on its pixels, blocks of ours and of others."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoforge.base.errors import ConfigError
from dinoforge.evaluate.dense.trunk import margins, trunk_of
from dinoforge.features.extract import Extraction, normalised
from dinoforge.features.eyes import Eyes
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.model.weights import Backbone, Preprocessing
from given import noise, painted_eyes

PATCH = 4


def eyes(registers=0):
    config = VitConfig(width=16, depth=3, heads=2, patch=PATCH, pixels=16, registers=registers)
    module = Vit(config)
    module.init_weights(torch.Generator().manual_seed(0))
    return Eyes(
        Backbone(module, config, Preprocessing(side=18, short_side=18)), Extraction(torch.device("cpu")), folder=None,
        on_broken=print,
    )  # fmt: skip


def images(height, width, count=2):
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(("length", "expected"), [(8, (0, 0)), (7, (0, 1)), (6, (1, 1)), (5, (1, 2)), (1, (1, 2))])
def test_an_odd_pixel_comes_behind(length, expected):
    assert margins(length, 4) == expected


@pytest.mark.parametrize("registers", [0, 2])
def test_pictures_are_centred_among_zeros(registers):
    trunk = trunk_of(eyes(registers), 2)
    shown = images(9, 15)
    padded = torch.zeros(2, 3, 12, 16)
    padded[:, :, 1:10, :15] = normalised(shown, trunk.preprocessing)
    with torch.no_grad():
        expected = trunk.module.intermediate(padded, 2)
    for one, other in zip(trunk(shown), expected, strict=True):
        torch.testing.assert_close(one.patches, other.patches)
        torch.testing.assert_close(one.image, other.image)
    assert trunk(shown)[0].patches.shape == (2, 3, 4, 16)
    assert not trunk(shown)[0].patches.requires_grad


def test_blocks_are_asked_for_by_count_or_number():
    whole = eyes()
    last, numbered, bare = trunk_of(whole, 2), trunk_of(whole, (0, 2)), trunk_of(whole, (0, 2), norm=False)
    shown = images(8, 8)
    assert (last.numbers, last.count, numbered.numbers) == ((1, 2), 2, (0, 2))
    torch.testing.assert_close(last(shown)[1].patches, numbered(shown)[1].patches)
    assert not torch.allclose(bare(shown)[0].patches, numbered(shown)[0].patches)
    with pytest.raises(ConfigError, match="the backbone has blocks 0 to 2"):
        trunk_of(whole, (1, 3))


def test_what_a_backbone_has_not_is_said(capsys):
    assert trunk_of(eyes(), 4).numbers == (0, 1, 2)
    assert "3 blocks, fewer than 4" in capsys.readouterr().err
    foreign = trunk_of(painted_eyes(lambda grey: grey[..., None], 1), 4, norm=False)
    assert "does not show its blocks" in capsys.readouterr().err
    assert (foreign.numbers, foreign.count, foreign.norm) == ((), 1, True)
    trunk_of(painted_eyes(lambda grey: grey[..., None], 1), 1)
    assert capsys.readouterr().err == ""


def test_sides_are_multiples_of_the_patch():
    trunk = trunk_of(eyes())
    assert trunk.usual_side() == 20  # 18 is as near to 16: up
    assert trunk.usual_side(1.25) == 24
    assert trunk_of(painted_eyes(lambda grey: grey[..., None], 1, side=1)).usual_side() == 4


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 21), st.integers(1, 21), st.sampled_from([1, 2, 4]))
def test_some_pixels_of_a_map_are_those_of_the_whole(height, width, finer):
    """Drawn pixels, and the map enlarged by its definition: what lies between four cells is their mixture."""
    trunk = trunk_of(painted_eyes(lambda grey: grey[..., None], 1))
    rows, columns = -(-height // PATCH) * finer, -(-width // PATCH) * finer
    cells = noise(2, 3, rows, columns)
    whole = trunk.on_pixels(cells, height, width)
    assert whole.shape == (2, 3, height, width)
    places = torch.randint(height * width, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = whole.flatten(2).gather(2, places[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(trunk.at_pixels(cells, places, height, width), expected, atol=1e-5, rtol=1e-4)
    top, left = margins(height, PATCH)[0], margins(width, PATCH)[0]
    y, x = height - 1, width // 2
    at = [(place + 0.5) / PATCH * finer - 0.5 for place in (y + top, x + left)]
    expected = torch.zeros(2, 3)
    for row in range(rows):
        for column in range(columns):
            weight = 1.0
            for place, cell, count in ((at[0], row, rows), (at[1], column, columns)):
                weight *= max(0.0, 1 - abs(min(max(place, 0), count - 1) - cell))
            expected += weight * cells[:, :, row, column]
    torch.testing.assert_close(whole[:, :, y, x], expected, atol=1e-5, rtol=1e-4)


def test_the_colour_around_a_picture_is_zero_once_normalised():
    trunk = trunk_of(eyes())
    filled = torch.from_numpy(trunk.fill.round()).to(torch.uint8).view(1, 3, 1, 1)
    assert normalised(filled, trunk.preprocessing).abs().max() < 0.5 / 255 / 0.22
    other = dataclasses.replace(trunk, preprocessing=Preprocessing(mean=(0.5,), std=(1.0,)))
    assert other.fill.tolist() == [127.5] * 3


def test_precision_is_that_of_the_extraction_and_the_answer_is_float32():
    whole = eyes()
    whole.how = Extraction(torch.device("cpu"), "bf16")
    found = trunk_of(whole)(images(8, 8))[0].patches
    assert found.dtype == torch.float32
    exact = trunk_of(eyes())(images(8, 8))[0].patches
    assert not torch.equal(found, exact)
    assert F.cosine_similarity(found, exact, dim=-1).min() > 0.99
