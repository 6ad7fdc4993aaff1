import cv2
import numpy as np
import pytest

from dinoforge.features.copies import describe, thumbnail
from dinoforge.features.pairs import LAYOUT_DUPLICATE, LAYOUT_LEAK, LayoutConfig, joined, layout_pairs, pairs_of
from dinoforge.features.search import SearchConfig, self_search
from dinoforge.features.verify import VerifyConfig, aligned_similarity
from scenes import scenes


def similarity(pairs, *, mirror=None, config=None):
    thumbnails = np.stack([thumbnail(picture) for pair in pairs for picture in pair])
    left = np.arange(len(pairs)) * 2
    return aligned_similarity(thumbnails, left, left + 1, mirror=mirror, config=config or VerifyConfig())


def noisy(picture, seed=0):
    return np.clip(picture + np.random.default_rng(seed).normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def test_the_same_picture_is_one():
    found = similarity([(p, p) for p in scenes(4)])
    np.testing.assert_allclose(found, 1, atol=1e-4)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_crop_is_found_wherever_it_was_taken_and_whichever_comes_first(swapped):
    """Crops that keep 70 % of the area, at edges that lie on no grid; the smaller may be the left or the right one."""
    rng = np.random.default_rng(0)
    pairs = []
    for picture in scenes(12):
        top, left = rng.integers(0, 96 - 80, 2)
        crop = picture[top : top + 80, left : left + 80]
        pairs.append((crop, picture) if swapped else (picture, noisy(crop)))
    assert similarity(pairs).min() > LAYOUT_DUPLICATE


def test_a_crop_of_another_aspect_is_found():
    assert similarity([(p, p[:, 9:87]) for p in scenes(6)]).min() > LAYOUT_DUPLICATE


def test_unlike_pictures_are_not_one():
    pictures = scenes(24)
    found = similarity(list(zip(pictures[:12], pictures[12:], strict=True)), config=VerifyConfig(promising=0))
    assert found.max() < 0.7


def test_a_mirror_image_is_one_only_where_it_is_asked_for():
    pairs = [(p, p[:, ::-1]) for p in scenes(4)]
    assert similarity(pairs).max() < 0.7
    assert similarity(pairs, mirror=np.asarray([True] * 4)).min() > 0.999


def test_each_colour_may_have_its_own_strength():
    pairs = [(p, (p * np.asarray([0.9, 0.5, 0.7])).astype(np.uint8)) for p in scenes(4)]
    assert similarity(pairs).min() > 0.97


def test_order_of_the_pairs_does_not_count():
    pictures = scenes(6)
    thumbnails = np.stack([thumbnail(p) for p in [*pictures, *[noisy(p[6:, 4:]) for p in pictures]]])
    left, right = np.arange(6), np.arange(6, 12)
    found = aligned_similarity(thumbnails, left, right, config=VerifyConfig())
    order = np.asarray([3, 5, 0, 1, 4, 2])
    again = aligned_similarity(thumbnails, right[order], left[order], config=VerifyConfig())
    np.testing.assert_allclose(again, found[order], atol=1e-5)


def test_any_number_of_processes_finds_the_same(monkeypatch):
    pictures = scenes(8)
    thumbnails = np.stack([thumbnail(p) for p in [*pictures, *[noisy(p[6:, 4:]) for p in pictures]]])
    left, right = (side.ravel() for side in np.meshgrid(np.arange(8), np.arange(8, 16), indexing="ij"))
    mirror, config = (left + right) % 3 == 0, VerifyConfig(promising=0.2)
    alone = aligned_similarity(thumbnails, left, right, mirror=mirror, config=config)
    assert len(np.unique(alone)) > 8
    monkeypatch.setattr("dinoforge.features.verify._GROUPS", 3)
    monkeypatch.setattr("dinoforge.features.verify._PLACES", 2)
    for workers in (1, 2, 3):
        found = aligned_similarity(thumbnails, left, right, mirror=mirror, config=config, workers=workers)
        np.testing.assert_array_equal(found, alone)


def test_flat_pictures_are_no_pair_and_no_division_by_zero():
    flat = np.full((40, 40, 3), 120, np.uint8)
    assert similarity([(flat, flat), (flat, scenes(1)[0])]).max() == -1
    nothing = aligned_similarity(
        np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64), config=VerifyConfig()
    )
    assert nothing.shape == (0,)


def test_joined_has_each_pair_once_with_its_best_similarity():
    found = joined(np.asarray([3, 1, 2, 5]), np.asarray([1, 3, 2, 4]), np.asarray([0.5, 0.8, 1.0, 0.7]))
    assert found.left.tolist() == [1, 4]
    assert found.right.tolist() == [3, 5]
    np.testing.assert_allclose(found.similarity, [0.8, 0.7], rtol=1e-6)
    assert found.above(0.7).left.tolist() == [1]  # more than, as in the paper


def test_a_pair_needs_to_be_seen_from_one_side_only():
    """Row 0 has many near ones, so 3 is not among its two nearest; but it is among those of 3."""
    x = np.asarray([[1, 0], [1, 0.01], [1, -0.01], [1, 0.5]], np.float32)
    found = pairs_of(self_search(x, count=2, config=SearchConfig()), threshold=0.6)
    assert (1, 3) in set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert (0, 3) in set(zip(found.left.tolist(), found.right.tolist(), strict=True))


def test_pairs_of_a_shard_name_the_rows_of_the_whole():
    near = self_search(np.eye(3, dtype=np.float32) + 1, count=1, config=SearchConfig())
    whole = pairs_of(near, threshold=0.0, first=0)
    assert len(whole)
    shard = type(near)(near.index[1:], near.similarity[1:], 1.0, "exact")
    assert set(pairs_of(shard, threshold=0.0, first=1).right.tolist()) <= {1, 2}


def test_layout_pairs_of_a_small_pool():
    pictures = scenes(30)
    copies = [noisy(cv2.resize(p[:84, 4:], (70, 70))) for p in pictures[:5]] + [p[:, ::-1] for p in pictures[5:8]]
    thumbnails = np.stack([thumbnail(p) for p in [*pictures, *copies]])
    found = layout_pairs(thumbnails, describe(thumbnails).astype(np.float16), config=LayoutConfig()).above(
        LAYOUT_DUPLICATE
    )
    assert found.left.tolist() == list(range(8))
    assert found.right.tolist() == list(range(30, 38))
    still = layout_pairs(thumbnails, describe(thumbnails), config=LayoutConfig(mirror=False)).above(LAYOUT_DUPLICATE)
    assert still.right.tolist() == list(range(30, 35))
    assert len(layout_pairs(thumbnails[:0], describe(thumbnails[:0]), config=LayoutConfig())) == 0


def sparse(seed, kind):
    """A page, a screen or a sign: mostly ground, and in each kind the same frame, bar or lines; the rest is of the seed."""
    rng = np.random.default_rng(seed)
    picture = np.full((128, 128, 3), 250, np.uint8)
    if kind == "page":
        for line in range(8, 120, 16):
            end = 120 if line < 104 else int(rng.integers(40, 110))
            letters = np.kron(rng.integers(0, 2, (4, 28)), np.ones((2, 4)))[:, : end - 8]
            picture[line : line + 8, 8:end] = (250 - 220 * letters[:8])[..., None]
    elif kind == "screen":
        picture[:14] = (30, 60, 120)
        for _ in range(7):
            top, left = rng.integers(24, 110), rng.integers(6, 80)
            picture[top : top + 6, left : left + int(rng.integers(15, 45))] = rng.integers(150, 235, 3)
    else:
        picture[:] = 0
        picture[20:108, 20:108] = (60, 60, 60)
        cv2.circle(
            picture, tuple(int(n) for n in rng.integers(35, 93, 2)), int(rng.integers(12, 20)), (190, 160, 90), -1
        )
    return picture


KINDS = ("page", "screen", "sign")


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_pictures_that_differ_are_not_one(kind):
    """They share a frame, a bar or lines; and a part of one kind is like a part of another."""
    pictures = [sparse(seed, kind) for seed in range(6)]
    others = [sparse(9, other) for other in KINDS if other != kind]
    pairs = [(one, other) for at, one in enumerate(pictures) for other in [*pictures[at + 1 :], *others]]
    assert similarity(pairs, config=VerifyConfig(promising=0)).max() < LAYOUT_LEAK


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_sparse_pictures_are_found(kind):
    pairs = []
    for seed in range(4):
        picture = sparse(seed, kind)
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        copies = [
            cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.resize(picture, (75, 80), interpolation=cv2.INTER_AREA),
            (picture * np.asarray([0.8, 0.6, 0.7])).astype(np.uint8), picture[:, 10:],
        ]  # fmt: skip
        pairs += [(picture, copy) for copy in copies]
    found = similarity(pairs)
    assert found.min() > LAYOUT_DUPLICATE, found.reshape(4, 4)
