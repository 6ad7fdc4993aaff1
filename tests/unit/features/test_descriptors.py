"""Stored descriptors: what is asked is found, exactly or nearly; folders of another kind are refused."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import pytest

from dinoforge.base.errors import DataError
from dinoforge.data.manifest import SCHEMA, write_manifest
from dinoforge.features.copies import WIDTH, describe, thumbnail
from dinoforge.features.descriptors import Descriptors, matches, read_descriptors, stored_beside, write_descriptors
from dinoforge.features.learnt import Measure
from dinoforge.features.pairs import LAYOUT_DUPLICATE, LayoutConfig
from scenes import scenes


def described(pictures, names, keys):
    thumbnails = np.stack([thumbnail(picture) for picture in pictures])
    return Descriptors(np.asarray(names), np.asarray(keys), thumbnails, describe(thumbnails).astype(np.float16))


@pytest.fixture
def folder(tmp_path):
    pictures = scenes(20)
    write_descriptors(tmp_path / "d", described(pictures, [f"p{n}" for n in range(20)], [f"key{n}" for n in range(20)]))
    return tmp_path / "d"


def found(asked, folder, **how):
    return matches(
        asked, read_descriptors(folder), threshold=how.get("threshold", LAYOUT_DUPLICATE), config=LayoutConfig()
    )


def test_copies_are_found_by_their_kind(folder):
    pictures, strangers = scenes(20), scenes(3, seed=77)
    small = cv2.resize(pictures[4], (40, 40), interpolation=cv2.INTER_AREA)
    asked = described(
        [pictures[2], small, pictures[7][:, ::-1], pictures[9][6:, :88], *strangers],
        [f"q{n}" for n in range(7)], ["key2", "x", "y", "z", "", "a", "b"],
    )  # fmt: skip
    lines = found(asked, folder)
    assert [(line.image, line.id, line.kind) for line in lines] == [
        (0, "p2", "exact"), (1, "p4", "near"), (2, "p7", "near"), (3, "p9", "near")
    ]  # fmt: skip
    assert lines[0].similarity == 1
    assert all(LAYOUT_DUPLICATE < line.similarity <= 1.0001 for line in lines)
    assert [line.image for line in found(asked, folder, threshold=0.9999)][:1] == [0]


def test_flat_pictures_are_found_by_their_bytes_alone(tmp_path):
    flat = np.full((30, 30, 3), 90, np.uint8)
    write_descriptors(tmp_path / "d", described([flat, flat + 1], ["a", "b"], ["same", "other"]))
    assert [(line.id, line.kind) for line in found(described([flat], ["q"], ["same"]), tmp_path / "d")] == [
        ("a", "exact")
    ]


def test_a_key_that_is_not_known_is_no_match(tmp_path):
    flat = np.full((30, 30, 3), 90, np.uint8)
    write_descriptors(tmp_path / "d", described([flat], ["a"], [""]))
    assert found(described([flat], ["q"], [""]), tmp_path / "d") == []


def test_other_descriptors_are_refused(folder, tmp_path):
    np.save(folder / "descriptors.npy", np.zeros((20, 512), np.float16))
    with pytest.raises(DataError, match="holds descriptors 'layout' of width 512, not 248"):
        read_descriptors(folder)
    about = json.loads((folder / "descriptors.json").read_text()) | {"name": "sscd"}
    (folder / "descriptors.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="holds descriptors 'sscd'"):
        read_descriptors(folder)
    with pytest.raises(DataError, match="holds no descriptors"):
        read_descriptors(tmp_path / "nothing")


def test_files_of_unequal_lengths_are_refused(folder):
    np.save(folder / "thumbnails.npy", np.zeros((19, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="is damaged: its files are of 20, 20 and 19 images"):
        read_descriptors(folder)


def test_descriptors_of_two_networks_are_never_compared(folder, tmp_path):
    """Those of a network are compared by their cosine; the name and the width must both be the same."""
    x = np.eye(4, 8, dtype=np.float32)
    ids, keys, thumbnails = np.asarray(list("abcd")), np.asarray(list("1234")), np.zeros((4, 32, 32, 3), np.uint8)
    one = Descriptors(ids, keys, thumbnails, x + x[::-1] * 0.9, "sscd 1", Measure())
    write_descriptors(tmp_path / "e", one)
    stored = read_descriptors(tmp_path / "e")
    assert (stored.name, stored.measure) == ("sscd 1", Measure())
    asked = Descriptors(ids[:1], np.asarray(["x"]), thumbnails[:1], x[:1], "sscd 1")
    lines = matches(asked, stored, threshold=0.6, config=LayoutConfig())
    assert [(line.id, line.kind, line.similarity) for line in lines] == [
        ("a", "near", pytest.approx(1 / np.hypot(1, 0.9), abs=1e-3)), ("d", "near", pytest.approx(0.9 / np.hypot(1, 0.9), abs=1e-3))
    ]  # fmt: skip
    others = (replace(asked, name="sscd 2"), replace(asked, values=np.ones((1, 4))), replace(asked, name="layout"))
    for other in others:
        with pytest.raises(DataError, match="cannot be compared; both must come from one descriptor"):
            matches(other, stored, threshold=0.6, config=LayoutConfig())


def test_what_is_stored_beside_a_manifest(folder, tmp_path):
    ids, keys = [f"p{n}" for n in range(20)], [f"key{n}" for n in range(20)]

    def beside(made, names=ids):
        columns = {"id": names, "sha256": keys}
        table = pa.table([pa.array(columns.get(one.name, [None] * 20), one.type) for one in SCHEMA], schema=SCHEMA)
        write_manifest(tmp_path / "m.parquet", [table], made=made)
        return stored_beside(tmp_path / "m.parquet")

    found = beside({"descriptors": folder.name})
    assert found.sha256.tolist() == keys
    assert found.values.shape == (20, WIDTH)
    alone = beside({"verb": "scan"})
    assert (alone.ids.tolist(), alone.sha256.tolist(), alone.values.shape) == (ids, keys, (20, 0))
    with pytest.raises(DataError, match=r"names descriptors outside its folder: \.\./d"):
        beside({"descriptors": "../d"})
    with pytest.raises(DataError, match="holds descriptors of another manifest"):
        beside({"descriptors": folder.name}, ids[::-1])
