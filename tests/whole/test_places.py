"""Correspondence and tracking from the command: drawn worlds, published folders and tables, and what a backbone gains."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dinoforge
import published
from dinoforge.base.errors import DataError
from dinoforge.data.sources.table import open_source

SIDES = {"correspondence.longest": 64, "tracking.shortest": 64, "features": "none"}


def scores(data, tasks="correspondence", backbone="pixels:8", **settings):
    words = {name: value for name, value in SIDES.items() if name.partition(".")[0] in {tasks, "features"}}
    found = dinoforge.evaluate(backbone=backbone, tasks=tasks, data=data, **(words | settings)).scores
    return {score.name: score for score in found}


def test_drawn_worlds_have_both(capsys):
    pairs = scores("toy://species?images=60&size=32&seed=1", **{"correspondence.pairs": 20})
    assert pairs["PCK_at_0.1"].n <= 20
    assert 0 <= pairs["PCK_at_0.05"].value <= pairs["PCK_at_0.1"].value <= pairs["PCK_at_0.2"].value <= 1
    assert "12 images known" in capsys.readouterr().err  # of the test split
    clips = scores("toy://clips?clips=10&frames=4&size=32", "tracking")
    assert clips["J&F"].n == 2
    assert clips["J&F"].value == pytest.approx((clips["J"].value + clips["F"].value) / 2)


def test_the_same_pictures_in_a_table_score_the_same(tmp_path):
    address = "toy://species?images=60&size=32&seed=1&split=test"
    source = open_source(address)
    texts, boxes = [], []
    for row in range(len(source)):
        points = source.extra(row, "keypoints").tolist()
        texts.append(json.dumps({str(n): [x, y] for n, (x, y, seen) in enumerate(points) if seen}))
        y, x = np.nonzero(source.extra(row, "instance") == 1)
        boxes.append(json.dumps([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]))
    rows = {
        "image": [source.encoded(row) for row in range(len(source))], "group": source.columns["group"],
        "keypoints": texts, "box": boxes,
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "points.parquet")
    drawn, read = scores(address), scores(str(tmp_path / "points.parquet"))
    assert {name: score.value for name, score in drawn.items()} == {name: score.value for name, score in read.items()}


def test_frames_in_a_table_score_the_same(tmp_path):
    address = "toy://clips?clips=10&frames=4&size=32&split=test"
    source = open_source(address)
    masks = []
    for row in range(len(source)):
        file = io.BytesIO()
        Image.fromarray(source.extra(row, "instance")).save(file, "PNG")
        masks.append(file.getvalue())
    rows = {
        "image": [source.encoded(row) for row in range(len(source))], "mask": masks, "clip": source.columns["clip"],
        "frame": source.columns["frame"],
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "frames.parquet")
    drawn, read = scores(address, "tracking"), scores(str(tmp_path / "frames.parquet"), "tracking")
    assert {name: score.value for name, score in drawn.items()} == {name: score.value for name, score in read.items()}


def test_published_folders(tmp_path):
    published.spair(tmp_path / "spair")
    found = scores(str(tmp_path / "spair"))
    assert (found["PCK_at_0.1"].n, found["PCK_at_0.1_per_keypoint"].n) == (2, 3)
    published.davis(tmp_path / "davis")
    found = scores(str(tmp_path / "davis"), "tracking")
    assert found["J&F"].n == 2  # the two objects of the first frame of the one clip of val


@pytest.mark.parametrize(
    ("data", "task", "said"),
    [
        ("toy://species?images=20&size=16", "tracking", "has no clips; its frames take columns clip"),
        ("toy://clips?clips=5&frames=2&size=16", "tracking", "fewer than 3 frames"),
        ("toy://species?images=40&size=16&views=1", "correspondence", "no two images of"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(data, task, said):
    with pytest.raises(DataError) as error:
        scores(data, task)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
