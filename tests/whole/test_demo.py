"""The whole path on a small pool and on awkward folders: something comes out, and it says what it is."""

import json

import numpy as np
import pytest
from PIL import Image

import dinoforge

SMALL = {
    "backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2, "objective.head.prototypes": 64,
    "objective.head.hidden": 32, "objective.head.bottleneck": 16, "objective.group": 8, "plan.batch": 16,
    "plan.images": 96, "precision": "fp32", "workers": 0,
}  # fmt: skip


def test_a_polluted_pool(tmp_path):
    world = "toy://species?images=120&size=48&copies=0.2&junk=0.2"
    facts = dinoforge.demo(images=world, out=str(tmp_path / "d"), **SMALL)
    source = dinoforge.open_source(world)
    exact = int((source.columns["copy_kind"] == "exact").sum())
    broken = int((source.columns["junk_kind"] == "broken").sum())
    assert exact > 0 < broken
    curate = facts["curate"]
    assert curate["pool"] == 120
    assert curate["dropped"]["broken file"] == broken
    assert curate["dropped"]["exact copy"] >= exact  # junk of one colour may come twice
    assert curate["kept"] == 120 - sum(curate["dropped"].values())
    for name in ("knn_pixels", "knn_histogram", "knn_untrained", "knn_trained"):
        assert 0 <= facts[name] <= 1
    page = (tmp_path / "d" / "report.html").read_text()
    assert "exact copy" in page
    assert json.loads((tmp_path / "d" / "demo.json").read_text())["report"] == facts["report"]
    again = dinoforge.demo(images=world, out=str(tmp_path / "d"), **SMALL)
    assert again["knn_trained"] == facts["knn_trained"]


def pictures(folder, kind):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        if kind == "alike":
            pixels = np.full((40, 50, 3), (0, 90, 200), np.uint8)
        elif kind == "one colour":
            pixels[:] = number * 40
        elif kind == "one huge" and number == 2:
            pixels = np.zeros((30, 9000, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize("kind", ["five", "alike", "one colour", "one huge"])
def test_pictures_of_ones_own(kind, tmp_path):
    facts = dinoforge.demo(images=pictures(tmp_path / "p", kind), out=str(tmp_path / "d"), **SMALL)
    assert facts["curate"]["kept"] == (1 if kind == "alike" else 5)
    assert facts["knn_trained"] is None
    assert facts["rank"] >= 0
    assert (tmp_path / "d" / "report.html").stat().st_size > 10_000
