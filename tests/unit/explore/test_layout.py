"""Groups that were planted lie together on the map and are its clusters; the map is the same whenever it is made."""

import builtins
import json

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError
from dinoforge.explore import layout
from dinoforge.explore.answers import as_json
from dinoforge.explore.layout import clusters_of, map_of, plane


def planted(sizes=(30, 20, 14), width=16):
    rng = np.random.default_rng(0)
    centres = np.eye(width)[: len(sizes)] * 5
    member = np.repeat(np.arange(len(sizes)), sizes)
    vectors = (centres[member] + 0.3 * rng.normal(size=(len(member), width))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), member


def test_planted_groups_lie_together():
    vectors, member = planted()
    places = plane(vectors)
    assert places.min(axis=0) == pytest.approx([0, 0])
    assert places.max(axis=0) == pytest.approx([1, 1])
    centres = np.stack([places[member == group].mean(axis=0) for group in range(3)])
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == member).mean() > 0.95
    np.testing.assert_array_equal(plane(vectors), places)


def test_the_largest_cluster_comes_first(monkeypatch):
    vectors, member = planted()
    monkeypatch.setattr(layout, "_CLUSTERS", 3)
    order = np.random.default_rng(1).permutation(len(vectors))
    np.testing.assert_array_equal(clusters_of(vectors[order]), member[order])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_images(count):
    vectors, _ = planted((count,))
    places = plane(vectors)
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
    assert plane(np.ones((9, 4), np.float32)).tolist() == [[0, 0]] * 9
    assert clusters_of(vectors).tolist() == [0] * count


def test_a_sample_of_a_large_collection(given, monkeypatch):
    monkeypatch.setattr(layout, "MOST", 10)
    monkeypatch.setattr(layout, "plane", lambda vectors: vectors[:, :2])
    vectors, _ = planted()
    collection = given(np.repeat(vectors[:, None, None], 2, axis=1).repeat(2, axis=2))
    told = []
    found = map_of(collection, tell=lambda *what: told.append(what))
    assert told[-1][:2] == (2, 2)
    assert (len(found.points), found.of) == (10, 64)
    rows = [point.row for point in found.points]
    assert rows == sorted({*rows})
    assert rows != [*range(10)]
    for point in found.points:
        assert (point.x, point.y) == pytest.approx(tuple(collection.vectors[point.row, :2]), abs=1e-6)
        about = collection.about(point.row)
        assert (point.label, point.label_name, point.reason) == (about.label, about.label_name, about.reason)
    monkeypatch.setattr(layout, "plane", None)
    assert map_of(collection) == found  # it was stored
    json.dumps(as_json(found))


def test_without_the_library(monkeypatch):
    whole = builtins.__import__

    def without(name, *more, **settings):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return whole(name, *more, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"the map needs scikit-learn; `pip install dinoforge\[explore\]` brings it"):
        plane(np.ones((9, 4), np.float32))
