"""Published sets that say where in a picture is what: SPair-71k and DAVIS 2017, and what is refused of them."""

import json

import numpy as np
import pytest
from PIL import Image

import published
from dinoforge.base.errors import DataError
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.keypoints import listed_pairs, pair_of
from dinoforge.evaluate.tracking import clips_of, truth


def test_pairs_of_spair_are_those_of_its_files(tmp_path):
    published.spair(tmp_path)
    source = open_source(str(tmp_path))
    pairs = [pair_of(source, chosen, boxes=True) for chosen in listed_pairs(source)]
    assert [(pair.first, pair.second, pair.side) for pair in pairs] == [(0, 1, 8), (1, 0, 8), (2, 3, 1)]
    assert pairs[0].points.tolist() == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    assert pairs[1].points.tolist() == [[[5, 6], [1, 2]]]
    assert len(pairs[2].points) == 0
    test = open_source(f"{tmp_path}?split=test")
    assert [(pair.first, pair.second) for pair in listed_pairs(test)] == [(0, 1), (1, 0)]


def changed(root, name, **keys):
    file = root / "PairAnnotation" / name
    held = json.loads(file.read_text())
    held.update(keys)
    file.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"src_kps": ...}, "has no 'src_kps'"),
        ({"trg_kps": [[1, 2]]}, "has 2 keypoints in the one image and 1 in the other"),
        ({"trg_kps": [[1, 2], [1]]}, "has keypoints that are not lists of x and y"),
        ({"trg_kps": 3}, "has keypoints that are not lists of x and y"),
        ({"category": 3}, "has 'category' '3', which takes a text"),
        ({"trg_imname": "e.jpg"}, "names JPEGImages/cat/e.jpg, which is not there"),
        ({"category": "dog", "src_imname": "c.jpg"}, "names JPEGImages/dog/c.jpg, which is in the split train too"),
    ],
)
def test_damaged_pairs_are_one_line(keys, said, tmp_path):
    published.spair(tmp_path)
    changed(tmp_path, "test/1-a-b:cat.json", **keys)
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/PairAnnotation/test/1-a-b:cat.json {said}; ?layout=none")


def test_frames_of_davis_have_the_indices_of_their_palettes(tmp_path):
    published.davis(tmp_path / "DAVIS")
    source = open_source(str(tmp_path))
    assert {name: rows.tolist() for name, rows in clips_of(source).items()} == {"bear": [0], "goat": [1, 2, 3]}
    assert source.columns["clip"].dtype.kind == "U"
    assert source.columns["frame"].tolist() == [0, 0, 1, 2]
    assert np.unique(truth(source, 2, size=(10, 12))).tolist() == [10, 11, 12]
    assert source.extra(2, "depth") is None


def test_frames_of_davis_may_have_no_mask(tmp_path):
    published.davis(tmp_path)
    (tmp_path / "Annotations/480p/goat/00001.png").unlink()
    source = open_source(str(tmp_path))
    assert truth(source, 2, size=(10, 12)) is None
    assert truth(source, 3, size=(10, 12)) is not None


def test_a_damaged_davis_is_one_line(tmp_path):
    published.davis(tmp_path)
    published.text(tmp_path, "ImageSets/2017/val.txt", "goat", "cow")
    with pytest.raises(DataError, match=r"val.txt names the sequence cow, which has no frame; \?layout=none"):
        open_source(str(tmp_path))
    published.text(tmp_path, "ImageSets/2017/val.txt", "goat")
    Image.new("L", (9, 9)).save(tmp_path / "Annotations/480p/goat/00000.png")
    (tmp_path / "Annotations/480p/goat/00001.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"goat/00000.jpg has 12x10 pixels and a mask of 9x9\.$"):
        truth(source, 1, size=(10, 12))
    with pytest.raises(DataError, match=r"^the mask of .*goat/00001.jpg cannot be read: this is no picture"):
        truth(source, 2, size=(10, 12))


def test_test_dev_of_davis_is_not_taken_for_test(tmp_path):
    """Only its first masks are public, so val is what is asked."""
    published.davis(tmp_path)
    published.text(tmp_path, "ImageSets/2017/test-dev.txt", "cow")
    published.images(tmp_path, ["JPEGImages/480p/cow/00000.jpg"])
    assert open_source(str(tmp_path)).columns["split"].tolist() == ["train", *["val"] * 3, "test-dev"]
