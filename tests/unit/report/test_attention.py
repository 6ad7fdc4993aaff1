"""Heat is a scale one can state; pictures come out whole."""

import numpy as np
import torch
from PIL import Image

from dinoforge.report.attention import attention_picture, heat, overlaid


def test_the_scale():
    """By hand: a map whose largest value is above three means is lightest there; nothing is darkest."""
    attention = torch.zeros(1, 4, 4)
    attention[0, 0, 0], attention[0, 0, 1] = 0.8, 0.2
    colours = heat(attention)
    assert colours[0, 0, 0].tolist() == [252, 253, 191]
    assert colours[0, 0, 1].tolist() == [81, 18, 124]  # a quarter of the way is the second stop
    assert colours[0, 3, 3].tolist() == [0, 0, 4]


def test_attention_to_all_alike_is_dull_and_light_only_rises():
    flat = heat(torch.full((1, 3, 3), 0.1))
    assert (flat == flat[0, 0, 0]).all()
    assert flat.sum(-1).max() < 300
    ramp = heat(torch.linspace(0, 1, 64).square().view(1, 8, 8)).astype(int).sum(-1).flatten()
    assert (np.diff(ramp) >= 0).all()
    assert heat(torch.zeros(1, 2, 2)).max() == 4
    assert heat(torch.full((1, 2, 2), float("nan"))).max() == 4


def test_the_heat_lies_where_the_attention_is():
    images = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    attention = torch.zeros(1, 4, 4)
    attention[0, 1, 2] = 1.0
    picture = overlaid(images, attention)[0].astype(int).sum(-1)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row // 8, column // 8) == (1, 2)


def test_a_row_for_the_mean_and_one_for_every_head(tmp_path):
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    attention = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    attention_picture(tmp_path / "a.png", images, attention)
    attention_picture(tmp_path / "one.png", images, attention[:, :1])
    with Image.open(tmp_path / "a.png") as picture, Image.open(tmp_path / "one.png") as one:
        assert picture.size == (2 * 132 + 4, 5 * 132 + 4)
        assert one.size == (2 * 132 + 4, 2 * 132 + 4)
