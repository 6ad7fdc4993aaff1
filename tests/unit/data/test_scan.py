"""A scan names every image once: its key, its size, copies and broken ones."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from dinoforge.base.errors import DataError
from dinoforge.data.manifest import read_manifest, write_manifest
from dinoforge.data.scan import scan
from dinoforge.data.sources.table import open_source


def test_scan(tmp_path):
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.fromarray(np.ones((8, 6), np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    seen = list(scan(open_source(str(tmp_path))))
    rows = {found.name: found.row for found in seen}
    assert list(rows) == ["a.png", "b.png", "c.png", "d.png"]
    assert rows["d.png"] is None
    assert seen[3].reason
    data = (tmp_path / "a.png").read_bytes()
    assert rows["a.png"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert (rows["a.png"]["width"], rows["a.png"]["height"], rows["a.png"]["bytes"]) == (7, 5, len(data))
    assert rows["a.png"]["reason"] == ""
    assert rows["b.png"]["reason"] == "exact copy of a.png"
    assert rows["c.png"]["width"] == 6

    path = tmp_path / "m.parquet"
    write_manifest(path, [row for row in rows.values() if row], made={"verb": "scan"})
    back, made = read_manifest(path)
    assert [row["id"] for row in back] == ["a.png", "b.png", "c.png"]
    assert made == {"verb": "scan"}
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        read_manifest(tmp_path / "a.png")


def test_labels_and_splits_come_along():
    rows = [found.row for found in scan(open_source("toy://species?images=5&size=16"))]
    assert rows[4]["split"] == "test"
    assert rows[0]["label_name"]
    assert isinstance(rows[0]["label"], int)
