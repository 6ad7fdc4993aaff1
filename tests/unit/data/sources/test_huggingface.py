"""Data sets of the library ``datasets``."""

import io
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.table import open_source


def png(level, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (6, 5), (level, 0, 0) if mode == "RGB" else level).save(file, "PNG")
    return file.getvalue()


def saved(path, **more):
    """Two pictures, one as bytes, one as a path, in rows that were put in another order."""
    (path.parent / "b.png").write_bytes(png(80))
    pictures = [{"bytes": png(40), "path": None}, {"bytes": None, "path": str(path.parent / "b.png")}]
    data = datasets.Dataset.from_dict(
        {"photo": pictures, "kind": [0, 1], "mask": [{"bytes": png(3, "L"), "path": None}, None], "frame": [5, 6], **more},
        features=datasets.Features({
            "photo": datasets.Image(), "kind": datasets.ClassLabel(names=["ant", "bee"]), "mask": datasets.Image(),
            "frame": datasets.Value("int32"),
        }),
    )  # fmt: skip
    data.select([1, 0]).save_to_disk(str(path))
    return f"hf://{path}"


def test_a_saved_data_set_keeps_its_order_classes_and_truth(tmp_path):
    source = open_source(saved(tmp_path / "d") + "?label=kind")
    assert {name: column.tolist() for name, column in source.columns.items()} == {
        "id": ["d:0", "d:1"], "label": [1, 0], "label_name": ["bee", "ant"], "frame": [6, 5],
    }  # fmt: skip
    assert [int(source.pixels(row)[0, 0, 0]) for row in range(2)] == [80, 40]
    assert source.extra(0, "mask") is None
    assert source.extra(1, "mask").tolist() == np.full((5, 6), 3).tolist()


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    address = saved(tmp_path / "d")
    for query, message in (("?image=foto", "has no column 'foto'. Did you mean 'photo'"),
                           ("?label=kin", "has no column 'kin'. Did you mean 'kind'"),
                           ("?config=x", "Option 'config' has no effect on a data set that was saved"),
                           ("?lable=x", "Unknown option of a source 'lable'")):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            open_source(address + query)
        assert message in str(error.value)
    with pytest.raises(DataError, match="is no data set that save_to_disk wrote"):
        open_source(f"hf://{tmp_path}")
    for file in (tmp_path / "d").glob("*.arrow"):
        file.write_bytes(b"cut")
    with pytest.raises(DataError, match=r"d cannot be opened: ") as error:
        open_source(address)
    assert len(str(error.value).splitlines()) == 1
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hf:// needs the extra 'hf': pip install 'dinoforge\[hf\]'"):
        open_source(address)


def test_columns_of_numbers_are_no_pictures(tmp_path):
    numbers = [[[1, 2], [3, 4]]] * 2
    datasets.Dataset.from_dict({"image": numbers, "label": [0, 1]}).save_to_disk(str(tmp_path / "a"))
    with pytest.raises(DataError, match=r"a has no column with images; it has image, label\. \?image= names one"):
        open_source(f"hf://{tmp_path}/a")
    with pytest.raises(DataError, match=r"has no pictures in its column 'image'; those that may: none"):
        open_source(f"hf://{tmp_path}/a?image=image")
    given = {"image": numbers, "depth": numbers, "photo": [png(40), png(80)]}
    datasets.Dataset.from_dict(given, features=datasets.Features({
        "image": datasets.Array2D((2, 2), "int32"), "depth": datasets.Array2D((2, 2), "int32"), "photo": datasets.Image(),
    })).save_to_disk(str(tmp_path / "b"))  # fmt: skip
    source = open_source(f"hf://{tmp_path}/b")
    assert [int(source.pixels(row)[0, 0, 0]) for row in range(2)] == [40, 80]
    assert source.extra(0, "depth") is None
    source._rows = [{"photo": 3}]
    with pytest.raises(Broken, match="the row holds int, not image bytes"):
        source.encoded(0)


def test_storage_whose_library_is_absent_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"gs:// needs the extra 'gcs': pip install 'dinoforge\[gcs\]'"):
        open_source("gs://bucket/photos")
    with pytest.raises(ConfigError, match=r"s3:// addresses take no user or password"):
        open_source("s3://key:secret@bucket/photos")
