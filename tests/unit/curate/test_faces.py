"""Faces: where they are found, and that whoever reads the manifest does not see those that were to be blurred."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import dinoforge
from dinoforge.base.errors import ConfigError, UserError
from dinoforge.curate.safety import faces
from dinoforge.curate.safety.faces import FACES, Faces, FacesConfig
from dinoforge.curate.safety.filter import Asked
from dinoforge.data.manifest import read_manifest
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png
from dinoforge.features.kept import files_of

HAS_CASCADE = hasattr(cv2, "CascadeClassifier") and (Path(cv2.__file__).parent / "data" / faces.CASCADE).exists()
DATA = Path(os.environ.get("DINOFORGE_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
REAL = DATA / "near_duplicates" / "pairs.parquet"


@pytest.fixture
def red(monkeypatch, tmp_path):
    """In place of the cascade: a face is what is pure red."""
    monkeypatch.setattr(faces, "_cascade", lambda: tmp_path / "cascade.xml")
    (tmp_path / "cascade.xml").write_text("stands for it")
    monkeypatch.setattr(faces.cv2, "CascadeClassifier", lambda path: path, raising=False)

    def found(self, detector, image):
        ys, xs = np.nonzero((image == [255, 0, 0]).all(axis=2))
        return [(xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)] if len(ys) else ()

    monkeypatch.setattr(Faces, "_by_cascade", found)


def picture(seed, face=None):
    pixels = np.random.default_rng(seed).integers(0, 200, (10, 10, 3)).astype(np.uint8)
    pixels = np.kron(pixels, np.ones((8, 8, 1), np.uint8))
    if face:
        top, left, size = face
        pixels[top : top + size, left : left + size] = [255, 0, 0]
    return pixels


def test_boxes_are_shares_of_the_image(red):
    asked = Asked(np.asarray(["a", "b"]), np.asarray(["", ""]), images=[picture(0, (8, 16, 32))[:, :64], picture(1)])
    for then, keeps in (("note", [True, True]), ("blur", [True, True]), ("drop", [False, True])):
        one = FACES.make(FacesConfig(then=then))
        found = one.judge(asked)
        assert found.keep.tolist() == keeps
        assert found.scores.tolist() == [1, 0]
        np.testing.assert_allclose(found.boxes[0], [[0.25, 0.1, 0.75, 0.5]], atol=1e-6)
        assert len(found.boxes[1]) == 0
        assert one.blurs == (then == "blur")


def test_what_is_read_through_the_manifest_is_blurred(red, tmp_path):
    (tmp_path / "pool").mkdir()
    for number in range(6):
        pixels = picture(number, (8, 16, 32) if number in {1, 4} else None)
        (tmp_path / "pool" / f"{number}.png").write_bytes(png(pixels))
    words = {"pool": str(tmp_path / "pool"), "retrieve": "all", "workers": 1}
    found = dinoforge.curate(out=str(tmp_path / "c"), **words, **{"safety.faces.then": "blur"})
    assert (found.kept, found.safety) == (6, "safety-filtered by faces")
    manifest = read_manifest(tmp_path / "c" / "manifest.parquet")
    assert manifest.made["safety_filters"][0]["images_with_boxes"] == 2
    assert manifest.table["blur"].to_pylist() == [None, True, None, None, True, None]
    source = open_source(str(tmp_path / "c" / "manifest.parquet"))
    for row in range(6):
        before, after = picture(row, (8, 16, 32) if row in {1, 4} else None), source.pixels(row)
        np.testing.assert_array_equal(after[60:], before[60:])
        changed = (after != before).any(axis=2)
        assert changed.any() == (row in {1, 4})
        assert not changed[:, 64:].any()
    bare = [open_source(str(tmp_path / "pool")).stamp(row) for row in range(6)]
    stamps = [source.stamp(row) for row in range(6)]
    assert [one != of for one, of in zip(stamps, bare, strict=True)] == [row in {1, 4} for row in range(6)]
    assert files_of(source) != files_of(open_source(str(tmp_path / "pool")))  # by which features are remembered
    # The same through a curation of the curation; where notes alone were asked for, nothing is blurred.
    again = {"pool": str(tmp_path / "c" / "manifest.parquet"), "retrieve": "all", "workers": 1}
    dinoforge.curate(out=str(tmp_path / "d"), **again)
    twice = open_source(str(tmp_path / "d" / "manifest.parquet"))
    np.testing.assert_array_equal(twice.pixels(4), source.pixels(4))
    dinoforge.curate(out=str(tmp_path / "c"), **words, **{"safety.faces.then": "note"})
    noted = read_manifest(tmp_path / "c" / "manifest.parquet").table
    assert noted["boxes"].to_pylist()[1] == pytest.approx([0.2, 0.1, 0.6, 0.5])
    assert noted["blur"].to_pylist() == [None, False, None, None, False, None]
    plain = open_source(str(tmp_path / "c" / "manifest.parquet"))
    assert [plain.stamp(row) for row in range(6)] == bare
    np.testing.assert_array_equal(plain.pixels(1), picture(1, (8, 16, 32)))


def test_without_a_cascade_the_extra_is_named(monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'dinoforge\[faces\]', or give a YuNet model"):
        FACES.make(FacesConfig(then="note"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"yunet": "nowhere.onnx"}, "safety.faces.yunet=nowhere.onnx does not exist"),
        ({"yunet": "text.onnx"}, "safety.faces.yunet=text.onnx is no YuNet model that OpenCV can run"),
        ({"yunet": "text.onnx", "smallest": 0.2}, "safety.faces.smallest=0.2 has no effect: YuNet finds the faces"),
        ({"least_score": 0.9}, "safety.faces.least_score=0.9 has no effect: the cascade finds the faces"),
    ],
)
def test_bad_settings_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError) as error:
        FACES.make(FacesConfig(then="note", **words))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_yunet_says_by_hand(tmp_path):
    """A network that sees the same face whatever it is shown: OpenCV's own decoding of it, in shares of the image."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    side, inits, outputs = 320, [], []
    for stride in (8, 16, 32):
        count = (side // stride) ** 2
        for name, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            values = np.zeros((1, count, width), np.float32)
            if stride == 32 and name in {"cls", "obj"}:
                values[0, 3 * 10 + 4] = 1  # the cell of row 3, column 4
            if stride == 32 and name == "bbox":
                values[0, 3 * 10 + 4] = [0, 0, np.log(2), np.log(3)]  # its own place, 2 cells wide, 3 high
            inits.append(helper.make_tensor(f"{name}_{stride}_c", TensorProto.FLOAT, values.shape, values.ravel()))
            outputs.append((f"{name}_{stride}", values.shape))
    nodes = [helper.make_node("ReduceMean", ["input"], ["m"], axes=[1, 2, 3], keepdims=1)]
    nodes += [helper.make_node("Reshape", ["m", "one"], ["m1"]), helper.make_node("Mul", ["m1", "zero"], ["z"])]
    nodes += [helper.make_node("Add", [f"{name}_c", "z"], [name]) for name, _ in outputs]
    inits += [
        helper.make_tensor("one", TensorProto.INT64, [3], [1, 1, 1]), helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in outputs], inits,
    )  # fmt: skip
    path = tmp_path / "yunet.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    one = FACES.make(FacesConfig(then="blur", yunet=str(path), licence="MIT"))
    assert one.files[0].licence == "MIT"
    found = one.boxes(np.zeros((side, side, 3), np.uint8))
    # In OpenCV the middle is (column + dx) * stride, (row + dy) * stride, the size exp(w) * stride.
    np.testing.assert_allclose(found, [[3 / 10, 1.5 / 10, 5 / 10, 4.5 / 10]], atol=0.005)
    assert one.judge(replace(Asked(np.asarray(["a"]), np.asarray([""])), images=[])).keep.shape == (0,)


@pytest.mark.skipif(not HAS_CASCADE, reason="this OpenCV brings no cascade (extra faces)")
@pytest.mark.skipif(not REAL.exists(), reason="the real pictures are not there")
def test_faces_of_real_pictures_are_found():
    """Photos of one person each, and their crops to the face; where a crop lies in its photo is where the face is."""
    source = open_source(str(REAL))
    of_faces = np.flatnonzero(np.char.startswith(source.columns["id"], "Faces"))
    one = FACES.make(FacesConfig(then="blur"))
    crops = {source.columns["group"][row]: row for row in of_faces.tolist() if source.columns["variant"][row] == "crop"}
    hits = {"full": [], "crop": []}
    elsewhere = 0
    for row in of_faces.tolist():
        variant, pixels = str(source.columns["variant"][row]), source.pixels(row)
        crop = source.pixels(crops[source.columns["group"][row]])
        match = cv2.matchTemplate(pixels, crop, cv2.TM_CCOEFF_NORMED)
        left, top = cv2.minMaxLoc(match)[3]
        size = np.asarray([pixels.shape[1], pixels.shape[0]] * 2)
        boxes = one.boxes(pixels) * size
        middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 - [left, top]) / crop.shape[1::-1]
        on_it = ((middle > 0.25) & (middle < 0.75)).all(axis=1) & (boxes[:, 2] - boxes[:, 0] > 0.3 * crop.shape[1])
        hits[variant].append(on_it.any())
        elsewhere += int((~on_it).sum())
    assert len(hits["full"]) == len(hits["crop"]) == 50
    assert all(sum(found) >= 0.96 * len(found) for found in hits.values())
    assert elsewhere <= 0.25 * len(of_faces)
