"""Published sets with depth: which map goes with which picture, in which unit, and what is left out."""

import numpy as np
import pytest

import published
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.depth_units import measured
from dinoforge.data.journal import Journal
from dinoforge.data.manifest import write_manifest
from dinoforge.data.scan import scan
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.table import open_source
from published import depth, images, text


def metres(source):
    units = source.columns["depth_unit"]
    maps = [measured(source.extra(row, "depth"), str(units[row]), name="row") for row in range(len(source))]
    return [float(one[0, 0]) for one in maps]


def test_depth_of_nyu_is_in_millimetres(tmp_path):
    published.nyu_depth_v2(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert source.columns["depth_unit"].tolist() == ["millimetres"] * 3
    assert metres(source) == pytest.approx([1.0, 1.001, 1.002])
    assert metres(source.select(np.array([2, 0]))) == pytest.approx([1.002, 1.0])


def test_depth_of_kitti_is_in_256ths_of_a_metre(tmp_path):
    published.kitti_eigen(tmp_path / "set")
    source = open_source(str(tmp_path / "set"))
    assert metres(source) == [2.0, 3.0, 4.0]


def test_rows_of_kitti_without_depth_are_left_out_with_a_word(tmp_path, capsys):
    published.kitti_eigen(tmp_path / "set")
    by = tmp_path / "set" / "eigen_test_files_with_gt.txt"
    name = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000070.png"
    by.write_text(by.read_text() + f"{name} None 721.5377\n")
    images(tmp_path / "set", [f"raw/{name}"])
    source = open_source(str(tmp_path / "set"))
    said = capsys.readouterr().err
    assert len(source) == 3
    assert "1 images of eigen_test_files_with_gt.txt have no depth (None) and are left out" in said
    assert len(said.splitlines()) == 2


def test_pictures_of_kitti_may_be_jpeg_and_all_lie_together(tmp_path):
    """As another widely used preparation has it: ``input`` and ``gt_depth``."""
    drive = "2011_09_26_drive_0001_sync"
    root, frame = tmp_path / "set", "0000000005"
    text(root, "splits/kitti_eigen_test.txt", f"2011_09_26/{drive}/image_02/data/{frame}.png "
         f"{drive}/proj_depth/groundtruth/image_02/{frame}.png 721.5")  # fmt: skip
    images(root, [f"input/2011_09_26/{drive}/image_02/data/{frame}.jpg"])
    depth(root, f"gt_depth/{drive}/proj_depth/groundtruth/image_02/{frame}.png", np.full((10, 12), 512))
    source = open_source(str(root))
    assert source.columns["id"].tolist() == [f"input/2011_09_26/{drive}/image_02/data/{frame}.jpg"]
    assert metres(source) == [2.0]


@pytest.mark.parametrize("name", ["nyu_depth_v2", "kitti_eigen"])
def test_a_map_that_is_not_there_is_one_line(name, tmp_path):
    published.MADE[name](tmp_path / "set")
    lost = next(path for path in sorted((tmp_path / "set").rglob("*.png")) if "depth" in str(path))
    lost.unlink()
    with pytest.raises(DataError, match="which is not there") as error:
        open_source(f"{tmp_path}/set?layout={name}")
    assert lost.stem in str(error.value)


def test_a_list_with_too_few_fields_is_one_line(tmp_path):
    published.nyu_depth_v2(tmp_path / "set")
    text(tmp_path / "set", "nyu_test.txt", "bathroom/rgb_00045.jpg bathroom/sync_depth_00045.png")
    with pytest.raises(DataError, match="takes 3 fields"):
        open_source(str(tmp_path / "set"))


def test_a_manifest_keeps_the_unit(tmp_path):
    published.kitti_eigen(tmp_path / "set")
    with Journal(tmp_path / "journal.arrow", about={}) as journal:
        found = scan(open_source(str(tmp_path / "set")), earlier=None, journal=journal, workers=1)
    write_manifest(tmp_path / "m.parquet", found.tables(), made={"verb": "scan"})
    assert metres(open_source(str(tmp_path / "m.parquet"))) == [2.0, 3.0, 4.0]


def test_an_address_says_the_unit_and_it_is_that(tmp_path):
    published.nyu_depth_v2(tmp_path / "set")
    source = open_source(f"{tmp_path}/set?depth_unit=centimetres&split=test")
    assert metres(source) == pytest.approx([10.02])
    both = Several("both", [source, open_source("toy://species?images=10")])
    assert both.columns["depth_unit"].tolist() == ["centimetres"] + [""] * 10


@pytest.mark.parametrize("unit", ["feet", "0", "-1", "nan", "inf", ""])
def test_an_unknown_unit_is_one_line(unit, tmp_path):
    published.nyu_depth_v2(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"\?depth_unit takes metres, centimetres, millimetres, disparity"):
        open_source(f"{tmp_path}/set?depth_unit={unit}")


def test_a_drawn_world_takes_no_unit():
    with pytest.raises(ConfigError, match="depth_unit"):
        open_source("toy://species?images=10&depth_unit=metres")
