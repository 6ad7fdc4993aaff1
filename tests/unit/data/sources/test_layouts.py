"""Folders in the published form of known sets: what is read from each, and what is refused."""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

import published
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.journal import Journal
from dinoforge.data.manifest import read_manifest, write_manifest
from dinoforge.data.scan import scan
from dinoforge.data.sources.layouts.table import LAYOUTS
from dinoforge.data.sources.numbers import agreed
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.opened import training_rows
from published import CALLED, FISH, MADE, OTHERS, images, picture, text

VIDEOS = {"ucf101", "something_v2", "kinetics400"}
"""Which are of clips; see test_layouts_video.py."""
FORMS = [*MADE.items(), *OTHERS.items()]


def test_every_layout_is_here():
    assert MADE.keys() | VIDEOS == LAYOUTS.keys()


@pytest.mark.parametrize(("name", "make"), FORMS, ids=[make.__name__ for _, make in FORMS])
class TestEveryLayout:
    def test_rows_are_those_of_the_lists(self, name, make, tmp_path, capsys):
        rows = make(tmp_path / CALLED.get(name, "set"))
        source = open_source(str(tmp_path / CALLED.get(name, "set")))
        said = capsys.readouterr().err
        assert f"(layout={name}); ?layout=none" in said
        assert len(said.splitlines()) == 1
        columns = source.columns
        assert columns["id"].tolist() == [*rows]
        assert all(len(column) == len(rows) for column in columns.values())
        for place, (column, kind) in enumerate((("split", "U"), ("label", "i"), ("label_name", "U"))):
            wanted = [row[place] for row in rows.values()]
            if wanted[0] is None:
                assert (column in columns) == (column == "split")
            else:
                assert columns[column].tolist() == wanted
                assert columns[column].dtype.kind == kind

    def test_pictures_are_those_of_the_rows(self, name, make, tmp_path):
        rows = make(tmp_path / CALLED.get(name, "set"))
        source = open_source(str(tmp_path / CALLED.get(name, "set")))
        if name != "imagenet_v2":
            assert [int(source.pixels(row)[0, 0, 0]) for row in range(len(rows))] == [*range(len(rows))]
        last = len(rows) - 1
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.encoded(last)))), source.pixels(last))
        again = pickle.loads(pickle.dumps(source))
        assert np.array_equal(again.pixels(last), source.pixels(last))
        assert again.stamp(0) == source.stamp(0) is not None

    def test_a_missing_file_is_one_line(self, name, make, tmp_path):
        rows = [*make(tmp_path / CALLED.get(name, "set"))]
        if name.startswith("cifar"):
            (tmp_path / CALLED.get(name, "set") / rows[-1].partition(":")[0]).unlink()
        elif name in {
            "imagenet",
            "imagenet_v2",
            "imagenet_wnids",
            "caltech101",
            "ade20k",
            "cityscapes",
        }:  # their folders are their lists
            return
        else:
            (tmp_path / CALLED.get(name, "set") / rows[-1]).unlink()
        with pytest.raises(DataError) as error:
            open_source(f"{tmp_path}/{CALLED.get(name, 'set')}?layout={name}")
        assert len(str(error.value).splitlines()) == 1
        assert rows[-1].rpartition("/")[2].partition(".")[0].partition(":")[0] in str(error.value)

    def test_is_refused_and_asked_for_by_name(self, name, make, tmp_path, capsys):
        make(tmp_path / CALLED.get(name, "set"))
        asked = open_source(f"{tmp_path}/{CALLED.get(name, 'set')}?layout={name}")
        assert capsys.readouterr().err == ""
        assert asked.address == f"{tmp_path}/{CALLED.get(name, 'set')}?layout={name}"
        assert asked.fingerprint == open_source(str(tmp_path / CALLED.get(name, "set"))).fingerprint
        if name.startswith("cifar"):
            with pytest.raises(DataError, match="holds no image"):
                open_source(f"{tmp_path}/{CALLED.get(name, 'set')}?layout=none")
            return
        plain = open_source(f"{tmp_path}/{CALLED.get(name, 'set')}?layout=none")
        files = [
            path
            for path in (tmp_path / CALLED.get(name, "set")).rglob("*")
            if path.suffix in {".jpg", ".png", ".JPEG", ".jpeg"}
        ]
        assert len(plain) == len(files)


@pytest.mark.parametrize("name", ["imagenet", "food101", "cifar10", "landmarks"])
def test_is_scanned_and_read_from_the_manifest(name, tmp_path):
    MADE[name](tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    some = source.select(np.arange(len(source))[-4:])
    with Journal(tmp_path / "journal.arrow", about={}) as journal:
        found = scan(some, earlier=None, journal=journal, workers=1)
    write_manifest(tmp_path / "m.parquet", found.tables(), made={"verb": "scan"})
    listed = open_source(str(tmp_path / "m.parquet"))
    assert listed.columns["id"].tolist() == some.columns["id"].tolist()
    assert all(np.array_equal(listed.pixels(row), some.pixels(row)) for row in range(4))
    sizes = read_manifest(tmp_path / "m.parquet")
    assert sizes.column("width").tolist() == [some.picture(row).width for row in range(len(some))]
    assert open_source(str(tmp_path / "set")).fingerprint == source.fingerprint


def test_words_and_real_labels_come_with_imagenet(tmp_path):
    published.imagenet(tmp_path / "a")
    columns = open_source(str(tmp_path / "a")).columns
    assert columns["real"].tolist() == ["", "", "", "2\n0", "", "1"]
    assert columns["words"].tolist() == [f"fish {n}, a kind" for n in (0, 1, 2, 2, 1, 0)]
    published.imagenet_kaggle(tmp_path / "b")
    again = open_source(str(tmp_path / "b")).columns
    assert again["words"].tolist() == columns["words"].tolist()
    assert "real" not in again


def test_classes_of_imagenet_have_one_number_everywhere(tmp_path):
    published.imagenet(tmp_path / "whole")
    published.imagenet_wnids(tmp_path / "part")
    folders = {f"{split}/{wnid}/{split}.JPEG": None for split in ("train", "val") for wnid in FISH[1:]}
    images(tmp_path / "plain", folders)
    number = {wnid: n for n, wnid in enumerate(FISH)}
    for source in agreed([open_source(str(tmp_path / name)) for name in ("part", "whole", "plain")]):
        labels = dict(zip(source.columns["label_name"].tolist(), source.columns["label"].tolist(), strict=True))
        assert labels == {wnid: number[wnid] for wnid in labels}
    images(tmp_path / "few", {f"train/{wnid}/1.JPEG": None for wnid in FISH[1:]})
    text(tmp_path / "few", "real.json", "[]")
    few, whole = (open_source(str(tmp_path / name)) for name in ("few", "whole"))
    assert few.columns["label"].tolist() == [0, 1]
    assert agreed([few, whole])[0].columns["label"].tolist() == [1, 2]
    text(tmp_path / "plain", "LOC_synset_mapping.txt", *(f"{wnid} fish" for wnid in FISH))
    columns = open_source(str(tmp_path / "plain")).columns
    assert columns["label"].tolist() == [1, 2, 1, 2]
    assert columns["split"].tolist() == ["train", "train", "val", "val"]


def test_coarse_classes_come_with_cifar100(tmp_path):
    published.cifar100(tmp_path / "set")
    columns = open_source(str(tmp_path / "set")).columns
    assert columns["coarse_label"].tolist() == [1, 0, 1]
    assert columns["coarse_name"].tolist() == ["animals", "fruit", "animals"]


def test_planes_of_cifar_become_pixels(tmp_path):
    published.cifar10(tmp_path / "set")
    pixels = open_source(str(tmp_path / "set")).pixels(4)
    assert pixels.shape == (32, 32, 3)
    assert pixels[5, 9].tolist() == [4, 9, 5]


def test_many_labels_come_with_voc(tmp_path):
    published.voc2007(tmp_path / "VOC2007")
    for address in (tmp_path / "VOC2007", tmp_path):
        columns = open_source(str(address)).columns
        assert columns["labels"].tolist() == ["dog", "aeroplane\ndog", "", "dog"]
        assert columns["difficult"].tolist() == ["", "", "aeroplane", ""]
        assert "label" not in columns


def test_thirty_of_each_class_of_caltech_are_drawn(tmp_path):
    published.caltech101(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    train = source.columns["split"] == "train"
    assert np.bincount(source.columns["label"][train]).tolist() == [30, 30]
    assert np.bincount(source.columns["label"][~train]).tolist() == [3, 3]
    assert not np.array_equal(train[:33], train[33:])
    inner = open_source(str(tmp_path / "set" / "101_ObjectCategories"))
    assert inner.columns["split"].tolist() == source.columns["split"].tolist()
    assert inner.columns["id"][0] == "BACKGROUND_Google/image_0001.jpg"
    shutil.rmtree(tmp_path / "set" / "101_ObjectCategories" / "BACKGROUND_Google")
    assert open_source(str(tmp_path / "set")).columns["split"].tolist() == source.columns["split"][33:].tolist()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_queries_of_landmarks_are_cropped_and_judged(tmp_path, protocol):
    published.landmarks(tmp_path / "set", protocol)
    source = open_source(str(tmp_path / "set"))
    columns = source.columns
    assert columns["easy"].tolist() == ["", "", "", "jpg/all_souls_000026.jpg", ""]
    assert columns["hard"].tolist() == ["", "", "", "jpg/all_souls_000013.jpg", "jpg/oxford_002985.jpg"]
    assert columns["junk"].tolist() == ["", "", "", "", "jpg/all_souls_000013.jpg\njpg/all_souls_000026.jpg"]
    whole = np.asarray(Image.open(io.BytesIO(picture(3))))
    assert np.array_equal(source.pixels(3), whole[1:5, 2:8])
    assert source.pixels(4).shape == (3, 12, 3)  # what of the box lies outside of the file is left out
    assert source.pixels(0).shape == (10, 12, 3)
    assert source.picture(3).pixels(4).shape == (4, 6, 3)
    assert source.stamp(3) != source.stamp(0)


def test_judged_queries_stand_beside_other_images(tmp_path):
    published.landmarks(tmp_path / "a")
    images(tmp_path / "b", ["x.png"])
    both = Several("both", [open_source(str(tmp_path / name)) for name in "ab"])
    assert both.columns["junk"].tolist()[4:] == ["jpg/all_souls_000013.jpg\njpg/all_souls_000026.jpg", ""]


def test_groups_come_with_met_and_amstertime(tmp_path):
    published.met(tmp_path / "met")
    assert open_source(str(tmp_path / "met")).columns["group"].tolist() == [7, 7, 9, 9, -1, 7]
    for name in ("MET_database", "testset", "valset"):  # as some keep it: the lists among the rest
        shutil.move(tmp_path / "met" / "ground_truth" / f"{name}.json", tmp_path / "met")
    shutil.move(tmp_path / "met" / "images" / "MET", tmp_path / "met")
    for name in ("test_met", "test_other"):
        shutil.move(tmp_path / "met" / "images" / name, tmp_path / "met")
    assert open_source(str(tmp_path / "met")).columns["id"][0] == "MET/7/0.jpg"
    published.amstertime(tmp_path / "amstertime")
    columns = open_source(str(tmp_path / "amstertime")).columns
    assert columns["group"].tolist() == [0, 1, 0, 1]
    assert columns["group_name"].tolist() == ["dam", "rokin", "dam", "rokin"]


def test_names_of_flowers_lie_beside_them(tmp_path):
    published.flowers102(tmp_path)
    names = ", ".join(f'"{n}": "flower {n}"' for n in range(1, 103))
    (tmp_path / "cat_to_name.json").write_text(f"{{{names}}}")
    assert open_source(str(tmp_path)).columns["label_name"].tolist() == [f"flower {n}" for n in (1, 1, 77, 102)]


def test_cars_without_test_labels(tmp_path):
    published.cars(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    columns = open_source(str(tmp_path)).columns
    assert columns["label"].tolist() == [1, 0, -1]
    assert columns["label_name"].tolist()[2] == ""


def test_what_the_lists_do_not_name_is_set_aside(tmp_path, capsys):
    published.food101(tmp_path)
    for number in (10, 11):
        (tmp_path / "images" / "waffles" / f"{number}.jpg").write_bytes(picture(9))
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "more.tar").write_bytes(b"x")
    assert open_source(str(tmp_path)).rejected == [
        ("more.tar", "Food-101 does not name it"),
        ("notes.md", ".md is no image format known here"),
        ("meta/labels.txt", ".txt is no image format known here; a list of images is given by its own path"),
    ]
    assert f"{tmp_path}: 2 images that the lists of Food-101 do not name are left out." in capsys.readouterr().err
    open_source(f"{tmp_path}?layout=food101")
    assert capsys.readouterr().err == ""  # it was said


VOC_LISTS = [f"ImageSets/Main/aeroplane_{split}.txt" for split in ("trainval", "test")]
WNIDS = [f"n{n:08}" for n in range(1000)]


def plain_folders():
    """Names of files that only resemble a published form."""
    classes = [f"{kind}/{n}.png" for kind in ("cats", "dogs") for n in range(2)]
    return {
        "detection": [*(f"{split}/{name}" for split in ("train", "val") for name in classes), "train.json", "val.json"],
        "wnids": [f"{wnid}/{n}.JPEG" for wnid in FISH for n in range(2)],
        "splits of wnids": [f"{split}/{wnid}/1.JPEG" for split in ("train", "val") for wnid in FISH],
        "digits": [f"{n}/1.png" for n in range(10)],
        "old and new, no pairs": ["old/a.png", "old/b.png", "new/c.png", "new/d.png"],
        "old, new and more": ["old/a.png", "new/a.png", "more/a.png"],
        "yolo": ["images/a.png", "images/b.png", "labels/a.txt", "labels/b.txt", "classes.txt"],
        "lists": ["images/a/1.png", "images/b/1.png", "train.txt", "test.txt"],
        "flat splits and labels": ["train/0001.jpg", "val/0001.jpg", "real.json"],
        "Caltech-101 and more": ["101_ObjectCategories/Faces_easy/1.jpg", "mine/1.jpg"],
        "Caltech-101 and one more": ["101_ObjectCategories/Faces_easy/1.jpg", "1.jpg"],
        "another VOC": [*VOC_LISTS, "JPEGImages/2012_000005.jpg"],
        "lists of pets": ["annotations/trainval.txt", "annotations/test.txt", "images/cat_1.jpg"],
        "before and after": ["old/a.png", "new/a.png"],
        "a thousand pairs": [f"{age}/{n}.png" for age in ("old", "new") for n in range(1000)],
        "some wnids": ["README.txt", *(f"{wnid}/{n}.JPEG" for wnid in FISH for n in range(2))],
        "many wnids": ["README.txt", *(f"{wnid}/1.JPEG" for wnid in WNIDS)],
        "lists of 2018": ["train2018.json", "val2018.json", "birds/1.jpg", "birds/2.jpg"],
    }


@pytest.mark.parametrize(("kind", "names"), plain_folders().items())
def test_a_folder_that_only_resembles_one_opens_as_before(tmp_path, capsys, kind, names):
    images(tmp_path, names)
    source, plain = open_source(str(tmp_path)), open_source(f"{tmp_path}?layout=none")
    assert capsys.readouterr().err == ""
    assert source.columns.keys() == plain.columns.keys()
    assert sorted(source.columns["id"].tolist()) == sorted(
        name for name in names if not name.endswith((".txt", ".json"))
    )


def test_options_are_of_use_or_refused(tmp_path):
    published.food101(tmp_path)
    with pytest.raises(ConfigError, match=r"Unknown layout 'food100'. Did you mean 'food101'"):
        open_source(f"{tmp_path}?layout=food100")
    with pytest.raises(ConfigError, match=r"'label' has no effect on the lists of Food-101; what has: layout, split"):
        open_source(f"{tmp_path}?label=coarse")
    with pytest.raises(ConfigError, match=r"'layout' has no effect on an image"):
        open_source(f"{tmp_path}/images/waffles/7.jpg?layout=food101")
    with pytest.raises(DataError, match=r"does not hold classes.txt, which its published form has"):
        open_source(f"{tmp_path}?layout=cub200")
    assert len(open_source(f"{tmp_path}?split=test")) == 1


def test_a_set_in_object_storage(tmp_path, object_storage):
    published.landmarks(tmp_path / "set")
    object_storage.put("sets", tmp_path)
    source = open_source("s3://sets/set")
    assert source.columns["split"].tolist() == ["gallery"] * 3 + ["query"] * 2
    assert source.pixels(3).shape == (4, 6, 3)
    plain = open_source("s3://sets/set?layout=none")
    row = plain.columns["id"].tolist().index(source.columns["id"][0])
    assert source.stamp(0) == plain.stamp(row) is not None
    assert source.stamp(3).endswith(":(2, 1, 8, 5)")
    published.cifar10(tmp_path / "cifar")
    object_storage.put("more", tmp_path / "cifar")
    assert open_source("s3://more").stamp(0) is not None


def test_sizes_and_names_tell_a_set(tmp_path, capsys):
    forms = {
        "wnids": ["README.txt", *(f"{wnid}/1.JPEG" for wnid in WNIDS[:200])],
        "sketches": [f"{wnid}/sketch_0.JPEG" for wnid in WNIDS],
        "pairs": [f"{age}/{n}.png" for age in ("old", "new") for n in range(1001)],
        "my AmsterTime": ["old/a.png", "new/a.png"],
        "caltech": ["101_ObjectCategories/Faces_easy/1.jpg", "Annotations/1.txt", "BACKGROUND_Google/1.jpg", "a.m"],
    }
    known = ["imagenet_wnids", "imagenet_wnids", "amstertime", "amstertime", "caltech101"]
    for (name, files), layout in zip(forms.items(), known, strict=True):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b"")
        open_source(str(tmp_path / name))
        assert f"(layout={layout})" in capsys.readouterr().err


def test_two_years_of_voc_are_read_as_they_lie(tmp_path, capsys):
    published.voc2007(tmp_path / "VOCdevkit" / "VOC2007")
    images(tmp_path, ["VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg"])
    for address in (tmp_path, tmp_path / "VOCdevkit"):
        assert len(open_source(str(address))) == 5
    assert capsys.readouterr().err == ""
    assert len(open_source(f"{tmp_path}?layout=voc2007")) == 4
    capsys.readouterr()
    assert len(open_source(f"{tmp_path}/VOCdevkit/VOC2007")) == 4
    assert "(layout=voc2007)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pets", "amstertime", "imagenet_wnids", "voc2007", "inaturalist2018"])
def test_a_small_copy_opens_when_it_is_asked_for(tmp_path, name):
    rows = MADE[name](tmp_path / "small")
    (tmp_path / "small" / "annotations" / "list.txt").unlink(missing_ok=True)
    assert len(open_source(f"{tmp_path}/small?layout={name}")) == len(rows)


def test_a_flat_imagenet_without_a_list_has_no_labels_there(tmp_path, capsys):
    rows = published.imagenet(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "ILSVRC2012_devkit_t12")
    source = open_source(str(tmp_path / "set"))
    assert source.columns["id"].tolist() == [*rows]
    assert source.columns["label"].tolist() == [0, 1, 2, -1, -1, -1]
    assert source.columns["label_name"].tolist() == [*FISH, "", "", ""]
    assert source.columns["real"].tolist()[3:] == ["2\n0", "", "1"]
    assert "(layout=imagenet)" in capsys.readouterr().err
    few = training_rows(str(tmp_path / "set"))
    assert few.columns["label"].tolist() == [0, 1, 2]
    assert f"{tmp_path}/set: 3 of its 6 images are used, those of the split train." in capsys.readouterr().err
    assert len(training_rows(f"{tmp_path}/set?split=train")) == 3
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "set" / "train")
    (tmp_path / "set" / "real.json").unlink()
    flat = open_source(str(tmp_path / "set"))
    assert "label" not in flat.columns
    assert len(agreed([flat, source, few])) == 3


HELD = {"voc2007": "VOCdevkit/VOC2007", "voc2012_masks": "VOCdevkit/VOC2012", "ade20k": "ADEChallengeData2016",
        "cityscapes": "cityscapes", "spair": "SPair-71k", "davis": "DAVIS", "nyu_depth_v2": "nyu_depth_v2",
        "kitti_eigen": "kitti"}  # fmt: skip


@pytest.mark.parametrize("place", ["", "of its own", "indoor/heap"])
@pytest.mark.parametrize("name", HELD)
def test_a_set_in_a_heap_leaves_no_image_out(name, place, tmp_path, capsys):
    start = "" if not place else f"{HELD[name]}/" if place == "of its own" else f"{place}/{HELD[name]}/"
    published.MADE[name](tmp_path / start)
    if place != "indoor/heap":
        alone = open_source(str(tmp_path))
        assert f"(layout={name})" in capsys.readouterr().err
    published.images(tmp_path, [f"photos/{n}.jpg" for n in range(20)])
    found = open_source(str(tmp_path))
    assert {f"photos/{n}.jpg" for n in range(20)} <= {*found.columns["id"].tolist()}
    said = capsys.readouterr().err
    assert "(layout=" not in said
    if place != "indoor/heap":
        assert f"and other images, so it is read as it lies; ?layout={name} reads" in said
        asked = open_source(f"{tmp_path}?layout={name}")
        assert asked.columns["id"].tolist() == alone.columns["id"].tolist()
