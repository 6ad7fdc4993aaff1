"""`evaluate tasks=depth`: real rooms to the end, units, and what is refused."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinoforge
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.model.head_files import read_any_head
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone, save_backbone

ROOMS = Path(__file__).parents[2] / ".." / "shared" / "data" / "depth_7scenes"
MICRO = VitConfig(width=128, depth=4, heads=4, patch=8, pixels=48, layerscale=None, init_std=0.06)
SMALL = Preprocessing(short_side=48, side=48)


def untrained(path, config, preprocessing, seed=0):
    save_backbone(path, Backbone(build(config, seed=seed), config, preprocessing))
    return str(path)


def measured(backbone, data, **words):
    found = dinoforge.evaluate(backbone=backbone, tasks="depth", data=data, features="none", **words)
    return {score.name: score.value for score in found.scores}


@pytest.mark.long
@pytest.mark.skipif(not ROOMS.is_dir(), reason="the excerpt of 7-Scenes is not here")
@pytest.mark.parametrize(("head", "updates"), [("linear", 40), ("linear4", 40), ("dpt", 2)])
def test_real_rooms_are_measured_to_the_end(head, updates, tmp_path):
    backbone, began = untrained(tmp_path / "b", MICRO, SMALL), time.perf_counter()
    words = {"depth.head": head, "depth.iterations": updates, "depth.batch": 4, "save_heads": str(tmp_path / "heads")}
    found = measured(backbone, str(ROOMS), **words)
    print(f"{head}: {updates} updates, {time.perf_counter() - began:.0f} s, rmse {found['rmse']:.3f} m")
    assert 0.1 < found["rmse"] < 3
    assert read_any_head(tmp_path / "heads" / "depth", load_backbone(tmp_path / "b")).facts.range == (0.001, 10.0)


def folder(path, maps, kind=np.uint8):
    """Grey pictures of 16 by 12 pixels, beside each its map, and the table that names both."""
    path.mkdir()
    lines = ["file,depth,split"]
    for number, depth in enumerate(maps):
        Image.fromarray(np.full((12, 16, 3), 40 * number, np.uint8)).save(path / f"{number}.png")
        Image.fromarray(np.asarray(depth, kind)).save(path / f"{number}_depth.png")
        lines.append(f"{number}.png,{number}_depth.png,{'test' if number % 5 == 4 else 'train'}")
    (path / "scenes.csv").write_text("\n".join(lines) + "\n")
    return str(path / "scenes.csv")


def test_a_unit_is_asked_for_and_then_measured(tmp_path, capsys):
    data = folder(tmp_path / "a", [np.full((12, 16), 20 + n) for n in range(5)])
    words = {"depth.iterations": 2}
    with pytest.raises(DataError, match=r"0\.png has depth as uint8 numbers without a unit; 16-bit integers are mill"):
        measured("pixels:8", data, **words)
    assert {"rmse", "delta1"} <= measured("pixels:8", f"{data}?depth_unit=centimetres", **words).keys()
    assert "depth is in centimetres" in capsys.readouterr().err
    assert {"silog", "delta1_aligned"} <= measured("pixels:8", data, **words, **{"depth.unit": "disparity"}).keys()
    for odd, why in (
        ({"depth.unit": "feet"}, "depth.unit: it takes metres, centimetres"),
        ({"depth.head": "dpt", "depth.unit": "metres"}, "depth.head=dpt needs what blocks give"),
        ({"depth.nearest": 2, "depth.farthest": 1}, "nearest=2 must be below farthest=1"),
    ):
        with pytest.raises(ConfigError, match=why) as error:
            measured("pixels:8", data, **words, **odd)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(DataError, match="has no depth for its images"):
        measured("pixels:8", str(tmp_path / "a" / "0.png"), **words)
