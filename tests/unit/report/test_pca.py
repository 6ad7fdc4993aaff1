"""The picture of PCA maps has a row of images and one for every set of patches."""

import numpy as np
import torch
from PIL import Image

from dinoforge.report.pca import pca_picture


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_row_of_images_and_a_row_of_maps(tmp_path):
    images = torch.full((3, 3, 32, 32), 200, dtype=torch.uint8)
    pca_picture(tmp_path / "p.png", images, {"before": made(3, 4, 4, 8), "after": made(3, 4, 4, 8)})
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (3 * 132 + 4, 3 * 132 + 4, 3)
    assert (picture[4:132, 4:132] == 200).all()
    assert picture[136:264, 4:132].std() > 10
