"""PCA maps against scikit-learn, and the picture that is written."""

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA

from dinoforge.report.pca import components, pca_picture


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_directions_are_those_of_scikit_learn():
    patches = made(3, 5, 4, 12) * torch.linspace(3, 0.1, 12)
    want = PCA(3).fit_transform(patches.reshape(-1, 12).double().numpy())
    got = components(patches).reshape(-1, 3).numpy()
    for number in range(3):
        inside = (got[:, number] > 0) & (got[:, number] < 1)
        assert abs(np.corrcoef(got[inside, number], want[inside, number])[0, 1]) > 0.9999


def test_sign_and_range_are_fixed():
    patches = made(2, 6, 6, 8).abs() ** 3
    got = components(patches)
    torch.testing.assert_close(components(-patches).mean((0, 1, 2)) > 0.5, got.mean((0, 1, 2)) > 0.5)
    assert got.min() == 0
    assert got.max() == 1
    assert components(torch.ones(1, 2, 2, 4)).isfinite().all()


def test_a_row_of_images_and_a_row_of_maps(tmp_path):
    images = torch.full((3, 3, 32, 32), 200, dtype=torch.uint8)
    pca_picture(tmp_path / "p.png", images, {"before": made(3, 4, 4, 8), "after": made(3, 4, 4, 8)})
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (3 * 132 + 4, 3 * 132 + 4, 3)
    assert (picture[4:132, 4:132] == 200).all()
    assert picture[136:264, 4:132].std() > 10
