"""Everything a user can get wrong: one plain line, exit status 2, nothing half-written."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

TINY = ["recipe=vit_micro.toy", "plan.images=64", "--json"]


def pictures(folder, count=6, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(start, start + count):
        Image.fromarray(rng.integers(0, 255, (70, 70, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "ring").symlink_to("ring")
    with open("evil.pth", "wb") as file:  # noqa: PTH123
        pickle.dump({"cls_token": Evil()}, file)
    return tmp_path


class Evil:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


CASES = [
    (["pretrian"], "No such verb 'pretrian'. Did you mean 'pretrain'? Verbs: doctor, scan, stats, curate, contains, plan, pretrain"),
    (["pretrain"], "out= is required"),
    (["pretrain", "out=r"], "data= is required"),
    (["pretrain", "photos", "out=r"], "Settings are written key=value; got 'photos'"),
    (["pretrain", "data=nowhere", "out=r", *TINY], "nowhere does not exist"),
    (["pretrain", "data=empty", "out=r", *TINY], "empty holds no image; it is empty"),
    (["pretrain", "data=texts", "out=r", *TINY], "texts holds no image; 1 other files are in it"),
    (["pretrain", "data=file", "out=r", *TINY], "file is a file but no Parquet file"),
    (["pretrain", "data=photos", "out=r", "recipe=vit_mikro.toy"], "Unknown recipe 'vit_mikro.toy'. Did you mean 'vit_micro.toy'"),
    (["pretrain", "data=photos", "out=r", "plan.image=5", *TINY], "Unknown setting 'plan.image'. Did you mean 'plan.images'"),
    (["pretrain", "data=photos", "out=r", "images=5"], "Unknown setting 'images'. Did you mean 'plan.images'"),
    (["pretrain", "data=photos", "out=r", "data=photos", *TINY], "data is given twice"),
    (["pretrain", "data=photos", "out=r", "recipe=vit_micro.toy", "plan.images=many"], "plan.images takes a whole number; got 'many'"),
    (["pretrain", "data=photos", "out=r", "plan.clip=-1", *TINY], "plan.clip must be above 0; got -1"),
    (["pretrain", "data=photos", "out=r", "plan=5", "recipe=vit_micro.toy"], "plan is a group of settings, not a value; got '5'"),
    (["pretrain", "data=photos", "out=r", "data.augment.global_pixels=60", *TINY], "60 is no multiple of backbone.patch=8; 56 or 64 would be"),
    (["pretrain", "data=photos", "out=r", "backbone.pixels=60", *TINY], "backbone.pixels=60 is no multiple of backbone.patch=8"),
    (["pretrain", "data=photos", "out=r", "data.masks.ratio=[0.2,1.5]", *TINY], "data.masks.ratio must be two shares of the patches"),
    (["pretrain", "data=photos", "out=r", "plan.batch=50", *TINY], "plan.batch=50 is no multiple of objective.group=16; 48 or 64 would be"),
    (["pretrain", "data=photos", "out=r", "high_resolution.images=64", *TINY], "high_resolution.global_pixels is required and was not given"),
    (["pretrain", "data=photos", "out=r", "high_resolution.images=64", "high_resolution.global_pixels=500", *TINY], "high_resolution.global_pixels=500 is no multiple of backbone.patch="),
    (["plan", "data=photos", "high_resolution.images=64", "high_resolution.global_pixels=8", *TINY], "high_resolution.global_pixels=8 must be above data.augment.global_pixels="),
    (["pretrain", "data=photos", "out=r", "backbone.kind=resnet", *TINY], "backbone.kind must be one of 'vit', 'toy'; got 'resnet'"),
    (["pretrain", "data=photos", "out=r", "precision=fp64", *TINY], "speed.precision must be one of 'auto', 'fp32' or 'bf16'; got 'fp64'"),
    (["pretrain", "data=photos", "out=r", "device=gpu", *TINY], "speed.device=gpu is not on this machine"),
    (["pretrain", "data=photos", "out=r", "trackers=tensorbord", *TINY], "speed.trackers: Unknown tracker 'tensorbord'. Did you mean 'tensorboard'"),
    (["plan", "data=nowhere", *TINY], "nowhere does not exist"),
    (["plan", "data=photos", "plan.image=5", *TINY], "Unknown setting 'plan.image'. Did you mean 'plan.images'"),
    (["pretrain", "--json", "--verbose"], "No such option: --verbose"),
    (["pretrain", "data=photos", "out=r", "probe=photos", *TINY], "photos has no labels; a probe takes"),
    (["pretrain", "data=photos", "out=r", "probe=nowhere", *TINY], "nowhere does not exist"),
    (["pretrain", "data=photos", "out=taken", *TINY], "out=taken holds other files and no run"),
    (["pretrain", "data=photos", "out=file", *TINY], "out=file is a file; give a folder"),
    (["pretrain", "data=photos", "out=file/run", *TINY], "file stands where a folder is needed"),
    (["pretrain", "data=photos", "out=r", "init=evil.pth", *TINY], "evil.pth is a pickle with code inside"),
    (["pretrain", "data=photos", "out=r", "init=nowhere.pth", *TINY], "nowhere.pth does not exist"),
    (["pretrain", "data=photos", "out=r", "config=nowhere.yaml", "--json"], "config=nowhere.yaml does not exist"),
    (["pretrain", "data=photos", "out=r", "config=file", "--json"], "config=file holds no settings"),
    (["pretrain", "data=photos", "out=r", "config=file", *TINY], "exclude each other"),
    (["evaluate", "backbone=evil.pth", "data=photos"], "has no labels"),
    (["evaluate", "backbone=evil.pth", "data=toy://species?images=20", "--json"], "is a pickle with code inside"),
    (["evaluate", "backbone=photos", "data=toy://species?images=20"], "photos holds no backbone"),
    (["evaluate", "backbone=photos", "tasks=kn", "data=photos"], "Unknown task 'kn'. Did you mean 'knn'"),
    (["evaluate", "backbone=photos", "data=toy://species", "knn.neighbors=3"], "Unknown setting 'knn.neighbors'. Did you mean 'knn.neighbours'"),
    (["evaluate", "backbone=photos", "data=toy://species", "knn.neighbours=0"], "knn.neighbours: takes a whole number above 0, or a list of them; got [0]"),
    (["evaluate", "backbone=photos"], "data= is required, or train= and test= together"),
    (["embed", "backbone=evil.pth", "data=photos", "out=f"], "is a pickle with code inside"),
    (["embed", "backbone=photos", "data=photos", "out=taken"], "out=taken exists and holds no features"),
    (["embed", "data=photos", "out=f"], "backbone= is required"),
    (["embed", "backbone=x", "data=photos", "out=f", "tokens=words"], "tokens must be image or patches; got 'words'"),
    (["scan", "data=photos", "out=m.csv"], "out=m.csv must be a .parquet file"),
    (["scan", "data=photos", "out=m.parquet", "speed=3"], "Unknown setting 'speed'"),
    (["embed", "backbone=pixels:8", "data=photos", "out=ring"], "Cannot write ring: its links are a loop. Choose another place."),
    (["embed", "backbone=pixels:8", "data=photos", "out=ring/f"], "Cannot write ring/f: its links are a loop."),
    (["pca", "backbone=pixels:8", "images=photos", "out=ring/p.png"], "Cannot write ring/p.png: its links are a loop."),
    (["curate", "pool=photos", "retrieve=all", "out=ring/c"], "Cannot write ring/c: its links are a loop."),
    (["pretrain", "data=photos", "out=ring/r", *TINY], "Cannot write ring/r: its links are a loop."),
    (["distil", "data=photos", "out=r", "teacher=ring", "recipe=vit_small.distilled"], "Cannot read ring: its links are a loop."),
    (["embed", "backbone=pixels:8", "data=photos", "out=/proc/x"], "Cannot write /proc/.x.embed: no file can be made there. Choose"),
    (["pca", "backbone=pixels:8", "images=photos", "out=/proc/x.png"], "Cannot write /proc/x.png: no file can be made there."),
    (["scan", "data=photos", "out=/proc/x/m.parquet"], "Cannot write /proc/x/.m.parquet.scan: no file can be made there."),
    (["pretrain", "data=photos", "out=/proc/x", *TINY], "Cannot write /proc/x: no file can be made there."),
    (["export", "backbone=pixels:16", "to=onnx", "out=e"], "backbone pixels:16 is no network and has nothing to train, teach, convert or export;"),
    (["convert", "weights=colours:8", "out=c"], "backbone colours:8 is no network"),
    (["pretrain", "data=photos", "out=r", "init=pixels:16", *TINY], "backbone pixels:16 is no network"),
    (["distil", "data=photos", "out=r", "teacher=pixels:16", "recipe=vit_small.distilled"], "teacher=pixels:16 is no network"),
    (["schema", "x=1"], "Unknown setting 'x': no setting is taken here."),
    (["recipes", "show=nothing"], "Unknown recipe 'nothing'"),
]  # fmt: skip


def listing(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(words)[:70] for words, _ in CASES])
def test_one_line_and_nothing_written(words, message, place, capsys):
    from dinoforge.cli import execute

    before = listing(place)
    assert execute(words) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("dinoforge: ")]
    assert len(lines) == 1, shown.err
    assert any(part in lines[0] for part in message.split("|")), lines[0]
    assert "Traceback" not in shown.err
    if "--json" in words:
        assert "error" in json.loads(shown.out.splitlines()[-1])
    assert listing(place) == before


def test_broken_files_are_set_aside_and_the_run_goes_on(place, capsys):
    from dinoforge.cli import execute

    whole = (place / "photos" / "0.png").read_bytes()
    (place / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (place / "photos" / "text.jpg").write_text("this is a text")
    (place / "photos" / "nothing.png").write_bytes(b"")
    (place / "photos" / "list.csv").write_text("a,b")
    assert execute(["pretrain", "data=photos", "out=r", "workers=0", *TINY, "objective.group=16", "plan.batch=16"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["quarantined"] == 4
    rows = [json.loads(line) for line in (place / "r" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"cut.png", "text.jpg", "nothing.png", "list.csv"}
    assert all(row["reason"] for row in rows)

    assert execute(["scan", "data=photos", "out=m.parquet", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["images"], facts["rejected"], facts["exact_duplicates"], facts["out"]) == (6, 4, 0, "m.parquet")
    assert execute(["embed", "backbone=r", "data=photos", "out=f", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["rows"], facts["quarantined"]) == (6, 4)


def test_only_broken_files(place, capsys):
    from dinoforge.cli import execute

    for path in (place / "photos").iterdir():
        path.write_text("no more")
    assert execute(["pretrain", "data=photos", "out=r", *TINY]) == 2
    assert "No image of photos could be used" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert execute(["scan", "data=photos", "out=m.parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rejected"] == 6


def test_a_full_disk_is_one_line(place, run):
    """A limit on file sizes stands in for a full disk: the checkpoint cannot be written, the earlier files stay."""
    import resource

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = run("pretrain", f"data={place / 'photos'}", f"out={place / 'r'}", "workers=0", *TINY, preexec_fn=small)
    assert done.code == 2, done.err
    assert "no space left. Free some and run again." in done.facts["error"]
    assert "Traceback" not in done.err
    assert not list((place / "r" / "checkpoints").glob("step_*"))


def test_no_code_was_run(place, capsys):
    from dinoforge.cli import execute

    for words in (
        ["embed", "backbone=evil.pth", "data=photos", "out=f"],
        ["pretrain", "data=photos", "out=r", "init=evil.pth", *TINY],
    ):
        execute(words)
    assert not (place / "EXECUTED").exists()
