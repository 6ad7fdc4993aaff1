"""Laws of the masks: never more than asked for, no block across the whole grid, stratified, reproducible."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoforge.base.errors import ConfigError
from dinoforge.data.batch import masked_positions
from dinoforge.data.masks import MaskConfig, block_mask, draw_masks


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 16), st.integers(2, 16), st.floats(0, 1))
def test_never_more_than_asked(seed, rows, columns, share):
    target = int(rows * columns * share)
    mask = block_mask(
        random.Random(seed),
        grid=(rows, columns),
        target=target,
        largest=max(rows // 2 * columns, 1),
        config=MaskConfig(),
    )
    assert mask.shape == (rows, columns)
    assert mask.sum() <= target


def test_no_single_block_spans_the_grid():
    for seed in range(200):
        mask = block_mask(random.Random(seed), grid=(6, 6), target=12, largest=18, config=MaskConfig())
        assert not (mask.sum() <= 6 and (mask.all(0).any() or mask.all(1).any()))


def test_ratios_are_stratified():
    """Eight masked views of sixteen: sorted, their counts fall into the eight bins between 10 and 50 %."""
    edges = np.linspace(0.1, 0.5, 9) * 256
    for seed in range(20):
        masks = draw_masks(random.Random(seed), views=16, grid=(16, 16), config=MaskConfig(exact=False))
        counts = sorted(masks.sum(1).tolist())
        assert counts[:8] == [0] * 8
        for count, low, high in zip(counts[8:], edges, edges[1:], strict=False):
            assert int(low) - 12 <= count <= high  # the deficit of a mask is a few patches


def test_exact_masks_hide_the_upper_end_of_every_bin():
    """By hand: eight bins between 10 and 50 % of 256 patches end at 15, 20, … 50 %."""
    want = [0] * 8 + [int(256 * share) for share in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)]
    for seed in range(50):
        masks = draw_masks(random.Random(seed), views=16, grid=(16, 16), config=MaskConfig())
        assert sorted(masks.sum(1).tolist()) == want
    loose = [
        draw_masks(random.Random(s), views=16, grid=(16, 16), config=MaskConfig(exact=False)).sum() for s in range(50)
    ]
    assert len(set(map(int, loose))) > 10


def test_exact_masks_are_blocks_with_few_single_patches():
    """What is filled up is a small part: most hidden patches have a hidden neighbour to the right or left."""
    masks = draw_masks(random.Random(3), views=64, grid=(16, 16), config=MaskConfig()).unflatten(1, (16, 16)).numpy()
    beside = np.pad(masks, ((0, 0), (0, 0), (1, 1)))
    near = beside[:, :, :-2] | beside[:, :, 2:]
    assert near[masks].mean() > 0.9


def test_probability_and_ratio_do_what_they_say():
    everything = draw_masks(random.Random(0), views=4, grid=(8, 8), config=MaskConfig(probability=1.0))
    assert (everything.sum(1) > 0).all()
    assert draw_masks(random.Random(0), views=4, grid=(8, 8), config=MaskConfig(probability=0)).sum() == 0
    low = draw_masks(random.Random(0), views=8, grid=(16, 16), config=MaskConfig(ratio=(0.1, 0.1)))
    assert low.sum(1).max() <= 25


def test_other_shapes_of_blocks():
    long = [
        block_mask(random.Random(s), grid=(16, 16), target=30, largest=128, config=MaskConfig(aspect=0.1))
        for s in range(99)
    ]
    square = [
        block_mask(random.Random(s), grid=(16, 16), target=30, largest=128, config=MaskConfig(aspect=1.0))
        for s in range(99)
    ]
    reach = [np.mean([max(m.any(0).sum(), m.any(1).sum()) for m in masks]) for masks in (long, square)]
    assert reach[0] > reach[1] + 1
    small = block_mask(random.Random(0), grid=(16, 16), target=30, largest=128, config=MaskConfig(smallest_block=30))
    assert small.sum() <= 30


@pytest.mark.parametrize("ratio", [(0.5, 0.1), (0.1, 1.5), (-0.1, 0.5)])
def test_impossible_ratios(ratio):
    with pytest.raises(ConfigError, match=r"must be two shares of the patches, 0 <= low <= high <= 1"):
        MaskConfig.build({"ratio": ratio})


def test_positions_and_weights_by_hand():
    masks = torch.tensor([[[0, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 1, 1]]], dtype=torch.bool)
    index, weight = masked_positions(masks)
    assert index.tolist() == [1, 2, 6, 9, 10, 11]
    torch.testing.assert_close(weight, torch.tensor([0.5, 0.5, 1.0, 1 / 3, 1 / 3, 1 / 3]))
