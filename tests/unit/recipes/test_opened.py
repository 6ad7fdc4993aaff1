"""Which labelled images are learnt from and which are asked."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import published
from dinoforge.base.errors import DataError
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png
from dinoforge.recipes.opened import every_fifth, labelled


def table(path, **columns):
    """A Parquet file of tiny pictures."""
    count = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [png(np.zeros((1, 1, 3), np.uint8))] * count, **columns}), path)
    return str(path)


def numbers(side):
    return [int(name.rpartition(":")[2]) for name in side.columns["id"].tolist()]


@pytest.mark.parametrize("name", ["aircraft", "dtd", "flowers102"])
def test_val_joins_what_is_learnt_from_in_published_sets(name, tmp_path):
    """SimCLR's protocol, which DINOv2 follows: val is there to choose settings by, and is learnt from at last."""
    getattr(published, name)(tmp_path)
    known, asked = labelled(str(tmp_path))
    assert set(known.columns["split"]) == {"train", "val"}
    assert set(asked.columns["split"]) == {"test"}
    assert len(known) + len(asked) == len(open_source(str(tmp_path)))


def test_val_is_asked_where_test_has_no_labels(tmp_path):
    address = table(tmp_path / "t.parquet", split=["train", "train", "val", "val", "test"], label=[0, 1, 0, 1, -1])
    assert [numbers(side) for side in labelled(address)] == [[0, 1], [2, 3]]


def test_every_fifth_image_is_asked_where_none_belong_together(tmp_path):
    for more in ({}, {"group": [-1] * 10, "clip": [""] * 10}, {"group": list(range(10))}):
        known, asked = labelled(table(tmp_path / "t.parquet", label=[0, 1] * 5, **more))
        assert (numbers(known), numbers(asked)) == ([0, 1, 2, 3, 5, 6, 7, 8], [4, 9])


@pytest.mark.parametrize("name", ["clip", "group"])
def test_clips_and_groups_are_asked_whole(name, tmp_path, capsys):
    """In the order in which they appear; images of none stand alone."""
    units = [7, 7, 3, 3, 5, -1, 1, 1, 7, -1, 0, 2, 4, 6, 1]
    #        0  0  1  1  2   3  4  4  0   5  6  7  8  9  4
    kinds = {"clip": ["" if unit < 0 else f"c{unit}" for unit in units], "group": units}
    labels = [0, 1] * 7 + [1]
    known, asked = labelled(table(tmp_path / "t.parquet", label=labels, **{name: kinds[name]}))
    assert numbers(asked) == [6, 7, 13, 14]
    assert len(known) == 11
    assert f"t.parquet: every fifth {name} is asked, all its images together." in capsys.readouterr().err


def test_groups_that_share_a_clip_are_one(tmp_path):
    """And clips that share a group with these, on and on."""
    labels, groups = [0, 1, 0, 1, 0, 1, 0, 1, 1, 1], [0, 1, 2, 3, 4, 4, 5, 4, 5, 6]
    clips = ["a", "b", "c", "d", "e", "f", "", "", "", ""]
    address = table(tmp_path / "t.parquet", label=labels, clip=clips, group=groups)
    assert numbers(labelled(address)[1]) == [4, 5, 7]
    clips[5] = "b"  # and with it all of group 4 belongs to group 1
    address = table(tmp_path / "t.parquet", label=labels, clip=clips, group=groups)
    assert numbers(labelled(address)[1]) == [6, 8]


@pytest.mark.parametrize("groups", [[0, 1] * 5, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]], ids=["classes", "one class asked"])
def test_groups_are_divided_where_classes_would_be_missing(groups, tmp_path, capsys):
    labels = [group % 2 for group in groups]
    assert numbers(labelled(table(tmp_path / "t.parquet", label=labels, group=groups))[1]) == [4, 9]
    assert "t.parquet: every fifth image is asked; each group as a whole would leave" in capsys.readouterr().err


def test_no_class_is_asked_that_is_not_learnt(tmp_path):
    labels, groups = [0, 1, 0, 1, 2, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert numbers(labelled(table(tmp_path / "t.parquet", label=labels, group=groups))[1]) == [9]
    labels[0] = 2
    assert numbers(labelled(table(tmp_path / "t.parquet", label=labels, group=groups))[1]) == [4, 5]


def test_an_image_alone_of_its_class_is_learnt_from(tmp_path, capsys):
    known, asked = labelled(table(tmp_path / "t.parquet", label=[0, 1, 0, 1, 2, 0, 1, 0, 1, 0]))
    assert (numbers(known), numbers(asked)) == ([0, 1, 2, 3, 4, 5, 6, 7, 8], [9])
    said = "t.parquet: 1 images that would be asked are the only ones of their class, and are not."
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 0, 0, 0, 1]])
def test_too_few_to_be_divided(labels, tmp_path):
    with pytest.raises(
        DataError, match=rf"t.parquet has {len(labels)} images and no splits .* it takes 5 or more"
    ) as error:
        labelled(table(tmp_path / "t.parquet", label=labels))
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_said(tmp_path, capsys):
    splits = ["train", "train", "test", "test", "", "train"]
    known, asked = labelled(table(tmp_path / "t.parquet", label=[0, 1, 0, 1, 0, -1], split=splits))
    assert (numbers(known), numbers(asked)) == ([0, 1], [2, 3])
    said = capsys.readouterr().err
    assert "t.parquet: 1 of its 6 images have no label and are left out." in said
    assert "t.parquet: 1 of its 5 images are in no split and are left out." in said


def test_images_without_classes_are_asked_by_groups_too(tmp_path):
    whole = open_source(table(tmp_path / "t.parquet", group=[0, 0, 1, 2, 3, 4, 4]))
    assert numbers(every_fifth(whole, classes=False)[1]) == [5, 6]
