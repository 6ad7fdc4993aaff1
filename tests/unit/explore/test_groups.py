"""Copies that were planted are grouped; outliers are those of the definition."""

import contextlib
import json

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from dinoforge.base.errors import ConfigError
from dinoforge.explore import groups
from dinoforge.explore.answers import as_json
from dinoforge.explore.groups import near_copies, outliers


def test_planted_copies_are_groups(drawn):
    told = []
    found = near_copies(drawn, tell=lambda *what: told.append(what[2]))
    assert told
    names = [{one.id.rpartition("/")[2] for one in group.images} for group in found.groups]
    for group in names:  # a group is an original and its copies, whatever else is missed
        assert len({name.partition("-of-")[2] or name for name in group}) == 1
    assert len(found.groups) == found.total >= 3
    assert found.images == sum(len(group.images) for group in found.groups)
    exact = [group for group in found.groups if group.similarity == 1]
    for group in exact:
        assert len({drawn.source.encoded(one.row) for one in group.images}) == 1
    assert all(group.similarity > found.threshold for group in found.groups)
    few = near_copies(drawn, count=1)
    assert (few.total, few.groups) == (found.total, found.groups[:1])
    json.dumps(as_json(found))


def test_copies_are_looked_for_once(drawn, monkeypatch):
    before = near_copies(drawn)
    monkeypatch.setattr(groups, "described", None)
    assert near_copies(drawn) == before
    monkeypatch.setattr(groups, "LAYOUT_DUPLICATE", 0.99)  # what was made by another threshold is no answer
    with pytest.raises(TypeError):
        near_copies(drawn)


def test_copies_interrupted_go_on(given, monkeypatch):
    """Of three parts the last fails; then only that is described, and in the end no part is left."""
    collection, real, asked = given(np.ones((5, 2, 2, 4))), groups.described, []

    def described(source, **words):
        asked.append(source.columns["id"].tolist())
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(source, **words)

    monkeypatch.setattr(groups, "described", described)
    monkeypatch.setattr(groups, "_AT_ONCE", 2)
    with pytest.raises(KeyboardInterrupt):
        near_copies(collection)
    assert len([*collection.folder.glob("*.parts/*.npz")]) == 2
    found = near_copies(collection)
    assert [len(part) for part in asked] == [2, 2, 1, 1]
    assert asked[3] == asked[2]
    assert not [*collection.folder.glob("*.parts")]
    monkeypatch.undo()
    (collection.folder / "copies.npz.of").unlink()
    assert near_copies(collection) == found


def test_parts_of_another_size_are_no_parts(given, monkeypatch):
    collection, real, asked = given(np.ones((5, 2, 2, 4))), groups.described, []

    def described(source, **words):
        asked.append(len(source))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(source, **words)

    monkeypatch.setattr(groups, "described", described)
    for size in (2, 3):
        monkeypatch.setattr(groups, "_AT_ONCE", size)
        with contextlib.suppress(KeyboardInterrupt):
            near_copies(collection)
    assert asked == [2, 2, 3, 2]


def test_groups_of_the_same_bytes_and_of_chains(given, monkeypatch):
    """By hand: rows 0, 1, 2 hang together by two pairs, 4 and 5 have the same bytes."""
    from dinoforge.features.described import Descriptors
    from dinoforge.features.pairs import joined

    collection = given(np.ones((6, 2, 2, 4)))
    keys = np.asarray(["a", "b", "c", "d", "e", "e"])
    thumbnails, values = np.zeros((6, 32, 32, 3), np.uint8), np.zeros((6, 248), np.float16)
    monkeypatch.setattr(
        groups, "described", lambda source, like, workers: (Descriptors(keys, keys, thumbnails, values), np.arange(6))
    )
    pairs = joined(np.asarray([0, 1, 2]), np.asarray([1, 2, 3]), np.asarray([0.95, 0.94, 0.9], np.float32))
    monkeypatch.setattr(groups, "layout_pairs", lambda *_, config: pairs)
    found = near_copies(collection)
    assert [[one.row for one in group.images] for group in found.groups] == [[0, 1, 2], [4, 5]]
    assert [group.similarity for group in found.groups] == pytest.approx([0.94, 1])
    assert (found.total, found.images) == (2, 5)


def test_outliers_are_those_of_scikit_learn(drawn):
    found = outliers(drawn, count=40)
    near, _ = NearestNeighbors(n_neighbors=11, metric="cosine").fit(drawn.vectors).kneighbors(drawn.vectors)
    want = near[:, 1:].mean(axis=1)
    assert found.neighbours == 10
    assert [one.distance for one in found.images] == pytest.approx(sorted(want, reverse=True), abs=1e-5)
    assert sorted(one.image.row for one in found.images) == [*range(40)]
    for one in found.images:
        assert one.distance == pytest.approx(want[one.image.row], abs=1e-5)


def test_few_images(given):
    rng = np.random.default_rng(0)
    few = outliers(given(rng.normal(size=(3, 2, 2, 4))))
    assert (few.neighbours, len(few.images)) == (2, 3)


def test_one_image(given):
    alone = outliers(given(np.ones((1, 2, 2, 4))))
    assert [one.distance for one in alone.images] == [0]


@pytest.mark.parametrize("ask", [near_copies, outliers])
def test_how_many(drawn, ask):
    with pytest.raises(ConfigError, match=r"1 to 1,000 \w+ can be shown; got 0"):
        ask(drawn, count=0)
