"""PCA maps against scikit-learn, the foreground against a planted one, and what they do where there is nothing to see."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dinoforge.features.parts import BACKGROUND, directions, foreground, maps, otsu, stretched


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(images=4, grid=8, width=16, *, sign=1.0, seed=0):
    """Objects of 3 x 4 patches inside every image, along one direction; between images a larger offset along another."""
    patches = 0.1 * made(images, grid, grid, width, seed=seed)
    mask = torch.zeros(images, grid, grid, dtype=torch.bool)
    for image in range(images):
        mask[image, 2:5, 1 + image % 3 : 5 + image % 3] = True
        patches[image, ..., 1] += 5.0 * image
    patches[mask] += sign * torch.nn.functional.one_hot(torch.tensor(0), width).float()
    return patches, mask


def test_directions_are_those_of_scikit_learn():
    rows = made(60, 12) * torch.linspace(3, 0.1, 12)
    want = PCA(3).fit_transform(rows.double().numpy())
    got = directions(rows, count=3).numpy()
    for number in range(3):
        assert abs(np.corrcoef(got[:, number], want[:, number])[0, 1]) > 0.999999
        assert (got[:, number] ** 3).sum() >= 0
        assert got[:, number].std() == pytest.approx(want[:, number].std())


def test_directions_that_do_not_exist_are_nothing():
    rows = made(10, 1) @ made(1, 5, seed=1)
    got = directions(rows, count=3)
    assert got[:, 0].std() > 0
    assert (got[:, 1:] == 0).all()
    assert directions(made(6, 2), count=3).shape == (6, 3)
    assert directions(torch.full((4, 3), 7.0), count=2).eq(0).all()
    assert directions(torch.tensor([[float("nan"), 1.0], [float("inf"), 2.0]]), count=2).isfinite().all()


@pytest.mark.parametrize("seed", range(6))
def test_otsu_equals_its_definition(seed):
    values = made(25, seed=seed).double().round(decimals=1)  # some are equal

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else -1.0

    got = otsu(values)
    candidates = values.unique()[:-1]
    assert between(got).item() == pytest.approx(max(between(t).item() for t in candidates))
    assert not (values == got).any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_planted_objects_are_the_foreground(sign):
    """Whichever way they differ from the ground, and however much whole images differ from one another."""
    patches, mask = planted(sign=sign)
    assert torch.equal(foreground(patches), mask)


def test_foreground_does_not_depend_on_the_order_of_images_or_on_a_rotation():
    patches, mask = planted()
    rotation = torch.linalg.qr(made(16, 16))[0]
    assert torch.equal(foreground(patches @ rotation), mask)
    assert torch.equal(foreground(patches.flip(0)), mask.flip(0))


def test_background_is_grey_and_parts_are_coloured_alike():
    patches, mask = planted()
    patches[..., 1] = 0.1 * made(4, 8, 8)
    upper = mask.clone()
    upper[:, 3:] = False
    patches[upper, 2] += 0.6  # a part that every object has
    colours = maps(patches)
    assert torch.equal(foreground(patches), mask)
    assert (colours[~mask.numpy()] == BACKGROUND).all()
    part, rest = colours[upper.numpy()].astype(float), colours[(mask & ~upper).numpy()].astype(float)
    apart = np.abs(part.mean(0) - rest.mean(0)).max()
    assert apart > 120
    assert part.std(0)[np.abs(part.mean(0) - rest.mean(0)).argmax()] < 30


@pytest.mark.parametrize(
    "patches",
    [
        torch.full((2, 4, 4, 8), 3.0),
        torch.zeros(1, 4, 4, 8),
        made(1, 1, 1, 8),
        made(1, 1, 2, 8),
        made(3, 1, 1, 8),
        made(1, 4, 4, 1),
        made(1, 4, 4, 2),
        torch.full((1, 2, 2, 4), float("nan")),
        made(3, 1, 1, 8).expand(3, 4, 4, 8),
        torch.full((1, 4, 4, 8), 1e4) + 1e-4 * made(1, 4, 4, 8),
    ],
)
def test_nothing_to_see_is_a_plain_picture(patches):
    colours = maps(patches)
    assert colours.shape == (*patches.shape[:3], 3)
    assert colours.dtype == np.uint8


def test_patches_all_alike_are_one_grey():
    colours = maps(torch.full((2, 4, 4, 8), 3.0))
    assert (colours == colours[0, 0, 0, 0]).all()
    assert (stretched(torch.full((5, 2), 3.0)) == 0.5).all()
