"""`curate` and `contains` as a user runs them: what was planted is found, every image has its reason, any kill is survived."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from process import SOURCE, finish, start

import dinoforge
from dinoforge.base.errors import ConfigError, UserError
from dinoforge.data.manifest import read_made, read_manifest
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone
from dinoforge.recipes.opened import training_rows
from dinoforge.recipes.settle import settle, to_yaml
from planted import MILD, POOL, planted

SMALL = "toy://species?images=120&size=48&copies=0.15&junk=0.15&leaks=0.1&seed=3&split={split}"
SEEDS = "toy://species?images=30&size=48&seed=9"


def small(out, **words):
    words = {"seeds": SEEDS, "keep_out": SMALL.format(split="test"), **words}
    return dinoforge.curate(pool=SMALL.format(split="train"), out=str(out), workers=2, **words)


def rows(path):
    return pq.read_table(path).to_pylist()


def test_what_was_planted_is_found(tmp_path):
    pool, test = (POOL.format(world="species", images=700, seed=5, split=split) for split in ("train", "test"))
    found = dinoforge.curate(pool=pool, keep_out=test, retrieve="all", out=str(tmp_path / "c"), workers=2)
    table = planted(tmp_path / "c", open_source(pool).columns)
    assert table.share(table.copies) >= 0.97, table
    assert set(MILD) <= table.copies.keys()
    assert table.precision >= 0.95, table
    assert table.merged <= 0.01 * table.distinct, table
    assert table.share(table.leaks) >= 0.99, table
    assert table.plain_as_leaks <= 0.01 * table.plain, table
    assert table.junk[0] >= 0.95 * table.junk[1], table
    assert table.plain_as_junk <= 0.01 * table.plain, table
    assert found.pool == found.kept + sum(found.dropped.values())
    assert found.safety == "not safety-filtered"
    assert found.retrieved == {}
    page = (tmp_path / "c" / "report.html").read_text()
    for words in ("copy of an evaluation image", "page of text", "near copy", "not safety-filtered"):
        assert words in page
    assert "<script" not in page


def test_every_image_has_its_reason_and_pretrain_reads_it(tmp_path):
    found = small(
        tmp_path / "c", retrieve="samples", include_seeds=True,
        **{"retrieval.neighbours": 2, "balance.levels": [12, 3], "balance.images": 14},
    )  # fmt: skip
    made = read_made(tmp_path / "c" / "manifest.parquet")
    assert (made["verb"], made["safety"]) == ("curate", "not safety-filtered")
    kept = rows(tmp_path / "c" / "manifest.parquet")
    pool = [line for line in kept if line["reason"] != "seed"]
    seeds = [line for line in kept if line["reason"] == "seed"]
    assert (len(pool), len(seeds)) == (found.kept, found.seeds) == (14, 24)  # the train split of the seeds
    names = {line["id"] for line in seeds}
    for line in pool:
        assert line["reason"] == "neighbour of a seed"
        assert line["seed"] in names
        assert line["seed_set"] == SEEDS
        assert line["rank"] in {0, 1}
        assert -1 <= line["similarity"] <= 1
        assert 0 <= line["drawn_from"] < 3
    gone = rows(tmp_path / "c" / "dropped.parquet")
    assert len(gone) == found.pool - found.kept == sum(found.dropped.values())
    for line in gone:
        assert line["reason"]
        assert (line["against"] is not None) == (line["stage"] in {"exact", "hash", "copies", "leaks"}), line
        assert line["detail"] or line["stage"] != "read"
    stages = json.loads((tmp_path / "c" / "summary.json").read_text())["stages"]
    assert [row["name"] for row in stages] == [
        "read", "filters", "exact", "hash", "pairs", "copies", "leaks", "embedding", "retrieval", "balance"
    ]  # fmt: skip
    assert [row["before"] for row in stages[1:]] == [row["after"] for row in stages[:-1]]
    source = dinoforge.open_source(str(tmp_path / "c" / "manifest.parquet"))
    assert len(source) == len(kept)
    assert source.pixels(0).shape == (48, 48, 3)
    tiny = {
        "backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2, "objective.head.prototypes": 64,
        "objective.head.hidden": 32, "objective.head.bottleneck": 16, "objective.group": 8, "plan.batch": 16,
        "plan.images": 32, "precision": "fp32", "workers": 0,
    }  # fmt: skip
    run = dinoforge.pretrain(
        data=str(tmp_path / "c" / "manifest.parquet"), out=tmp_path / "run", recipe="vit_micro.toy", **tiny
    )
    assert run.steps == 2
    asked = dinoforge.contains(in_=str(tmp_path / "run"), images=SEEDS)
    assert asked.contained == 24  # those of its test split are not in


def test_a_curation_of_a_curation(tmp_path):
    """A manifest is a pool like any other; it cannot be curated into its own folder."""
    first = small(tmp_path / "c", retrieve="all", seeds=None)
    manifest = str(tmp_path / "c" / "manifest.parquet")
    again = dinoforge.curate(
        pool=manifest, seeds=SEEDS, retrieve="samples", stages="retrieval", out=str(tmp_path / "d")
    )
    assert (again.pool, set(again.dropped)) == (first.kept, {"not retrieved"})
    with pytest.raises(ConfigError, match="which is read; give another folder"):
        dinoforge.curate(pool=manifest, retrieve="all", out=str(tmp_path / "c"))


def test_ids_of_a_manifest_are_unique_though_those_of_its_pool_are_not(tmp_path):
    dinoforge.scan(data="toy://species?images=9&size=48", out=str(tmp_path / "m.parquet"), workers=1)
    table = pq.read_table(tmp_path / "m.parquet")
    names = table.column("id").to_pylist()
    place = table.schema.get_field_index("id")
    table = table.set_column(place, table.schema.field(place), [[*names[:5], names[0], *names[6:]]])
    pq.write_table(table, tmp_path / "m.parquet")
    dinoforge.curate(pool=str(tmp_path / "m.parquet"), retrieve="all", out=str(tmp_path / "c"), workers=1)
    ids = [row["id"] for row in rows(tmp_path / "c" / "manifest.parquet")]
    assert sum(name.endswith(names[0]) for name in ids) == 2
    assert len(set(ids)) == len(ids)


def test_contains_finds_copies_by_kind(tmp_path):
    small(tmp_path / "c", retrieve="all", seeds=None)
    whole = dinoforge.contains(in_=str(tmp_path / "c"), images=SMALL.format(split="train"))
    kept = read_manifest(tmp_path / "c" / "manifest.parquet").column("id").tolist()
    exact = {(line["image"], line["id"]) for line in whole.matches if line["kind"] == "exact"}
    assert {(name, name) for name in kept} <= exact
    near = {(line["image"], line["id"]) for line in whole.matches if line["kind"] == "near"}
    gone = {
        line["id"]: line["against"]
        for line in rows(tmp_path / "c" / "dropped.parquet")
        if line["reason"] == "near copy"
    }
    assert gone
    for name, against in gone.items():
        assert against not in kept or (name, against) in near
    strangers = dinoforge.contains(in_=str(tmp_path / "c"), images="toy://minerals?images=20&size=48")
    assert (strangers.images, strangers.contained, strangers.matches) == (20, 0, [])


def test_a_scan_knows_exact_copies_alone(tmp_path, capsys):
    dinoforge.scan(data=SEEDS, out=str(tmp_path / "m.parquet"))
    found = dinoforge.contains(in_=str(tmp_path / "m.parquet"), images=SEEDS)
    assert (found.contained, found.near) == (30, False)
    assert {line["kind"] for line in found.matches} == {"exact"}
    assert "only exact copies are found" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"threshold=0\.9 has no effect"):
        dinoforge.contains(in_=str(tmp_path / "m.parquet"), images=SEEDS, threshold=0.9)


@pytest.mark.parametrize(
    ("options", "trained"),
    [("", "train"), ("?split=test", "test"), ("?split=Test", "test"), ("?split=training", "train")],
)
def test_a_run_was_trained_on_one_split_of_its_manifest(options, trained, tmp_path):
    manifest = str(tmp_path / "m.parquet")
    dinoforge.scan(data=SEEDS, out=manifest)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(
        to_yaml(settle({"recipe": "vit_micro.toy", "data": manifest + options}).recipe)
    )
    splits = read_manifest(tmp_path / "m.parquet").column("split")
    for split in ("train", "test"):
        found = dinoforge.contains(in_=str(tmp_path / "run"), images=f"{manifest}?split={split}")
        assert found.images == (splits == split).sum() > 0
        assert found.contained == (found.images if split == trained else 0)


def test_a_manifest_that_was_written_anew_does_not_answer_for_a_run(tmp_path):
    """Images that came since were not trained on, those that went were."""
    manifest, run = str(tmp_path / "m.parquet"), tmp_path / "run"
    dinoforge.scan(data=SEEDS, out=manifest)
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(settle({"recipe": "vit_micro.toy", "data": manifest}).recipe))
    (run / "run.json").write_text(json.dumps({"data": training_rows(manifest).fingerprint}))
    assert dinoforge.contains(in_=str(run), images=f"{manifest}?split=train").contained > 0
    dinoforge.scan(data="toy://species?images=40&size=48&seed=3", out=manifest)
    with pytest.raises(ConfigError, match="are others than those it was trained on"):
        dinoforge.contains(in_=str(run), images=f"{manifest}?split=train")


def test_multiplicity_becomes_a_weight(tmp_path):
    words = {"retrieve": "samples", "retrieval.neighbours": 3}
    found = small(tmp_path / "c", **words, **{"retrieval.multiplicity": True})
    weights = read_manifest(tmp_path / "c" / "manifest.parquet").column("weight")
    assert weights.sum() == 24 * 3  # as table 15 counts: seeds times neighbours
    assert found.kept == len(weights) < 72
    assert small(tmp_path / "c", **words).kept == found.kept
    assert np.isnan(read_manifest(tmp_path / "c" / "manifest.parquet").column("weight")).all()


def test_clusters_and_the_paper_s_rule(tmp_path):
    found = small(tmp_path / "c", **{"retrieval.clusters": 5, "retrieval.more_than": 4, "retrieval.per_cluster": 6})
    kept = rows(tmp_path / "c" / "manifest.parquet")
    assert {line["reason"] for line in kept} == {"cluster of seeds"}
    assert max(np.unique([line["cluster"] for line in kept], return_counts=True)[1]) <= 6
    assert found.retrieved == {SEEDS: found.kept}


WAIT = 300


@pytest.mark.long
@pytest.mark.dist
def test_killed_at_any_moment_the_same_command_goes_on(tmp_path):
    out = tmp_path / "c"
    pool, test = (
        f"toy://species?images=500&size=48&copies=0.1&leaks=0.05&junk=0.05&split={s}" for s in ("train", "test")
    )
    words = ["curate", f"pool={pool}", f"seeds={SEEDS}", f"keep_out={test}", f"out={out}", "workers=2", "--json"]
    marks = [out / "stages" / "filters" / "stage.json", out / "stages" / "pairs" / "stage.json"]
    code = "import sys, dinoforge.curate.images as i, dinoforge.curate.stages.pairs as p; i.SHARD = 32; p.PART = 100; " \
           "from dinoforge.cli import main; main(sys.argv[1:])"  # fmt: skip
    environment = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    def begin():
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(process, reached):
        end = time.monotonic() + WAIT
        while not reached() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)

    read = out / "stages" / "read" / "pool"
    for number, reached in (
        (signal.SIGTERM, lambda: len(list(read.glob("*.npz"))) >= 3),
        (signal.SIGKILL, lambda: len(list(read.glob("*.npz"))) >= 6),
        (signal.SIGKILL, marks[0].exists),
        (signal.SIGKILL, lambda: len(list((out / "stages" / "pairs.parts").glob("pool-*.npz"))) >= 2),
        (signal.SIGKILL, marks[1].exists),
    ):
        process = begin()
        until(process, reached)
        process.send_signal(number)
        stopped = finish(process)
        if number == signal.SIGTERM:
            assert stopped.code == 75, stopped.err
            assert "Run the same command to go on" in stopped.err
    done = finish(begin(), timeout=2 * WAIT)
    assert done.code == 0, done.err
    assert "filters: " in done.err
    assert ", as before" in done.err
    assert "read pool" not in done.err
    whole = dinoforge.curate(pool=pool, seeds=SEEDS, keep_out=test, out=str(tmp_path / "d"), workers=2)
    assert (whole.kept, whole.dropped) == (done.facts["kept"], done.facts["dropped"])
    one, other = (rows(folder / "manifest.parquet") for folder in (out, tmp_path / "d"))
    assert one == other
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def pictures(root, count, *, side=40, seed=0):
    root.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        (root / f"{number}.png").write_bytes(png(np.kron(coarse, np.ones((side // 5, side // 5, 1), np.uint8))))
    return str(root)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pool", 12)
    pictures(tmp_path / "seeds", 4, seed=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    (tmp_path / "list.txt").write_text("example.org\n")
    return tmp_path


def test_the_same_names_in_another_folder_are_no_reason_to_refuse(place):
    """A copy of the folder is one."""
    pictures(place / "others", 12, seed=2)
    shutil.copytree(place / "pool", place / "again")
    found = dinoforge.curate(
        pool="pool", keep_out="others", retrieve="all", out="o", stages="filters,exact,hash,copies,leaks"
    )
    assert found.kept == 12
    with pytest.raises(ConfigError, match="keep_out=again holds the same images as pool=pool"):
        dinoforge.curate(
            pool="pool", keep_out="again", retrieve="all", out="o2", stages="filters,exact,hash,copies,leaks"
        )


BAD = [
    ({"seeds": "pool"}, "seeds=pool holds the same images as pool=pool; name other ones"),
    ({"seeds": "./pool/"}, "seeds=./pool/ holds the same images as pool=pool"),
    ({"keep_out": "pool"}, "keep_out=pool holds the same images as pool=pool"),
    ({"seeds": "seeds,seeds"}, "seeds= names seeds twice"),
    ({"seeds": "empty"}, "empty holds no image; it is empty"),
    ({"seeds": "broken"}, "broken holds no image that can be used"),
    ({"seeds": "nowhere"}, "nowhere does not exist"),
    ({"seeds": ""}, "seeds= is empty"),
    ({"seeds": None}, "seeds= is required: images that the chosen ones shall be like"),
    ({"pool": "broken"}, "broken holds no image that can be used"),
    ({"copies.threshold": "1.2"}, "copies.threshold must be below 1; got 1.2"),
    ({"keep_out": "seeds", "leaks.threshold": "-1"}, "leaks.threshold must be at least 0; got -1"),
    ({"workers": "0"}, "workers must be 1 to 1024; got 0"),
    ({"precision": "fp32"}, "precision=fp32 has no effect without backbone="),
    ({"backbone": "nowhere"}, "nowhere"),
    ({"out": "taken"}, "out=taken holds other files (thesis.tex); give a new folder"),
    ({"pool": "a\0b"}, "holds a zero byte"),
    ({"out": "."}, "out=. holds pool, which is read; give another folder"),
    ({"out": "pool/c"}, "out=pool/c lies within pool=pool; give a folder beside it"),
    ({"out": "seeds/c", "seeds": "seeds?layout=none"}, "out=seeds/c lies within seeds=seeds?layout=none; give a folder beside it"),
    ({"out": "list.txt"}, "out=list.txt is a file; give a folder"),
    ({"retrieve": "samples", "retrieval.cap": "5"}, "retrieval.cap has no effect: every seed set is retrieved for by samples"),
    ({"retrieval.neighbours": "5"}, "retrieval.neighbours has no effect: every seed set is retrieved for by clusters"),
    ({"retrieval.clusters": "13"}, "retrieval.clusters=13 is more than the 12 images that are left"),
    ({"retrieve": "all", "balance.levels": [20], "balance.images": 5}, "balance.levels.0.clusters must be at most the 12 images"),
    ({"filters.smallest_side": "4000"}, "No image of pool is left: 12 too small"),
    ({"safety.domains.file": "list.txt"}, "safety.domains.file=list.txt has no effect: no image of the pool has an address"),
    ({"safety.hashes.file": "nowhere.txt"}, "safety.hashes.file=nowhere.txt does not exist"),
    ({"safety.hashes.file": "list.txt"}, "safety.hashes.file=list.txt line 1 is 'example.org'; a line holds a SHA-256"),
    ({"retrieval.clusters": "12"}, "No image was retrieved: no cluster of the pool holds more than 3 seeds"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_no_manifest(words, message, place):
    words = {"pool": "pool", "seeds": "seeds", "out": "c", "workers": "1", **words}
    with pytest.raises(UserError) as error:
        dinoforge.curate(**words)
    assert message in str(error.value), str(error.value)
    assert "\n" not in str(error.value)
    assert not (place / "c" / "manifest.parquet").exists()
    assert (place / "taken" / "thesis.tex").read_text() == "years of work"


def test_an_unfinished_curation_leaves_no_summary_of_an_earlier_one(place, monkeypatch):
    """It is stopped before its report."""
    words = {"pool": "pool", "retrieve": "all", "out": "c", "engine": "inline"}
    files = {name: place / "c" / name for name in ("summary.json", "report.html")}
    dinoforge.curate(**words)
    assert all(path.exists() for path in files.values())
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("dinoforge.verbs.curate.curation_page", lambda *_, **__: 1 / 0)
        dinoforge.curate(**words, **{"balance.images": "5", "balance.levels": "[8]"})
    assert not any(path.exists() for path in files.values())


def test_a_curation_that_keeps_no_image_leaves_an_earlier_one_whole(place):
    """Its manifest beside the reasons of others would be taken for what they left."""

    def there():
        return {path: path.read_bytes() for path in sorted((place / "c").rglob("*.*"))
                if path.is_file() and "stages" not in path.parts and not path.name.startswith(".")}  # fmt: skip

    words = {"pool": "pool", "retrieve": "all", "engine": "inline"}
    dinoforge.curate(**words, out="c", **{"shards.images": "5"})
    before = there()
    assert {path.name for path in before} >= {"manifest.parquet", "dropped.parquet", "summary.json", "report.html"}
    assert any(path.suffix == ".tar" for path in before)
    pictures(place / "others", 5, seed=2)
    with pytest.raises(
        UserError, match=r"No image of others is left: 5 too small\. What c holds of an earlier curation stays"
    ):
        dinoforge.curate(**words | {"pool": "others"}, out="c", **{"filters.smallest_side": "4000"})
    assert there() == before
    for _ in range(2):  # its own reasons are no earlier curation
        with pytest.raises(UserError, match=r"5 too small\. See d/dropped\.parquet; nothing else was written"):
            dinoforge.curate(**words | {"pool": "others"}, out="d", **{"filters.smallest_side": "4000"})
        assert len(rows(place / "d" / "dropped.parquet")) == 5
    assert {path.name for path in (place / "d").iterdir() if not path.name.startswith(".")} == {
        "dropped.parquet",
        "stages",
    }


def test_what_safety_dropped_is_written_down(place, capsys):
    key = hashlib.sha256((place / "pool" / "3.png").read_bytes()).hexdigest()
    (place / "hashes.txt").write_text(f"# mine\n{key}\n")
    words = {"pool": "pool", "retrieve": "all", "out": "c", "workers": 1, "safety.hashes.file": "hashes.txt"}
    found = dinoforge.curate(**words)
    assert found.safety == "safety-filtered by hashes"
    assert found.dropped == {"hash on a list": 1}
    gone = rows(place / "c" / "dropped.parquet")[0]
    assert (gone["id"], gone["stage"], gone["reason"], gone["detail"]) == (
        "3.png",
        "safety",
        "hash on a list",
        "hashes",
    )
    made = read_made(place / "c" / "manifest.parquet")
    assert made["safety"] == found.safety
    lists = hashlib.sha256((place / "hashes.txt").read_bytes()).hexdigest()
    assert made["safety_filters"][0]["files"] == [{"name": "hashes.txt", "sha256": lists, "licence": None}]
    page = (place / "c" / "report.html").read_text()
    for text in ("safety-filtered by hashes", "hash on a list", lists):
        assert text in page
    (place / "hashes.txt").write_text(f"{'0' * 64}\n")  # another list is another result
    capsys.readouterr()
    assert dinoforge.curate(**words).dropped == {}
    assert "safety: made anew" in capsys.readouterr().err


def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path):
    words = ("curate", f"pool={SMALL.format(split='train')}", f"seeds={SEEDS}", f"out={tmp_path / 'c'}", "--json")
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))}
    # Python would leave compiled modules that the limit cuts short.
    full = finish(start(*words, environment={"PYTHONDONTWRITEBYTECODE": "1"}, **limited))
    assert full.code == 2
    assert "no space left. Free some and run again." in full.facts["error"]
    assert "Traceback" not in full.err
    assert not (tmp_path / "c" / "manifest.parquet").exists()
    assert finish(start(*words)).code == 0


def test_other_weights_are_said_and_never_reused(tmp_path, capsys):
    def weights(seed):
        config = VitConfig(width=32, depth=1, heads=2, patch=16, pixels=32)
        module = build(config, seed=seed)
        save_backbone(tmp_path / "b", Backbone(module, config, Preprocessing(short_side=32, side=32)))

    weights(0)
    words = {"backbone": str(tmp_path / "b"), "precision": "fp32", "retrieve": "samples"}
    first = small(tmp_path / "c", **words)
    before = rows(tmp_path / "c" / "manifest.parquet")
    assert first.embedder.startswith("backbone ")
    capsys.readouterr()
    small(tmp_path / "c", **words)
    assert "made anew" not in capsys.readouterr().err
    weights(1)
    second = small(tmp_path / "c", **words)
    said = capsys.readouterr().err
    assert "embeddings by other weights; made anew" in said
    assert "copies: " in said
    assert second.embedder != first.embedder
    small(tmp_path / "d", **words)
    fresh = rows(tmp_path / "d" / "manifest.parquet")
    assert rows(tmp_path / "c" / "manifest.parquet") == fresh != before
