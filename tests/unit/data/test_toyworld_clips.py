"""Clips: what moves is what the label says, and one frame does not tell."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier

from dinoforge.base.random import numpy_generator
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.clips import MOTIONS, film
from dinoforge.data.toyworld.scene import draw

FRAMES = 9


def moments(motion, seed, *, species=None):
    """x, y, area and direction of the creature in every frame, measured in the picture, with nothing in front."""
    for attempt in range(100):
        layouts = film(motion, numpy_generator(seed, "film", attempt), frames=FRAMES)
        if species is None or layouts[0].things[0].body.species.name == species:
            break
    rows = []
    for layout in layouts:
        mask = draw(replace(layout, front=None), numpy_generator(0, "n", 0), size=96).mask > 0
        y, x = np.nonzero(mask)
        spread = np.cov(x, y)
        direction = 0.5 * np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1])
        rows.append((x.mean() / 48, y.mean() / 48, mask.mean(), direction))
    x, y, area, direction = np.asarray(rows).T
    return {"x": x, "y": y, "area": area, "direction": np.unwrap(direction, period=np.pi)}


@pytest.mark.parametrize(
    ("motion", "what", "sign"),
    [
        ("left", "x", -1), ("right", "x", 1), ("rise", "y", -1), ("fall", "y", 1), ("grow", "area", 1),
        ("shrink", "area", -1), ("spin clockwise", "direction", 1), ("spin counterclockwise", "direction", -1),
    ],
)  # fmt: skip
def test_the_picture_moves_as_the_label_says(motion, what, sign):
    for seed in range(3):
        found = moments(motion, seed, species="leopard bean")
        steps = np.diff(found[what])
        assert (steps * sign > 0).all()
        total = {"x": 0.35, "y": 0.35, "area": 0.05, "direction": 1.5}[what]
        assert abs(found[what][-1] - found[what][0]) > total
        other = {"x": "y", "y": "x"}.get(what)
        if other:
            assert np.ptp(found[other]) < 0.15  # what slides out of the picture shifts the middle of the rest


def test_still_stands_and_shake_comes_back():
    for seed in range(3):
        still = moments("still", seed)
        assert all(np.ptp(still[name]) == 0 for name in still)
        shake = np.diff(moments("shake", seed)["x"])
        assert (np.sign(shake[1:]) != np.sign(shake[:-1])).sum() == 2


def test_only_the_creature_moves():
    layouts = film("right", numpy_generator(3, "film", 0), frames=4)
    assert len({repr((x.ground, x.front, x.light, x.things[0].body, x.things[0].paint.tolist())) for x in layouts}) == 1
    assert len({x.things[0].pose.x for x in layouts}) == 4


def test_one_frame_does_not_tell():
    """Ten motions from place, angle and size of any one frame, given without error: next to chance (0.1) for trees."""

    def poses(purpose, clips):
        rows, labels = [], []
        for clip in range(clips):
            rng = numpy_generator(clip, purpose, 0)
            layouts = film(tuple(MOTIONS)[clip % 10], rng, frames=8)
            pose = layouts[int(rng.integers(8))].things[0].pose
            rows.append([pose.x, pose.y, pose.turn % (2 * np.pi), pose.scale])
            labels.append(clip % 10)
        return np.asarray(rows), np.asarray(labels)

    train, train_labels = poses("train", 1200)
    test, test_labels = poses("test", 500)
    forest = ExtraTreesClassifier(100, min_samples_leaf=5, random_state=0).fit(train, train_labels)
    assert forest.score(test, test_labels) < 0.17


def test_rows_are_frames():
    source = open_source("toy://clips?clips=25&frames=6&size=16")
    columns = source.columns
    assert len(source) == 150
    assert len(MOTIONS) >= 8
    assert columns["frame"][:7].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert columns["clip"][5:7].tolist() == ["0", "1"]
    assert columns["group"].dtype == columns["frame"].dtype == columns["label"].dtype == np.int64
    for clip in range(25):
        rows = columns["clip"] == str(clip)
        assert len(set(columns["label"][rows])) == len(set(columns["split"][rows])) == 1
    assert set(columns["clip"][columns["split"] == "test"]) == {"4", "9", "14", "19", "24"}
    test = open_source("toy://clips?clips=25&frames=6&size=16&split=test")
    assert test.columns["id"].tolist() == columns["id"][columns["split"] == "test"].tolist()
    assert np.array_equal(test.pixels(8), source.pixels(int(np.flatnonzero(columns["split"] == "test")[8])))
    assert source.extra(3, "depth").shape == (16, 16)
    assert source.extra(3, "nothing") is None
