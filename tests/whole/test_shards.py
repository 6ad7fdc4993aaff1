"""Tar shards that ``curate`` writes: any tar reader reads them, training does when the pool is gone, and nothing is half there."""

import json
import resource
import shutil
import tarfile
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dinoforge
from dinoforge.base.errors import ConfigError, DataError, RunError, UserError
from dinoforge.curate.executors.run import here
from dinoforge.curate.shards import packed
from dinoforge.data.decode import Broken
from dinoforge.data.manifest import SCHEMA, read_manifest, write_manifest
from dinoforge.data.toyworld.pollution import jpeg, png

TINY = {
    "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2, "objective.head.prototypes": 64,
    "objective.head.hidden": 32, "objective.head.bottleneck": 16, "objective.group": 8, "plan.batch": 8,
    "plan.images": 16, "precision": "fp32", "workers": 0,
}  # fmt: skip


@pytest.fixture
def pool(tmp_path):
    """Seventeen pictures of two classes in two formats, and a copy of one."""
    rng = np.random.default_rng(0)
    for number in range(17):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        pixels = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
        folder = tmp_path / "pool" / ("moth" if number % 2 else "fern")
        folder.mkdir(parents=True, exist_ok=True)
        name, encoded = (f"{number}.v2.jpeg", jpeg(pixels, 90)) if number % 3 else (f"{number}.PNG", png(pixels))
        (folder / name).write_bytes(encoded)
    (folder / "z.PNG").write_bytes((tmp_path / "pool" / "fern" / "0.PNG").read_bytes())
    return tmp_path / "pool"


def curated(pool, out, **words):
    return dinoforge.curate(
        pool=str(pool), retrieve="all", stages="exact", out=str(out), **{"workers": 1, "shards.images": "7", **words}
    )


def tars(out):
    return sorted((out / "shards").iterdir())


def test_any_reader_reads_them_and_training_needs_no_pool(pool, tmp_path):
    out = tmp_path / "c"
    found = curated(pool, out)
    assert (found.kept, found.shards) == (17, 3)
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    originals = {row["id"]: (pool / row["id"]).read_bytes() for row in rows}
    assert [path.stat().st_size % tarfile.RECORDSIZE for path in tars(out)] == [0, 0, 0]
    members, samples = {}, []
    for path in tars(out):
        assert path.read_bytes()[257:265] == b"ustar\x0000"
        with tarfile.open(path) as archive:
            names = archive.getnames()
            samples.append(len({name.split(".")[0] for name in names}))
            members |= {name: archive.extractfile(name).read() for name in names}
    assert samples == [7, 7, 3]
    assert len(members) == 34
    for number, row in enumerate(rows):
        about = json.loads(members[f"{number:09}.json"])
        assert {name: about[name] for name in ("id", "sha256", "reason", "source", "label_name")} == {
            "id": row["id"], "sha256": row["sha256"], "reason": "kept", "source": str(pool), "label_name": row["label_name"]
        }  # fmt: skip
        ending = "jpg" if row["id"].endswith("jpeg") else "png"
        assert members[f"{number:09}.{ending}"] == originals[row["id"]]
        with (out / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            assert file.read(row["bytes"]) == originals[row["id"]]
    shutil.rmtree(pool)
    alone = dinoforge.open_source(str(out / "shards"))
    assert sorted(alone.columns["label_name"]) == sorted(row["label_name"] for row in rows)
    moved = tmp_path / "elsewhere"
    out.rename(moved)
    manifest = str(moved / "manifest.parquet")
    source = dinoforge.open_source(manifest)
    order = np.random.default_rng(1).permutation(17).tolist()
    assert [source.encoded(row) for row in order] == [originals[rows[row]["id"]] for row in order]
    assert len({source.stamp(row) for row in range(17)}) == 17
    scanned = dinoforge.scan(data=manifest, out=str(tmp_path / "m.parquet"), workers=1)
    assert scanned.images == 17
    assert read_manifest(tmp_path / "m.parquet").column("sha256").tolist() == [row["sha256"] for row in rows]
    assert dinoforge.stats(data=manifest).images == 17
    run = dinoforge.pretrain(data=manifest, out=tmp_path / "run", recipe="vit_micro.toy", **TINY)
    assert run.steps == 2


def test_shards_that_are_right_stay_and_others_go(pool, tmp_path):
    out = tmp_path / "c"
    curated(pool, out)
    before = {path.name: path.stat().st_mtime_ns for path in tars(out)}
    curated(pool, out)
    assert {path.name: path.stat().st_mtime_ns for path in tars(out)} == before
    (pool / "moth" / "z.PNG").write_bytes(b"no picture, so not among the kept")
    (pool / "moth" / "9.PNG").unlink()  # of the last shard
    assert curated(pool, out).kept == 16
    after = {path.name: path.stat().st_mtime_ns for path in tars(out)}
    assert len(after) == 3
    assert len(before.items() & after.items()) == 2
    assert len(dinoforge.open_source(str(out / "manifest.parquet"))) == 16
    curated(pool, out, **{"shards.images": None})
    assert {path.name for path in tars(out)} == after.keys()  # nobody asked for their end
    assert "shard" not in pq.read_table(out / "manifest.parquet").column_names


def table(contents):
    columns = {
        "id": [f"{n}.png" for n in range(len(contents))], "source": ["s"] * len(contents),
        "sha256": [sha256(content).hexdigest() for content in contents], "bytes": [len(content) for content in contents],
    }  # fmt: skip
    fields = [SCHEMA.field(name) for name in columns]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns.values(), fields, strict=True)],
                    schema=pa.schema(fields))  # fmt: skip


def test_an_interrupted_start_goes_on_and_leaves_nothing_half(tmp_path):
    contents = [bytes([n]) * (300 * n) for n in range(1, 21)]
    asked = []

    def read(row, *, until=20):
        asked.append(row)
        if row >= until:
            raise Broken("the disk was taken out")
        return contents[row]

    with pytest.raises(DataError, match=r"^12\.png of s can no longer be read: the disk was taken out; run again\.$"):
        packed(tmp_path, table(contents), each=5, read=lambda row: read(row, until=12), crew=here())
    assert len(list((tmp_path / "shards").iterdir())) == 2
    (tmp_path / "shards" / ".000002-01234567.tar.abcdefgh").write_bytes(b"of a start that was killed")
    asked.clear()
    found, files = packed(tmp_path, table(contents), each=5, read=read, crew=here())
    assert asked == list(range(10, 20))
    assert sorted(f"shards/{path.name}" for path in (tmp_path / "shards").iterdir()) == files
    for row, line in enumerate(found.to_pylist()):
        assert (tmp_path / line["shard"]).read_bytes()[line["offset"] :][: line["bytes"]] == contents[row]
    with pytest.raises(DataError, match=r"^0\.png of s has changed since it was read; run again\.$"):
        packed(tmp_path / "other", table(contents), each=5, read=lambda row: b"something else", crew=here())


@pytest.mark.parametrize(("gone", "engine"), [(False, "processes"), (True, "inline")])
def test_an_image_that_changed_on_the_web_is_read_by_the_next_start(gone, engine, pool, tmp_path, web):
    """A server tells nothing of changes; they are met when the images are packed, maybe in another process."""
    for number, path in enumerate(sorted(pool.rglob("*.*"))[:10]):
        web.files[f"/{number}"] = path.read_bytes()
    listed = "".join(f"{web.url}{name}\n" for name in web.files)
    web.files["/list.txt"] = listed.encode()

    def go():
        workers = 1 if engine == "processes" else None
        return curated(f"{web.url}/list.txt?allow_private=true", tmp_path / "c", engine=engine, workers=workers)

    go()
    if gone:
        del web.files["/1"]
    else:
        web.files["/1"] = png(np.kron(np.eye(6, dtype=np.uint8)[..., None], np.full((8, 8, 3), 200, np.uint8)))
    tars(tmp_path / "c")[0].unlink()
    with pytest.raises(
        DataError, match=rf"/1 of http\S+ {'can no longer be' if gone else 'has changed since it was'} read"
    ):
        go()
    assert go().kept == (8 if gone else 9)  # two are the same
    for line in pq.read_table(tmp_path / "c" / "manifest.parquet").to_pylist():
        assert line["sha256"] == sha256(web.files[line["id"].removeprefix(web.url)]).hexdigest()


def test_a_full_disk_is_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(RunError, match=r"no space left. Free some and run again\.$"):
            packed(tmp_path, table([b"x" * 9000]), each=5, read=lambda row: b"x" * 9000, crew=here())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "shards").iterdir())


def test_what_is_in_the_way_is_one_line_and_stays(pool, tmp_path):
    (tmp_path / "c" / "shards").mkdir(parents=True)
    (tmp_path / "c" / "shards" / "thesis.tar").write_bytes(b"years of work")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "shards").write_bytes(b"a file")
    for out, words, message in (
        ("c", {}, r"c/shards, where tar shards go, holds other files \(thesis.tar\); give another out\.$"),
        ("d", {}, r"d/shards is a file, and tar shards go into a folder of that name; give another out\.$"),
        ("e", {"shards.images": "0"}, r"^shards.images must be at least 1; got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            curated(pool, tmp_path / out, **words)
        assert not (tmp_path / out / "manifest.parquet").exists()
    assert (tmp_path / "c" / "shards" / "thesis.tar").read_bytes() == b"years of work"


def test_a_manifest_whose_shards_are_not_right_is_one_line(pool, tmp_path):
    curated(pool, tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.parquet"
    whole = pq.read_table(manifest)

    def refused(message, **columns):
        changed = whole
        for name, values in columns.items():
            place = changed.schema.get_field_index(name)
            changed = changed.set_column(
                place, changed.schema.field(place), pa.array(values, changed.schema.field(place).type)
            )
        write_manifest(manifest, [changed], made={})
        with pytest.raises(UserError, match=message) as error:
            dinoforge.open_source(str(manifest))
        assert "\n" not in str(error.value)

    refused("names a shard outside its folder: ../x.tar", shard=["../x.tar"] * 17)
    refused("names a shard outside its folder: /etc/x.tar", shard=["/etc/x.tar"] * 17)
    refused("lists images in shards/none.tar, which should lie beside it", shard=["shards/none.tar"] * 17)
    refused("not every row says where in a shard it lies", offset=[None, *range(16)])
    first = tars(tmp_path / "c")[0]
    first.write_bytes(first.read_bytes()[:3000])
    refused("lists images up to byte .* which has 3,000; copy it again")
