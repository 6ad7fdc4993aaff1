"""What crawls hold: files that mean harm are set aside with a reason, what can be read is read, nothing gets out."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hostile import hostile

from dinoforge.data.manifest import read_manifest

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def beside(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "hostile" not in path.parts}


def test_hostile_files(run, tmp_path):
    good, bad = hostile(tmp_path / "hostile")
    assert len(good | bad) >= 40
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "hostile").rglob("*")}
    done = run("scan", f"data={tmp_path / 'hostile'}", f"out={tmp_path / 'm.parquet'}", "--json")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    manifest = read_manifest(tmp_path / "m.parquet")
    found = set(manifest.column("id").tolist())
    reasons = {line["id"]: line["reason"] for line in manifest.made["rejected"]}
    assert good <= found
    assert bad <= reasons.keys()
    assert all(reason.strip() and "\n" not in reason for reason in reasons.values())
    # Of the archives: what is whole and inside, and a word on everything else.
    for name, member in (("upwards", "fine"), ("absolute", "fine"), ("links", "fine"), ("cut", "whole")):
        assert any(name in image and member in image for image in found - good), name
        assert any(name in image for image in reasons), name
    assert not any("escaped" in image or "passwd" in image for image in found)
    assert done.facts["images"] == len(found)
    assert done.facts["rejected"] == len(reasons)
    # Nothing was written but the manifest; nothing was run.
    assert beside(tmp_path) == {"m.parquet"}
    assert not Path("/tmp/escaped.jpg").exists()
    after = {path: path.lstat().st_mtime_ns for path in (tmp_path / "hostile").rglob("*")}
    made = {path.name for path in after.keys() - before.keys()}
    assert all("index" in name for name in made), made
    assert all(after[path] == time for path, time in before.items() if not path.is_dir())


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared real images")
def test_all_the_real_images(run, tmp_path):
    """Every folder, the pool and the near duplicates too: 2 clips' worth of files are no images, everything else is."""
    link = tmp_path / "data"
    link.symlink_to(SHARED.resolve())
    done = run("scan", f"data={link}", f"out={tmp_path / 'm.parquet'}", "--json")
    assert done.code == 0, done.err
    rows = sum(pq.read_metadata(path).num_rows for path in SHARED.rglob("*.parquet"))
    photos = len([path for path in (SHARED / "photos").iterdir() if path.suffix in {".png", ".jpg", ".jpeg"}])
    manifest = read_manifest(tmp_path / "m.parquet")
    assert len(manifest) == rows + photos
    assert all(line["reason"] for line in manifest.made["rejected"])
    # Exact copies that the data's description names: 6 pairs among near_duplicates, 6 pairs and 12 copies in the pool, …
    assert done.facts["exact_duplicates"] >= 6 + 6 + 12 + 8
    assert {path.name for path in tmp_path.iterdir()} == {"data", "m.parquet"}
