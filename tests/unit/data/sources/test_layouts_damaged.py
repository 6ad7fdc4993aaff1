"""Ground truth of published sets that is damaged or forged: one line that names the file, and nothing of it is run."""

import os
import pickle
import struct
from contextlib import suppress
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import published
from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.layouts.unpickled import unpickled
from dinoforge.data.sources.table import open_source
from published import FISH, MADE, text


def refused(root, name):
    """What opening a set says; it names the file and is one line."""
    with pytest.raises(DataError) as error:
        open_source(str(root))
    said = str(error.value)
    assert len(said.splitlines()) == 1
    assert str(root / name) in said
    return said


def changed(root, name, old, new):
    content = (root / name).read_text()
    assert old in content
    (root / name).write_text(content.replace(old, new))


DAMAGED = [
    ("food101", "meta/train.txt", "waffles/8", "waffles/7", "names images/waffles/7.jpg, which is named already"),
    ("food101", "meta/test.txt", "waffles/9", "waffles/8", "names images/waffles/8.jpg, which is named already"),
    ("food101", "meta/test.txt", "waffles/9", "crepes/9", "the class 'crepes'; its 2 classes"),
    ("dtd", "labels/val1.txt", "banded_0003", "banded_0009", "names images/banded/banded_0009.jpg, which is not there"),
    ("sun397", "Partitions/Testing_01.txt", "sun_3", "sun_1", "names a/abbey/sun_1.jpg, which is named already"),
    ("sun397", "ClassName.txt", "/a/abbey", "/a/abbot", None),
    ("aircraft", "data/images_variant_val.txt", "1025794 F-16A/B", "1025794", "has the line '1025794', which takes 2 fields"),
    ("aircraft", "data/images_variant_val.txt", "F-16A/B", "F-17", "the class 'F-17'; its 3 classes"),
    ("pets", "annotations/test.txt", "11 2 2 1", "11 1 2 1", "the class 1, which is Abyssinian"),
    ("pets", "annotations/trainval.txt", "100 1 1 1", "100 one 1 1", "has 'one' where it takes a whole number"),
    ("cub200", "image_class_labels.txt", "3 2", "3 3", "the class 3; its 2 classes are numbered from 1"),
    ("cub200", "train_test_split.txt", "3 1", "", "says nothing of image 3, 002.Laysan_Albatross/c.jpg"),
    ("cub200", "images.txt", "3 002", "2 002", "names 2 twice"),
    ("cub200", "classes.txt", "2 002", "3 002", "does not number its classes 1, 2, 3"),
    ("places205", "trainvalsplit_places205/val_places205.csv", "3.jpg 0", "3.jpg 1", "the class 1, which is apartment_"),
    ("places205", "trainvalsplit_places205/val_places205.csv", "3.jpg 0", "1.jpg 0", "which is named already"),
    ("voc2007", "ImageSets/Main/dog_test.txt", "000001  1", "000001  2", "marks 000001 by '2'; it takes 1, 0 or -1"),
    ("voc2007", "ImageSets/Main/dog_trainval.txt", "000009", "000005", "names 000005 twice"),
    ("inaturalist2018", "val2018.json", '"category_id": 2', '"category_id": 3', "the class 3; its 3 classes are numbered"),
    ("inaturalist2018", "val2018.json", '"image_id": 11', '"image_id": 10', "annotates image 10 twice"),
    ("inaturalist2018", "val2018.json", '"image_id": 11', '"image_id": 12', "has no annotation of train_val2018/"),
    ("inaturalist2018", "val2018.json", "]}", "]", "is no JSON: Expecting"),
    ("inaturalist2018", "val2018.json", '"images"', '"pictures"', "holds no list of objects in 'images'"),
    ("inaturalist2018", "val2018.json", '"file_name"', '"name"', "has an object in 'images' without 'file_name'"),
    ("inaturalist2018", "categories.json", '"id": 0', '"id": -1', "numbers a category -1"),
    ("inaturalist2018", "categories.json", '"id": 0', '"id": 1000000', "has a class of number 1,000,000; they are below"),
    ("pets", "annotations/test.txt", "11 2 2 1", "11 1000000 2 1", "has a class of number 1,000,000; they are below"),
    ("places205", "trainvalsplit_places205/val_places205.csv", "3.jpg 0", "3.jpg 1000000", "has a class of number 1,000,000"),
    ("met", "ground_truth/testset.json", "MET_id\": 9", "MET_id\": \"nine\"", "has 'nine' where it takes a whole number"),
    ("met", "ground_truth/testset.json", "9}", "9e30}", "has '9e+30' where it takes a whole number"),
    ("met", "ground_truth/testset.json", "test_met/a", "test_met/d", "names images/test_met/d.jpg, which is not there"),
    ("met", "ground_truth/MET_database.json", "MET/7/1", "MET/7/0", "names images/MET/7/0.jpg, which is named already"),
    ("imagenet", "real.json", "[1]", "[3]", "gives image 3 the class 3; the classes here are 0 to 2"),
    ("imagenet", "real.json", "[1]", "1", "holds no list of lists of classes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "old", "new", "said"), DAMAGED)
def test_damaged_lists_are_one_line(tmp_path, name, file, old, new, said):
    MADE[name](tmp_path)
    changed(tmp_path, file, old, new)
    if said is None:  # the list that does not fit is told, not the one that is right
        said, file = "the class 'abbey'; its 2 classes", "Partitions/Training_01.txt"
    assert said in refused(tmp_path, file)


def test_a_flat_imagenet_with_an_odd_truth(tmp_path):
    published.imagenet(tmp_path)
    devkit = "ILSVRC2012_devkit_t12/data"
    truth = f"{devkit}/ILSVRC2012_validation_ground_truth.txt"
    text(tmp_path, truth, "1", "3")
    assert "says nothing of val/ILSVRC2012_val_00000003.JPEG" in refused(tmp_path, truth)
    text(tmp_path, truth, "1", "3", "5")
    assert "gives image 3 the class 5, which" in refused(tmp_path, truth)
    published.imagenet_kaggle(tmp_path / "kaggle")
    changed(tmp_path / "kaggle", "LOC_val_solution.csv", "ILSVRC2012_val_00000002", "ILSVRC2012_val_00000009")
    assert "says nothing of ILSVRC/Data/CLS-LOC/val/ILSVRC2012" in refused(tmp_path / "kaggle", "LOC_val_solution.csv")
    assert FISH[0] in open_source(f"{tmp_path}/kaggle?layout=none").columns["label_name"].tolist()


def test_an_old_photo_alone(tmp_path):
    published.amstertime(tmp_path)
    (tmp_path / "new" / "rokin.jpg").unlink()
    with pytest.raises(DataError, match=r"old/rokin.png has no other image of its name in new/"):
        open_source(f"{tmp_path}?layout=amstertime")


def test_matlab_files(tmp_path):
    published.flowers102(tmp_path)
    whole = (tmp_path / "setid.mat").read_bytes()
    for cut in (0, 50, 128, 150, len(whole) - 20):
        (tmp_path / "setid.mat").write_bytes(whole[:cut])
        assert "cannot be read as a MATLAB file" in refused(tmp_path, "setid.mat") or cut > 100
    (tmp_path / "setid.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n")
    assert "is a MATLAB 7.3 file (HDF5), which is not read; save it with -v7" in refused(tmp_path, "setid.mat")
    published.mat(tmp_path, "setid.mat", trnid=[[2]], valid=[[4]], tstid=[[3, 5]])
    assert "names image 5; imagelabels.mat has 4 labels" in refused(tmp_path, "setid.mat")
    published.mat(tmp_path, "setid.mat", trnid=[[2]], valid=[[4]], tstid=[[3, 2]])
    assert "names jpg/image_00002.jpg, which is named already" in refused(tmp_path, "setid.mat")
    published.mat(tmp_path, "setid.mat", trnid=[[2]], valid=[[4]])
    assert "holds no 'tstid'" in refused(tmp_path, "setid.mat")
    published.mat(tmp_path, "setid.mat", trnid=[[2.5]], valid=[[4]], tstid=[[3]])
    assert "has '2.5' where it takes a whole number" in refused(tmp_path, "setid.mat")
    published.flowers102(tmp_path)
    published.mat(tmp_path, "imagelabels.mat", labels=[[103, 1, 77, 1]])
    assert "the class 103; its 102 classes are numbered from 1" in refused(tmp_path, "imagelabels.mat")
    published.cars(tmp_path / "cars")
    published.mat(tmp_path / "cars", "devkit/cars_train_annos.mat", annotations=np.ones((1, 3)))
    assert "holds no 'fname'" in refused(tmp_path / "cars", "devkit/cars_train_annos.mat")


def header(*sides):
    """A MATLAB file of version 4 with bytes of this shape, and none of them there."""
    return struct.pack("<5i", 50, *sides, 0, 7) + b"labels\0"


def test_matlab_files_that_would_fill_the_memory(tmp_path):
    published.flowers102(tmp_path)
    (tmp_path / "imagelabels.mat").write_bytes(header(10_000, 10_001))
    assert "holds 100,010,000 numbers, more than 100,000,000" in refused(tmp_path, "imagelabels.mat")
    (tmp_path / "imagelabels.mat").write_bytes(header(10_000, 10_000))
    assert "cannot be read as a MATLAB file: " in refused(tmp_path, "imagelabels.mat")
    with (tmp_path / "imagelabels.mat").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "has 1,073,741,825 bytes; of a MATLAB file 1,073,741,824" in refused(tmp_path, "imagelabels.mat")


class Thief:
    """What runs a command when it is unpickled."""

    def __init__(self, at):
        self.at = at

    def __reduce__(self):
        return os.mkdir, (str(self.at),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, protocol):
    published.landmarks(tmp_path / "set")
    held = {"imlist": Thief(tmp_path / "stolen"), "qimlist": [], "gnd": []}
    (tmp_path / "set" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
    assert "is a pickle with code (posix.mkdir), which is not run" in refused(tmp_path / "set", "gnd_roxford5k.pkl")
    assert not (tmp_path / "stolen").exists()
    published.cifar10(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_3").write_bytes(pickle.dumps(Thief(tmp_path / "stolen"), protocol=protocol))
    assert "is a pickle with code" in refused(tmp_path / "cifar", "data_batch_3")
    assert not (tmp_path / "stolen").exists()


FORGED = {
    "objects by their addresses": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    "a structure": b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.",
    "a long text": b"cnumpy\ndtype\n(S'S99999999'\nI0\nI1\ntR.",
    "numpy's own loader": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    "another coding": b"c_codecs\nencode\n(V0\nS'zip'\ntR.",
    "something outside": b"Pouter\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a way into a module": b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.",
    "eval": b"c__builtin__\neval\n(S'1'\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(I1\nS'real'\ntR.",
    "bytes that are many": b"c__builtin__\nbytes\n(I9\ntR.",
    "a note far out": b"Np999999\n.",
    "a note far out, binary": b"Nr\xff\xff\xff\xff.",
    "a changed function": b"\x80\x02c_codecs\nencode\n}U\x08__name__U\x01xsb.",
    "a changed class": b"\x80\x02N}c__builtin__\nset\n}U\x01aU\x01xsbs.",
    "a number of bytes that is not there": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",
    "tuples in tuples": b"\x80\x02N" + b"\x85" * 20_001 + b".",
    "sets in sets": b"\x80\x04" + b"(" * 20_001 + b"N" + b"\x91" * 20_001 + b".",
    "tuples in tuples, old": b"(" * 20_001 + b"N" + b"t" * 20_001 + b".",
    "no end": b"N",
    "a type that is nested": b"cnumpy\ndtype\n(" + b"(l" + b"(la" * 50 + b"I0\nI1\ntR.",
    "cut": pickle.dumps({"a": np.arange(9)})[:-9],
    "nothing": b"",
    "no pickle": b"\x89PNG\r\n\x1a\n",
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_forged_pickles_are_one_line(forged):
    with pytest.raises(DataError) as error:
        unpickled(forged)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ("bytes that are many", "damaged pickle"),
        ("a note far out", "notes a value as number 999,999"),
        ("a note far out, binary", "notes a value as number 4,294,967,295"),
        ("a changed function", "changes how its objects are made"),
        ("a changed class", "changes how its objects are made"),
        ("tuples in tuples", "holds 20,001 tuples"),
        ("sets in sets", "holds 20,001 tuples"),
        ("tuples in tuples, old", "holds 20,001 tuples"),
        ("no end", "it has no end"),
    ],
)
def test_forged_pickles_are_refused_before_they_are_read(forged, said):
    with pytest.raises(DataError, match=said):
        unpickled(FORGED[forged])


def test_pickles_of_python_2_with_any_bytes():
    assert unpickled(b"(dp0\nS'a'\nS'\\xff\\x00'\np1\ns.") == {"a": "\xff\x00"}
    assert unpickled(b"\x80\x02c__builtin__\nbytes\n)R.") == b""


def array(shape, raw, kind=b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"):
    """The pickle of an array with a state of our own."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n" + shape + kind + b"I00\n" + raw + b"tb."
    )  # fmt: skip


def test_an_array_has_the_size_that_it_says():
    assert np.asarray(unpickled(array(b"(I3\nt", b"S'abc'\n"))).tolist() == [97, 98, 99]
    for shape, raw in (
        (b"(I4\nt", b"S'abc'\n"),
        (b"(I-1\nI-3\nt", b"S'abc'\n"),
        (b"(I4611686018427387904\nI4\nt", b"S''\n"),
    ):
        with pytest.raises(DataError, match="an array of another size"):
            unpickled(array(shape, raw))
    with pytest.raises(DataError):
        unpickled(array(b"(I1\nt", b"(lI7\na"))
    with pytest.raises(DataError, match="without a type"):
        unpickled(array(b"(I3\nt", b"S'abc'\n", kind=b"S'u1'\n"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
    | st.frozensets(st.integers(0, 9), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner),
    max_leaves=8,
)  # fmt: skip
ARRAYS = [
    np.arange(6).astype(kind).reshape(2, 3)
    for kind in ("u1", "<i2", ">i2", "<i8", ">f4", "<f8", "?", "S3", "U2", ">U2")
]
ARRAYS += [np.asfortranarray(ARRAYS[3]), np.zeros((0, 4)), np.float64(2.5), np.int32(-7), np.array(3)]


@settings(max_examples=60, deadline=None)
@given(held=PLAIN, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_data_comes_back_as_pickle_itself_gives_it(held, protocol):
    assert unpickled(pickle.dumps(held, protocol=protocol)) == held


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("held", ARRAYS, ids=lambda held: f"{held.dtype.str}{held.shape}")
def test_arrays_come_back_as_numpy_itself_gives_them(held, protocol):
    found = np.asarray(unpickled(pickle.dumps(held, protocol=protocol)))
    np.testing.assert_array_equal(found, held)
    assert found.shape == held.shape
    assert isinstance(held, np.generic) or found.dtype == held.dtype


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), protocol=st.sampled_from([0, 2, 5]))
def test_any_changed_byte_is_read_or_refused(at, byte, protocol):
    content = bytearray(
        pickle.dumps({"gnd": [{"bbx": np.asarray([1.0, 2.0]), "easy": np.arange(3)}]}, protocol=protocol)
    )
    content[at % len(content)] = byte
    with suppress(DataError):
        unpickled(bytes(content))


NESTED = reduce(lambda inner, _: [inner], range(400), [])
JUDGED = {"bbx": [0, 0, 5, 5], "easy": [0], "hard": [], "junk": []}
ODD = [
    ({"gnd": [JUDGED | {"easy": [3]}] * 2}, "odd ground truth of jpg/a.jpg: rows of a gallery of 3 images"),
    ({"gnd": [JUDGED | {"junk": [-1]}] * 2}, "rows of a gallery of 3 images are whole numbers from 0"),
    ({"gnd": [JUDGED | {"hard": [0.5]}] * 2}, "rows of a gallery of 3 images are whole numbers from 0"),
    ({"gnd": [JUDGED | {"bbx": [5, 0, 5, 5]}] * 2}, "the box 5, 0, 5, 5 is empty"),
    ({"gnd": [JUDGED | {"bbx": [0, 0, 5]}] * 2}, "a box takes left, top, right and bottom"),
    ({"gnd": [{"bbx": [0, 0, 5, 5], "ok": [1]}] * 2}, "odd ground truth of jpg/a.jpg: 'easy'"),
    ({"gnd": [JUDGED | {"bbx": [0, 0, 5, 10**400]}] * 2}, "odd ground truth of jpg/a.jpg: int too"),
    ({"imlist": [NESTED]}, "holds no list of names"),
    ({"gnd": [JUDGED]}, "does not hold a 'gnd' for each of its 2 queries"),
    ({"imlist": "abc"}, "holds no list of names"),
    ({"imlist": ["x", "x", "y"]}, "names jpg/x.jpg, which is named already"),
    ({"qimlist": ["a", "y"]}, "names jpg/y.jpg, which is named already"),
    ({"qimlist": ["a", "c"]}, "names jpg/c.jpg, which is not there"),
]


@pytest.mark.parametrize(("change", "said"), ODD)
def test_odd_landmarks_are_one_line(tmp_path, change, said):
    published.images(tmp_path, [f"jpg/{name}.jpg" for name in "abxyz"])
    held = {"imlist": ["x", "y", "z"], "qimlist": ["a", "b"], "gnd": [JUDGED] * 2} | change
    (tmp_path / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(held))
    assert said in refused(tmp_path, "gnd_rparis6k.pkl")


def test_a_box_outside_of_its_picture_is_broken(tmp_path):
    published.images(tmp_path, [f"jpg/{name}.jpg" for name in "xa"])
    held = {"imlist": ["x"], "qimlist": ["a"], "gnd": [JUDGED | {"bbx": [50, 0, 60, 5]}]}
    (tmp_path / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(held))
    with pytest.raises(Broken, match=r"the box \(50, 0, 60, 5\) of the query lies outside of its picture of 12x10"):
        open_source(str(tmp_path)).pixels(1)


def batch(**change):
    return pickle.dumps({"data": published.cifar_pixels([0, 1]), "labels": [0, 1]} | change)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (batch(labels=[0, 3]), "has the class 3; its 3 classes are numbered from 0"),
        (batch(labels=[0]), "has 1 labels for 2 pictures"),
        (batch(labels=[10**5000, 1]), "has a value of type int where it takes a whole number"),
        (batch(labels=[NESTED, 1]), "has a value of type list where it takes a whole number"),
        (batch(labels=["a", "b"]), "has 'a' where it takes a whole number"),
        (batch(data=np.zeros((2, 3072))), "holds float64 [2, 3072] as 'data', not bytes of pictures of 32x32"),
        (batch(data=np.zeros((2, 100), np.uint8)), "holds uint8 [2, 100] as 'data'"),
        (batch(data=[[1], [2, 3]]), "not bytes of pictures"),
        (pickle.dumps({"data": []}), "holds no 'labels'"),
        (pickle.dumps([1]), "holds no mapping"),
        (batch()[:-50], "is a damaged pickle"),
    ],
)
def test_odd_batches_are_one_line(tmp_path, content, said):
    published.cifar10(tmp_path)
    (tmp_path / "data_batch_4").write_bytes(content)
    assert said in refused(tmp_path, "data_batch_4")


def test_a_batch_that_vanished_is_broken(tmp_path):
    published.cifar10(tmp_path)
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    (tmp_path / "test_batch").unlink()
    assert source.pixels(0)[0, 0, 0] == 0
    with pytest.raises(Broken, match="test_batch"):
        source.pixels(len(source) - 1)
    assert source.stamp(len(source) - 1) is None
