"""The whole path on a small pool and on awkward folders: something comes out, and it says what it is."""

import json

import numpy as np
import pytest
from PIL import Image

import dinoforge
from dinoforge.base.errors import ConfigError, RunError
from dinoforge.verbs import demo
from dinoforge.verbs.demo import _curate

SMALL = {
    "backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2, "objective.head.prototypes": 64,
    "objective.head.hidden": 32, "objective.head.bottleneck": 16, "objective.group": 8, "plan.batch": 16,
    "plan.images": 96, "precision": "fp32", "workers": 0,
}  # fmt: skip


def test_a_polluted_pool(tmp_path):
    world = "toy://species?images=160&copies=0.2&junk=0.2&leaks=0.05"
    facts = dinoforge.demo(images=world, out=str(tmp_path / "d"), **SMALL)
    columns = dinoforge.open_source(world).columns
    train = columns["split"] == "train"
    junk, leak = columns["role"] == "junk", columns["role"] == "leak"
    exact, broken = columns["copy_kind"] == "exact", columns["junk_kind"] == "broken"
    curate = facts["curate"]
    assert curate["pool"] == int(train.sum()) < 160
    assert curate["dropped"]["broken file"] == int(broken.sum()) > 0
    assert curate["dropped"]["exact copy"] >= int((exact & (columns["role"] == "copy")).sum()) > 0
    assert curate["kept"] == curate["pool"] - sum(curate["dropped"].values())
    trained_on = set(dinoforge.open_source(str(tmp_path / "d" / "curated" / "manifest.parquet")).columns["id"].tolist())
    assert len(trained_on) == curate["kept"]
    mild = np.isin(columns["copy_kind"], ["exact", "jpeg", "resize", "colour", "flip"])
    assert not trained_on & set(columns["id"][leak & mild].tolist())
    assert len(trained_on & set(columns["id"][junk].tolist())) <= 0.05 * junk.sum()
    mild &= columns["role"] == "copy"
    pairs = list(zip(columns["id"][mild].tolist(), columns["copy_of"][mild].tolist(), strict=True))
    assert sum({copy, original} <= trained_on for copy, original in pairs) <= 0.1 * len(pairs) > 0
    for name in ("knn_pixels", "knn_histogram", "knn_untrained", "knn_trained"):
        assert 0 <= facts[name] <= 1
    page = (tmp_path / "d" / "report.html").read_text()
    for reason in ("exact copy", "near copy", "copy of an evaluation image", "broken file"):
        assert f"<bdi>{reason}</bdi>" in page
    assert page.count('alt="Dropped image') >= 9
    assert "copy of an evaluation image" in (tmp_path / "d" / "curated" / "report.html").read_text()
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


def test_a_length_that_is_given_as_a_group_is_kept(tmp_path, monkeypatch):
    """What fits the demo's time is only for who says nothing of it."""
    monkeypatch.setattr(demo, "SECONDS", 0.001)
    rest = {key: value for key, value in SMALL.items() if not key.startswith("plan.")}
    made = pictures(tmp_path / "p", "five")
    dinoforge.demo(images=made, out=str(tmp_path / "d"), plan="{images: 32, batch: 16}", **rest)
    assert json.loads((tmp_path / "d" / "run" / "plan.json").read_text())["images"] == 32


def test_other_pictures_leave_a_run_what_it_was_trained_on(tmp_path):
    """Told before anything is curated, though they have the same names."""
    mine, others = pictures(tmp_path / "p", "five"), pictures(tmp_path / "q", "one colour")
    out = tmp_path / "d"
    first = _curate(out, mine)
    (out / "run").mkdir()
    (out / "run" / "config.yaml").touch()
    assert _curate(out, mine) == first
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=rf"out={out} holds a run on other images than those of {others} now"):
        dinoforge.demo(images=others, out=str(out), **SMALL)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_no_pictures_are_not_the_toy_world(tmp_path):
    with pytest.raises(ConfigError, match="images= is empty; name a folder of pictures"):
        dinoforge.demo(images="", out=str(tmp_path / "d"))
