"""The vote of patches, against a loop over pixels and neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate.dense.labels import MaskClasses
from dinoforge.evaluate.dense.trunk import trunk_of
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.segmentation_knn import SEGMENTATION_KNN, SegmentationKnnConfig, Voters, cell_shares
from dinoforge.model.features import Features
from given import Painted, painted_eyes

CLASSES = MaskClasses(("a", "b", "c"), 255)


def around(grey):
    """A direction on the circle for every grey."""
    turn = grey / 255 * 2 * torch.pi
    return torch.stack([turn.cos(), turn.sin()], -1)


def pictures(count=4, size=(8, 12), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, size) for _ in range(count)], [rng.choice([0, 1, 2, 255], size) for _ in range(count)]


def voters(known, **settings):
    trunk = trunk_of(painted_eyes(around, 2, side=8))
    return trunk, Voters(trunk, known, CLASSES, SegmentationKnnConfig(**settings), short_side=8, on_broken=print)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_shares_are_those_of_the_known_pixels(seed, rows, columns, patch):
    truth = np.random.default_rng(seed).choice([0, 1, 2, 255], (rows * patch, columns * patch))
    found = cell_shares(truth, CLASSES, grid=(rows, columns))
    for row in range(rows):
        for column in range(columns):
            cell = truth[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].ravel().tolist()
            known = [number for number in cell if number != 255]
            expected = [known.count(number) / max(len(known), 1) for number in range(3)]
            assert found[row, column].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("votes", ["shares", "majority"])
def test_votes_equal_a_slow_loop(votes):
    greys, masks = pictures()
    known = Painted(greys, masks)
    trunk, vote = voters(known, neighbours=5, temperature=0.3, votes=votes, rows_at_once=7)
    assert len(vote) == sum(
        (mask[y : y + 4, x : x + 4] != 255).any() for mask in masks for y in (0, 4) for x in (0, 4, 8)
    )
    asked = torch.from_numpy(pictures(1, seed=9)[0][0].astype(np.uint8))[None, None]
    features = trunk(asked)
    found = vote(features)
    bank = [
        (
            np.asarray(around(torch.tensor(float(grey[y : y + 4, x : x + 4].mean())))),
            mask[y : y + 4, x : x + 4].ravel().tolist(),
        )
        for grey, mask in zip(greys, masks, strict=True)
        for y in (0, 4)
        for x in (0, 4, 8)
    ]
    bank = [(vector, [n for n in cell if n != 255]) for vector, cell in bank if any(n != 255 for n in cell)]
    for row in range(2):
        for column in range(3):
            query = features[0].patches[0, row, column].numpy()
            nearest = sorted(bank, key=lambda one: -float(one[0] @ query))[:5]
            weights = np.exp([float(vector @ query) / 0.3 for vector, _ in nearest])
            total = np.zeros(3)
            for weight, (_, cell) in zip(weights / weights.sum(), nearest, strict=True):
                share = np.asarray([cell.count(number) / len(cell) for number in range(3)])
                total += weight * (share if votes == "shares" else np.eye(3)[share.argmax()])
            np.testing.assert_allclose(found[0, :, row, column], total, atol=1e-5)


def test_no_more_patches_vote_than_are_allowed():
    known = Painted(*pictures(6))
    few, again, other = (voters(known, bank=12, seed=seed)[1] for seed in (0, 0, 1))
    assert len(few) == 12
    assert torch.equal(few._patches, again._patches)
    assert not torch.equal(few._patches, other._patches)
    assert len(voters(known, bank=4)[1]) == 4
    assert len(voters(known, bank=1000)[1]) > 12


def test_which_pictures_vote_is_drawn_where_not_all_can():
    """Pictures of one grey each: the grey of a vote tells whose it is."""
    greys = [np.full((8, 12), 20 * number) for number in range(10)]
    known = Painted(greys, [np.full((8, 12), number % 3) for number in range(10)])
    seen = set[tuple[int, ...]]()
    for seed in range(6):
        _, vote = voters(known, bank=4, seed=seed)
        turns = torch.atan2(vote._patches[:, 1], vote._patches[:, 0]) % (2 * torch.pi)
        rows = (turns / (2 * torch.pi) * 255 / 20).round().int().tolist()
        assert len({*rows}) == 4
        assert vote._shares.argmax(1).tolist() == [row % 3 for row in rows]
        seen.add(tuple(rows))
    assert len(seen) > 1


def test_a_network_whose_grid_is_not_that_of_its_patch_votes_too():
    """Three rows of two cells for 8 by 12 pixels, whose patch would be 4."""
    eyes = painted_eyes(around, 2, side=8)
    eyes.backbone.module.forward = lambda images: Features(
        torch.zeros(len(images), 2), torch.zeros(len(images), 0, 2), torch.ones(len(images), 3, 2, 2)
    )
    mask = np.repeat([[0, 1]], 8, 0).repeat(6, 1)
    mask[6:] = 2
    config = SegmentationKnnConfig()
    known = Painted([np.zeros((8, 12))], [mask])
    vote = Voters(trunk_of(eyes), known, CLASSES, config, short_side=8, on_broken=print)
    assert vote._shares.argmax(1).tolist() == [0, 1, 0, 1, 2, 2]


def test_a_window_is_of_use_or_refused():
    with pytest.raises(ConfigError, match="window=8 has no effect with inference=whole; take inference=slide"):
        SegmentationKnnConfig.build({"window": 8, "inference": "whole"})


def test_a_map_of_other_sizes_is_voted_too():
    known = Painted(*pictures(2, size=(7, 11)))
    _, vote = voters(known)
    cells = vote([Features(torch.zeros(3, 2), torch.zeros(3, 0, 2), torch.randn(3, 2, 5, 2))])
    assert cells.shape == (3, 3, 2, 5)
    torch.testing.assert_close(cells.sum(1), torch.ones(3, 2, 5))


def test_a_backbone_that_knows_is_right_and_says_how():
    masks = [np.full((8, 8), number % 3) for number in range(9)]
    source = Painted([80 * mask for mask in masks], masks)
    config = SegmentationKnnConfig(neighbours=4)
    scores = SEGMENTATION_KNN.measure(painted_eyes(around, 2, side=8), Sides(source, source), config)
    found = {score.name: score for score in scores}
    assert found["miou"].value == 1
    assert "k=4, temperature 0.07, cosine, votes by shares of 36 patches of 9 train pictures" in found["miou"].protocol


def test_masks_of_nothing_known_vote_for_nothing():
    greys, _ = pictures(2)
    with pytest.raises(DataError, match="no patch of painted has a pixel whose class is known"):
        voters(Painted(greys, [np.full((8, 12), 255)] * 2))
    with pytest.raises(ConfigError, match="votes"):
        SegmentationKnnConfig.build({"votes": "all"})
