"""What a manifest of anyone's making may show."""

from contextlib import suppress
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError
from dinoforge.data.decode import Broken
from dinoforge.data.manifest import SCHEMA, keys, write_manifest
from dinoforge.data.sources.table import open_source
from dinoforge.explore.roots import open_below
from films import noise, write


def png(shade=200):
    file = BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def scanned(address, out, **more):
    """A manifest of all images at an address, and more columns."""
    found = open_source(str(address))
    ids = found.columns["id"].tolist()
    columns = {"id": ids, "source": [str(address)] * len(ids), "uri": keys(found.columns["id"]).to_pylist(), **more}
    fields = [
        *SCHEMA,
        *(pa.field(name, pa.array(values).type) for name, values in more.items() if name not in SCHEMA.names),
    ]
    table = pa.table(
        [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(ids), f.type) for f in fields],
        pa.schema(fields),
    )
    write_manifest(out, [table], made={"verb": "scan"})


def listed(path, kind, **column):
    """A Parquet file whose column names images."""
    (name, texts), *_ = column.items()
    pq.write_table(pa.table({name: kind(texts)}), path)


def as_struct(texts):
    return pa.array([{"bytes": None, "path": text} for text in texts])


def as_text(texts):
    return pa.array(texts)


def as_words(texts):
    return pa.array(texts).dictionary_encode()


def link_to_file(mine, secret):
    (mine / "images" / "b.png").symlink_to(secret / "a.png")
    return "images"


def link_to_folder(mine, secret):
    (mine / "images" / "more").symlink_to(secret)
    return "images"


def link_in_a_pattern(mine, secret):
    return link_to_file(mine, secret) + "/*.png"


def folder_with_a_table(mine, secret):
    listed(mine / "images" / "t.parquet", as_text, image=[str(secret / "a.png")])
    return "images"


def struct(mine, secret):
    listed(mine / "t.parquet", as_struct, image=[str(secret / "a.png")])
    return "t.parquet"


def dictionary(mine, secret):
    listed(mine / "t.parquet", as_words, image=["images/mine.png", str(secret / "a.png")])
    return "t.parquet"


def own_column(mine, secret):
    listed(mine / "t.parquet", as_text, where=["../secret/a.png"])
    return "t.parquet?image=where"


def frames(mine, secret):
    (mine / "list.txt").write_text(str(secret / "a.avi"))
    return "list.txt?frames=2"


def table(mine, secret):
    (mine / "list.csv").write_text(f"where\n{secret / 'a.png'}\n")
    return "list.csv?image=where"


def linked_table(mine, secret):
    pq.write_table(pa.table({"image": pa.array([png()])}), secret / "held.parquet")
    (mine / "t.parquet").symlink_to(secret / "held.parquet")
    return "t.parquet"


def manifest_of_a_manifest(mine, secret):
    scanned(secret / "a.png", mine / "inner.parquet")
    return "inner.parquet"


WAYS = [link_to_file, link_to_folder, link_in_a_pattern, folder_with_a_table, struct, dictionary, own_column, frames, table,
        linked_table, manifest_of_a_manifest]  # fmt: skip


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder that may be shown, which is the working directory, and one beside it that may not."""
    mine, secret = tmp_path / "mine", tmp_path / "secret"
    (mine / "images").mkdir(parents=True)
    secret.mkdir()
    (mine / "images" / "mine.png").write_bytes(png(100))
    (secret / "a.png").write_bytes(png())
    write(secret / "a.avi", noise(4))
    monkeypatch.chdir(mine)
    return mine, secret


def elsewhere(found, row):
    """Whether a row is refused; one that is not is ours."""
    with suppress(Broken):
        assert found.encoded(row) == png(100)
        return False
    with pytest.raises(Broken, match="which is below none of"):
        found.picture(row)
    return True


@pytest.mark.parametrize("way", WAYS)
def test_nothing_elsewhere_is_read(places, way):
    """Refused as a whole, or each image elsewhere is broken; with the folder declared, all are shown."""
    mine, secret = places
    scanned(mine / way(mine, secret), mine / "m.parquet")
    try:
        found = open_below("m.parquet", [])
    except ConfigError as error:
        told = str(error)
    else:
        told = "which is below none of" if any(elsewhere(found, row) for row in range(len(found))) else "all was shown"
    assert "which is below none of" in told
    declared = open_below("m.parquet", [str(secret)])
    assert all(len(declared.encoded(row)) and declared.picture(row).width for row in range(len(declared)))


def test_a_saved_data_set_may_not_lead_elsewhere(places):
    datasets = pytest.importorskip("datasets")
    mine, secret = places
    datasets.Dataset.from_dict({"image": [png()]}).save_to_disk(str(secret / "set"))
    (mine / "set").mkdir()
    for file in (secret / "set").iterdir():
        (mine / "set" / file.name).symlink_to(file)
    datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(secret / "a.png")}]}).save_to_disk(
        str(mine / "paths")
    )
    for number, address in enumerate((f"hf://{secret / 'set'}", f"hf://{mine / 'set'}")):
        scanned(address, mine / f"{number}.parquet")
        with pytest.raises(ConfigError, match="below none of"):
            open_below(f"{number}.parquet", [])
        assert open_below(f"{number}.parquet", [str(secret)]).encoded(0) == png()
    scanned(f"hf://{mine / 'paths'}", mine / "m.parquet")
    assert elsewhere(open_below("m.parquet", []), 0)


def test_a_selection_stays_behind_the_fence(places):
    mine, secret = places
    pq.write_table(pa.table({"image": [png()], "mask": [str(secret / "a.png")]}), mine / "t.parquet")
    scanned(mine / "t.parquet", mine / "m.parquet")
    with pytest.raises(Broken, match="below none of"):
        open_below("m.parquet", []).select(np.array([0])).extra(0, "mask")


def test_a_home_is_no_way_around(places, monkeypatch):
    mine, secret = places
    monkeypatch.setenv("HOME", str(mine))
    scanned(secret, mine / "m.parquet")
    with pytest.raises(ConfigError, match="below none of"):
        open_below("~/m.parquet", [])


def test_a_packed_manifest_needs_no_roots_but_its_shards_may_not_lie_elsewhere(places):
    mine, secret = places
    (mine / "shards").mkdir()
    (mine / "shards" / "0.tar").write_bytes(png())
    scanned(secret / "a.png", mine / "m.parquet", bytes=[len(png())], shard=["shards/0.tar"], offset=[0])
    assert open_below("m.parquet", []).encoded(0) == png()
    (mine / "shards" / "0.tar").rename(secret / "0.tar")
    (mine / "shards" / "0.tar").symlink_to(secret / "0.tar")
    with pytest.raises(ConfigError, match="below none of"):
        open_below("m.parquet", [])


def test_what_is_no_manifest_takes_no_roots(places):
    with pytest.raises(ConfigError, match="has no effect"):
        open_below("images", ["/tmp"])
    assert len(open_below("images", [])) == 1
