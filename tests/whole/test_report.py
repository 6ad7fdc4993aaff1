"""``report``, ``pca``, ``attention`` and ``match`` as a user runs them, on a run of its own making, whole and broken off."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from process import finish, start

TINY = [
    "recipe=vit_micro.toy", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "objective.head.prototypes=64",
    "objective.head.hidden=32", "objective.head.bottleneck=16", "objective.group=8", "plan.batch=16",
    "data.augment.local_views=2", "precision=fp32", "workers=0", "plan.images=128", "plan.probe_images=64",
]  # fmt: skip
WORLD = "data=toy://species?images=60&size=48"
PROBE = "probe=toy://species?images=60&size=48"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = finish(start("pretrain", WORLD, PROBE, f"out={folder}", *TINY, "--json"))
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def execute(capsys):
    """Run a command line in this process: exit status and its JSON."""
    from dinoforge.cli import execute as execute_words

    def run(*words):
        code = execute_words([*map(str, words), "--json"])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, json.loads(shown.out.splitlines()[-1])

    return run


def test_the_film_of_a_run(trained):
    from dinoforge.report.film import read_film

    cast, frames = read_film(trained / "film")
    assert [frame.step for frame in frames] == [0, 4, 8]
    assert cast.queries == 8
    assert frames[0].patches.shape == (8, 6, 6, 32)
    assert not np.array_equal(frames[0].patches, frames[-1].patches)
    assert np.isfinite(frames[-1].patches).all()


def test_the_film_is_neutral_and_written_again(trained, tmp_path):
    """Without its film a run ends with the same weights and losses; started again, only what is missing is done."""
    from dinoforge.report.film import Film
    from dinoforge.verbs.table import VERBS

    settings = dict(word.split("=", 1) for word in (WORLD, PROBE, *TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Film, "__call__", lambda *_: None)
        done = VERBS["pretrain"](out=tmp_path / "none", **settings)
    assert not (tmp_path / "none" / "film").exists()
    want = json.loads((trained / "summary.json").read_text())
    assert done.losses == pytest.approx(want["losses"], rel=1e-5)
    assert done.knn == pytest.approx(want["knn"])


def test_report_of_a_finished_run(trained, execute):
    code, facts = execute("report", f"run={trained}")
    assert code == 0
    assert facts["path"] == str(trained / "report.html")
    text = (trained / "report.html").read_text()
    assert facts["bytes"] == len(text.encode()) < 15 * 2**20
    assert "Finished after step 8 of 8" in text
    assert text.count('class="map"') == 8 * 3 * 2


def test_report_of_a_crashed_run(trained, tmp_path, execute):
    """No summary, no backbone, no checkpoint, a last line cut in half, one frame of the film damaged."""
    folder = tmp_path / "crashed"
    shutil.copytree(trained, folder)
    (folder / "summary.json").unlink()
    for name in ("checkpoints", "backbone"):
        shutil.rmtree(folder / name)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "losses": {"total": None}})
    (folder / "metrics.jsonl").write_text("\n".join(lines[:7]) + "\n" + lines[7][:40])
    (folder / "film" / "step_000000008.npz").write_bytes(b"PK")
    assert execute("report", f"run={folder}", f"out={tmp_path / 'page.html'}")[0] == 0
    text = (tmp_path / "page.html").read_text()
    assert "Broken off after step 6 of 8" in text
    assert text.count('class="map"') == 8 * 2 * 2
    for name in ("film", "config.yaml", "run.json"):
        shutil.rmtree(folder / name) if name == "film" else (folder / name).unlink()
    assert execute("report", f"run={folder}")[0] == 0
    assert "This run kept no film." in (folder / "report.html").read_text()
    assert not (folder / ".lock").exists() or (folder / ".lock").stat().st_size == 0


def test_pictures(trained, tmp_path, execute):
    images = "images=toy://species?images=20&size=48"
    for verb, rows in (("pca", 2), ("attention", 4)):
        out = tmp_path / f"{verb}.png"
        code, facts = execute(verb, f"backbone={trained}", images, f"out={out}", "count=3")
        assert code == 0, facts
        assert facts["path"] == str(out)
        assert len(facts["images"]) == 3
        with Image.open(out) as picture:
            assert picture.size == (3 * 132 + 4, rows * 132 + 4)
    code, facts = execute(
        "pca", f"backbone={trained}", images, f"out={tmp_path / 'p.png'}", "row=5,species/0/48/2-0", "side=128"
    )
    assert facts["images"] == ["species/0/48/0-1", "species/0/48/2-0"]
    for name in ("m.png", "m.svg"):
        code, facts = execute("match", f"backbone={trained}", images, f"out={tmp_path / name}", "first=1", "second=4")
        assert code == 0, facts
        assert facts["images"] == ["species/0/48/1-0", "species/0/48/4-0"]
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("verb", ["pca", "attention", "match"])
def test_nothing_is_drawn_among_pictures_of_mine(verb, trained, tmp_path, execute):
    """Neither over one of them, nor as one more, which every later command would read."""
    for name in ("a.png", "b.png"):
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    for images in (tmp_path, tmp_path / "a.png"):
        code, facts = execute(verb, f"backbone={trained}", f"images={images}", f"out={tmp_path / 'a.png'}")
        assert code == 2
        said = f"out={tmp_path / 'a.png'} lies within images={images} and would be one of them; give a place beside it."
        assert facts["error"] == said
    assert (tmp_path / "a.png").read_bytes() == before
    assert execute(verb, f"backbone={trained}", f"images={tmp_path}", f"out={tmp_path / 'new.png'}")[0] == 2
    assert not (tmp_path / "new.png").exists()


def test_a_larger_side_gives_a_finer_grid(trained):
    from dinoforge.verbs.looking import look

    seen = look(str(trained), "toy://species?images=4&size=48", 2, side="128", out="p.png")
    assert seen.images.shape == (2, 3, 128, 128)
    assert seen.patches.shape == (2, 16, 16, 32)
    assert seen.attention.shape == (2, 2, 16, 16)
    assert torch.isfinite(seen.patches).all()


CASES = [
    (["report"], "run= is required"),
    (["report", "run=nowhere"], "run=nowhere does not exist"),
    (["report", "run={empty}"], "holds no run"),
    (["report", "run={run}", "out=page.txt"], "out=page.txt must be the name of a .html file"),
    (["pca", "backbone={run}", "images={world}", "out=p.gif"], "out=p.gif must end in .png"),
    (["pca", "backbone={run}", "images={world}", "out=p.png", "side=100"], "side=100 is no multiple of the patch, 8; 96 or 104 would be"),
    (["pca", "backbone={run}", "images={world}", "out=p.png", "side=0"], "side=0 is no multiple of the patch, 8; 8 would be"),
    (["pca", "backbone={run}", "images={world}", "out=p.png", "side=80000"], "side=80000 is too large; at most 2048"),
    (["pca", "backbone={run}", "images={world}", "out=p.png", "side=big"], "side takes a whole number; got 'big'"),
    (["pca", "backbone={run}", "images={world}", "out=p.png", "count=0"], "count must be 1 to 64; got 0"),
    (["pca", "backbone={run}", "images={world}", "out=p.png", "row=99"], "has no image '99'; give an id, or a number from 0 to 19"),
    (["attention", "backbone={run}", "images={world}", "out=p.png", "row=,"], "row takes 1 to 64 ids or numbers"),
    (["attention", "backbone={empty}", "images={world}", "out=p.png"], "holds no backbone"),
    (["match", "backbone={run}", "images={world}", "out=m.pdf"], "out=m.pdf must end in .png or .svg"),
    (["match", "backbone={run}", "images={world}", "out=m.png", "second=cat"], "has no image 'cat'"),
    (["match", "backbone={run}", "images={world}", "out=m.png", "matches=0"], "matches must be above 0; got 0"),
    (["match", "backbone={run}", "images={world}", "out=m.png", "match=3"], "Unknown setting 'match'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_one_line_and_nothing_written(words, message, trained, tmp_path, monkeypatch, execute):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"run": trained, "empty": tmp_path / "empty", "world": "toy://species?images=20&size=48"}
    code, facts = execute(*(word.format(**places) for word in words))
    assert code == 2
    assert message in facts["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
