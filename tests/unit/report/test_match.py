"""Lines run between the middles of the patches that were matched."""

import re
from xml.etree import ElementTree

import torch
from PIL import Image

from dinoforge.features.matching import Matches
from dinoforge.report.match import match_picture


def pair():
    return Matches(torch.tensor([[0, 1], [3, 3]]), torch.tensor([[1, 1], [2, 0]]), torch.ones(2), torch.ones(2))


def test_svg_lines_run_between_the_centres_of_the_patches(tmp_path):
    """By hand: 4 x 4 patches of 8 pixels, drawn at 512: the centre of patch (0, 1) is at x = 192, y = 64."""
    images = (torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(3, 32, 32, dtype=torch.uint8))
    match_picture(tmp_path / "m.svg", images, pair(), patch=8)
    text = (tmp_path / "m.svg").read_text()
    root = ElementTree.fromstring(text)
    paths = [node.get("d") for node in root if node.tag.endswith("path")]
    assert paths == ["M192.0 64.0L728.0 192.0", "M448.0 448.0L600.0 320.0"]
    assert set(re.findall(r'href="(\w+):', text)) == {"data"}


def test_png_has_both_pictures_and_lines(tmp_path):
    images = (torch.full((3, 32, 32), 90, dtype=torch.uint8), torch.full((3, 32, 64), 90, dtype=torch.uint8))
    match_picture(tmp_path / "m.png", images, pair(), patch=8)
    with Image.open(tmp_path / "m.png") as file:
        picture = file.convert("RGB")
    assert picture.size == (512 + 24 + 512, 512)
    assert max(picture.getpixel((192, 64))) > 200
    assert picture.getpixel((5, 5)) == (90, 90, 90)
