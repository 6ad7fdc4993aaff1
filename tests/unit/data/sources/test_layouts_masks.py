"""Folders in the published form of sets with the class of every pixel: which masks are read, and what their numbers become."""

import pickle
import shutil

import numpy as np
import pytest

import published
from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.table import open_source
from published import mask, picture, text


def numbers(source, row, count=5):
    return source.extra(row, "mask").ravel()[:count].tolist()


def test_zero_is_nothing_in_ade20k(tmp_path):
    published.ade20k(tmp_path / "ADEChallengeData2016")
    for address in (tmp_path, tmp_path / "ADEChallengeData2016"):
        source = open_source(str(address))
        # 0 belongs to no class; classes 1 to 150 are 0 to 149; there is no 151.
        assert numbers(source, 0) == [255, 0, 149, 255, 255]
        assert source.extra(1, "mask").shape == (10, 12)
        assert source.extra(1, "depth") is None
        assert len(source.mask_names) == 150
    again = pickle.loads(pickle.dumps(source))
    assert numbers(again, 1) == numbers(source, 1)
    assert source.select(np.asarray([1])).mask_names == source.mask_names


def test_names_of_ade20k_lie_beside_it(tmp_path):
    published.ade20k(tmp_path)
    lines = [f"{n}\t0.1\t10\t1\tthing {n}, other name" for n in range(1, 151)]
    text(tmp_path, "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName", *lines)
    assert open_source(str(tmp_path)).mask_names[:2] == ("thing 1", "thing 2")
    text(tmp_path, "objectInfo150.txt", *lines)
    with pytest.raises(DataError, match="names 149 classes; they are 150"):
        open_source(str(tmp_path))


def test_borders_are_ignored_in_voc2012(tmp_path):
    published.voc2012_masks(tmp_path / "VOCdevkit" / "VOC2012")
    for address in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        source = open_source(str(address))
        assert source.columns["split"].tolist() == ["train", "train", "val", "test"]
        assert numbers(source, 0) == [0, 20, 255, 255, 0]
        assert source.extra(3, "mask") is None
        assert source.mask_names[20] == "tvmonitor"


def test_the_larger_list_of_voc2012_is_taken_where_it_is(tmp_path):
    published.voc2012_masks(tmp_path)
    text(tmp_path, "ImageSets/Segmentation/trainaug.txt", "2007_000032", "2009_000009")
    (tmp_path / "JPEGImages" / "2009_000009.jpg").write_bytes(picture(9))
    for name in ("2007_000032", "2009_000009"):
        mask(tmp_path, f"SegmentationClassAug/{name}.png", [3])
    source = open_source(str(tmp_path))
    assert source.columns["id"].tolist()[:2] == ["JPEGImages/2007_000032.jpg", "JPEGImages/2009_000009.jpg"]
    assert [numbers(source, row, 1) for row in (0, 1, 2)] == [[3], [3], [0]]


def test_classification_of_2007_is_not_taken_for_segmentation_of_2012(tmp_path, capsys):
    published.voc2007(tmp_path / "VOC2007")
    text(tmp_path / "VOC2007", "ImageSets/Segmentation/train.txt", "000005")
    text(tmp_path / "VOC2007", "ImageSets/Segmentation/val.txt", "000009")
    mask(tmp_path / "VOC2007", "SegmentationClass/000005.png", [1])
    assert "labels" in open_source(str(tmp_path / "VOC2007")).columns
    assert "(layout=voc2007)" in capsys.readouterr().err
    published.voc2012_masks(tmp_path / "VOC2012")
    assert open_source(str(tmp_path)).mask_names == ()  # two years are read as they lie
    assert "(layout=" not in capsys.readouterr().err


def test_ids_of_cityscapes_become_those_that_are_trained_by(tmp_path):
    published.cityscapes(tmp_path)
    source = open_source(str(tmp_path))
    assert source.columns["split"].tolist() == ["test", "train", "val"]
    assert numbers(source, 1) == [255, 0, 18, 255, 255]
    assert source.extra(0, "mask") is None  # made up for the test images
    assert (len(source.mask_names), source.mask_names[18]) == (19, "bicycle")
    for split, city in (("train", "aachen"), ("val", "ulm")):
        mask(tmp_path, f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelTrainIds.png", [0, 18, 255, 19])
    assert numbers(open_source(str(tmp_path)), 1) == [0, 18, 255, 255, 0]


@pytest.mark.parametrize(
    ("make", "lost"),
    [
        (published.ade20k, "annotations/training/ADE_train_00000001.png"),
        (published.voc2012_masks, "SegmentationClass/2011_000005.png"),
        (published.cityscapes, "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"),
    ],
)
def test_a_missing_mask_is_one_line(tmp_path, make, lost):
    make(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path))
    assert lost in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_damaged_mask_is_told_when_it_is_read(tmp_path):
    published.ade20k(tmp_path)
    (tmp_path / "annotations/training/ADE_train_00000001.png").write_bytes(b"no picture")
    with pytest.raises(Broken):
        open_source(str(tmp_path)).extra(0, "mask")


def test_masks_and_other_files_of_a_set_are_not_set_aside(tmp_path):
    published.cityscapes(tmp_path)
    mask(tmp_path, "gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png", [1])
    assert open_source(str(tmp_path)).rejected == []
    shutil.rmtree(tmp_path / "gtFine")
    assert len(open_source(str(tmp_path))) == 3  # as it lies: nothing says what is true
    with pytest.raises(DataError, match="gtFine"):
        open_source(f"{tmp_path}?layout=cityscapes")
