"""`embed` as a user runs it: stopped at any moment it goes on, and what it then writes is what it would have written."""

import json
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from process import finish, start

from dinoforge.cli import execute
from dinoforge.features.store import read_features
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone

IMAGES, SHARD = 48, 4
BROKEN = {3, 8, 9, 10, 11, 47}
"""One in a shard, a whole shard, and the last image of all."""


def backbone(folder, *, seed=0, side=24, depth=2, width=32):
    config = VitConfig(width=width, depth=depth, heads=2, patch=8, pixels=24, init_std=0.2)
    save_backbone(folder, Backbone(build(config, seed=seed), config, Preprocessing(short_side=side, side=side)))
    return folder


def photos(folder, count=IMAGES, broken=BROKEN):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in range(count):
        path = folder / f"{row:03}.jpg"
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        coarse.resize((40, 30), Image.Resampling.BICUBIC).save(path)
        if row in broken:
            path.write_bytes(path.read_bytes()[:50])
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone, pictures, and what an undisturbed run makes of them, by kind of token."""
    folder = tmp_path_factory.mktemp("embed")
    backbone(folder / "b")
    photos(folder / "photos")
    for tokens in ("image", "patches"):
        assert execute(words(folder, folder / tokens, f"tokens={tokens}")) == 0
    return folder


def words(place, out, *more):
    given = {"backbone": place / "b", "data": place / "photos", "out": out, "precision": "fp32", "shard": SHARD}
    given |= dict(word.split("=", 1) for word in more)
    return ["embed", *(f"{name}={value}" for name, value in given.items()), "--json"]


def call(capsys, *given):
    capsys.readouterr()
    code = execute(list(given))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unfinished(place, out, capsys, *more, keep=3, lost=1):
    """As a killed run leaves it: the first so many shards, but for one that was never finished."""
    from dinoforge.features import unfinished as module

    wrote = module.Unfinished._write
    seen = []

    def dies(self, number, parts, reasons):
        if number == keep:
            raise KeyboardInterrupt
        wrote(self, number, parts, reasons)
        seen.append(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Unfinished, "_write", dies)
        assert execute(words(place, out, *more)) == 130
    assert seen == [*range(keep)]
    capsys.readouterr()
    beside = out.parent / f".{out.name}.embed"
    if lost is not None:
        (beside / f"{lost:05}.json").unlink()
    return beside


def test_what_is_written(place, capsys):
    code, facts, err = call(capsys, *words(place, place / "again"))
    assert code == 0
    assert facts.keys() == {"rows", "width", "images_per_second", "reused", "quarantined", "out"}
    assert (facts["rows"], facts["width"], facts["reused"], facts["quarantined"]) == (IMAGES - len(BROKEN), 32, 0, 6)
    assert err.count("Set aside") == len(BROKEN)
    assert content(place / "again") == content(place / "image")
    assert {*content(place / "image")} == {"features.npy", "ids.parquet", "features.json", "quarantine.jsonl"}
    values = np.load(place / "image" / "features.npy")
    assert values.shape == (42, 32)
    assert np.load(place / "patches" / "features.npy").shape == (42, 3, 3, 32)
    lines = [json.loads(line) for line in (place / "image" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{row:03}.jpg" for row in sorted(BROKEN)]
    assert all(line["reason"] for line in lines)
    about = json.loads((place / "image" / "features.json").read_text())
    assert about["address"] == str(place / "photos")
    assert (about["tokens"], about["precision"], about["rows"], about["shape"]) == ("image", "fp32", 42, [32])


def test_the_features_are_those_of_the_network(place):
    """One picture at a time, with nothing of the product but the network and what it reads pictures with."""
    import dinoforge

    stored = read_features(place / "image")
    rows = [int(name[:3]) for name in stored.ids]
    assert rows == [row for row in range(IMAGES) if row not in BROKEN]
    source = dinoforge.open_source(str(place / "photos"))
    module = dinoforge.load(place / "b")
    for value, patches, row in zip(stored.values, read_features(place / "patches").values, rows, strict=True):
        with torch.no_grad():
            want = module(dinoforge.prepared(place / "b", [source.pixels(row)]))
        np.testing.assert_allclose(value, want.image[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(patches, want.patches[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("tokens", ["image", "patches"])
def test_only_missing_shards_are_computed_and_the_end_is_the_same(tokens, place, tmp_path, capsys):
    out = tmp_path / "f"
    unfinished(place, out, capsys, f"tokens={tokens}")
    assert not out.exists()
    code, facts, err = call(capsys, *words(place, out, f"tokens={tokens}", "precision=auto"))
    assert (code, facts["reused"]) == (0, 8)
    assert "8 of 48 images are there from an earlier start." in err
    assert err.count("Set aside") == 1  # the whole third shard and the one in the first were said before
    assert facts["quarantined"] == len(BROKEN)
    assert content(out) == content(place / tokens)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]


def test_auto_stays_with_the_precision_that_is_there(place, tmp_path, capsys, monkeypatch):
    from dinoforge.base.hardware import Choice
    from dinoforge.verbs import opening

    out = tmp_path / "f"
    unfinished(place, out, capsys)
    monkeypatch.setattr(opening, "choose_precision", lambda _wish, _where: Choice("bf16", "measured"))
    code, facts, err = call(capsys, *words(place, out, "precision=auto"))
    assert (code, facts["reused"]) == (0, 8)
    assert "precision fp32: as until now; a new run would take bf16: measured" in err
    assert content(out) == content(place / "image")


OTHER = [
    ("weights", [], "backbone  "),
    ("data", [], "data  "),
    ("changed", [], "files  "),
    ("preprocessing", [], "preprocessing.short_side  24 -> 32; preprocessing.side  24 -> 32."),
    ("", ["precision=bf16"], "precision  fp32 -> bf16."),
    ("", ["tokens=patches"], "tokens  image -> patches."),
    ("", ["shard=8"], "shard  4 -> 8."),
]


@pytest.mark.parametrize(("change", "more", "told"), OTHER, ids=[told.split()[0] for *_, told in OTHER])
def test_shards_of_something_else_are_never_taken(change, more, told, tmp_path, capsys):
    """One line says what differs and what to do; what is there stays."""
    backbone(tmp_path / "b")
    photos(tmp_path / "photos", 12, broken=set())
    out = tmp_path / "f"
    beside = unfinished(tmp_path, out, capsys, keep=2)
    before = content(beside)
    if change == "weights":
        backbone(tmp_path / "b", seed=1)
    elif change == "preprocessing":
        backbone(tmp_path / "b", side=32)
    elif change == "data":
        (tmp_path / "photos" / "011.jpg").rename(tmp_path / "photos" / "new.jpg")
    elif change == "changed":
        (tmp_path / "photos" / "000.jpg").write_bytes((tmp_path / "photos" / "001.jpg").read_bytes())
    code, facts, err = call(capsys, *words(tmp_path, out, *more))
    assert code == 2
    line = [line for line in err.splitlines() if line.startswith("dinoforge: ")]
    assert line == [f"dinoforge: {facts['error']}"]
    assert facts["error"].startswith(f"{beside} holds finished shards of other features. They differ in: ")
    assert " ".join(told.split()) in facts["error"]
    assert facts["error"].endswith(f"or remove {beside} to start anew.")
    assert content(beside) == before
    assert not out.exists()


@pytest.mark.dist
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on(number, tmp_path):
    """Stopped twice while shards are being computed; then it equals what was never stopped."""
    backbone(tmp_path / "b", depth=6, width=256, side=96)
    photos(tmp_path / "photos", 64)
    command = words(tmp_path, tmp_path / "f")
    for shards in (2, 5):
        process = start(*command)
        until = time.monotonic() + 120
        while len(list(tmp_path.glob(".f.embed/0*.json"))) < shards:
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(number)
        stopped = finish(process)
        assert not (tmp_path / "f").exists()
        assert "Traceback" not in stopped.err
        if number == signal.SIGKILL:
            assert stopped.code == -signal.SIGKILL
            continue
        assert (stopped.code, list(stopped.facts)) == (75, ["error"])
        assert stopped.err.splitlines()[-1] == (
            f"dinoforge: {signal.Signals(number).name} received; what was computed so far is kept. "
            "Run the same command to go on."
        )
    done = finish(start(*command))
    assert done.code == 0, done.err
    assert done.facts["reused"] >= 5 * SHARD
    assert finish(start(*words(tmp_path, tmp_path / "whole"))).facts["reused"] == 0
    assert content(tmp_path / "f") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f", "photos", "whole"]


NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
"""A module that is first imported under the limit would leave half a file of bytecode for all who come after."""


def limited(size):
    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.dist
def test_a_full_disk_is_one_line_and_keeps_finished_shards(place, tmp_path):
    """A limit on the size of a file stands in for it: shards of 4 x 128 bytes fit, 42 rows together do not."""
    out = tmp_path / "f"
    stopped = finish(start(*words(place, out), preexec_fn=limited(4000), environment=NO_BYTECODE))
    assert stopped.code == 2, stopped.err
    assert stopped.facts["error"] == f"Cannot write {out}: no space left. Free some and run again."
    assert "Traceback" not in stopped.err
    assert [path.name for path in tmp_path.iterdir()] == [".f.embed"]
    done = finish(start(*words(place, out)))
    assert (done.code, done.facts["reused"]) == (0, IMAGES), done.err
    assert content(out) == content(place / "image")

    stopped = finish(
        start(*words(place, tmp_path / "g", "shard=16"), preexec_fn=limited(1900), environment=NO_BYTECODE)
    )
    assert stopped.code == 2, stopped.err
    assert (
        stopped.facts["error"]
        == f"Cannot write {tmp_path / '.g.embed' / '00001.f32'}: no space left. Free some and run again."
    )


@pytest.mark.dist
def test_two_do_not_share_a_folder(place, tmp_path):
    from dinoforge.base.lock import locked

    with locked(tmp_path / ".f.embed"):
        other = finish(start(*words(place, tmp_path / "f")))
    assert other.code == 2
    assert "is in use by another dinoforge process" in other.facts["error"]


BAD = [
    (["data={mine}/empty"], "{mine}/empty holds no image; it is empty"),
    (["data={mine}/nowhere"], "{mine}/nowhere does not exist"),
    (["data={mine}/broken"], "No image of {mine}/broken could be used; the last is 008.jpg: "),
    (["out={mine}/taken"], "out={mine}/taken exists and holds no features; give a new folder."),
    (["out={mine}/file"], "out={mine}/file exists and holds no features; give a new folder."),
    (["out={mine}/file/f"], "a file stands where a folder is needed"),
    ([f"out={{mine}}/{'x' * 240}"], "has a name of more than 230 bytes; give a shorter one."),
    (["backbone={mine}/nowhere"], "backbone {mine}/nowhere does not exist"),
    (["tokens=words"], "tokens must be image or patches; got 'words'."),
    (["precision=fp64"], "precision must be one of auto, fp32, bf16; got 'fp64'."),
    (["shard=many"], "shard takes a whole number; got 'many'."),
    (["shard=0"], "shard must be above 0; got 0."),
    (["shard=100"], "shard=100 is no multiple of 16, the images of a forward pass; 96 or 112 would be."),
]


class TestBadInput:
    """One line, exit status 2, and nothing is written or touched."""

    @pytest.fixture
    def mine(self, place, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "thesis.tex").write_text("years of work")
        (tmp_path / "file").write_text("x")
        photos(tmp_path / "broken", 9, broken={*range(9)})
        return tmp_path

    @pytest.mark.parametrize(("more", "told"), BAD, ids=[more[0][:30] for more, _ in BAD])
    def test_one_line(self, more, told, place, mine, capsys):
        before = sorted(mine.rglob("*"))
        code, facts, err = call(capsys, *words(place, mine / "f", *[word.format(mine=mine) for word in more]))
        assert code == 2, err
        assert told.format(mine=mine) in facts["error"]
        assert sum(line.startswith("dinoforge: ") for line in err.splitlines()) == 1
        assert sorted(mine.rglob("*")) == before

    def test_the_working_folder_is_refused_before_anything_is_computed(self, place, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, facts, err = call(capsys, *words(place, "."))
        assert code == 2
        assert facts["error"].startswith(". holds the folder that this was started in")
        assert "images" not in err
        assert not any(tmp_path.iterdir())

    def test_all_broken_in_what_was_left_over(self, place, tmp_path, capsys):
        """The shards that are missing have no usable image, those that are there have: that is no error."""
        photos(tmp_path / "photos", 12, broken={8, 9, 10, 11})
        data = f"data={tmp_path / 'photos'}"
        out = tmp_path / "f"
        beside = unfinished(place, out, capsys, data, keep=2, lost=None)
        code, _, err = call(capsys, *words(place, out, data))
        assert code == 0, err
        assert read_features(out).values.shape == (8, 32)
        assert not beside.exists()

    def test_all_broken_and_killed_before_it_was_said(self, place, mine, capsys):
        data = f"data={mine / 'broken'}"
        unfinished(place, mine / "f", capsys, data, keep=2, lost=None)
        code, facts, _ = call(capsys, *words(place, mine / "f", data))
        assert code == 2
        assert facts["error"].startswith(f"No image of {mine / 'broken'} could be used; the last is 008.jpg: ")
        assert not (mine / ".f.embed").exists()

    def test_what_is_not_its_own_is_not_replaced(self, place, tmp_path, capsys):
        out = tmp_path / "f"
        assert call(capsys, *words(place, out))[0] == 0
        (out / "thesis.tex").write_text("years of work")
        before = content(out)
        code, facts, _ = call(capsys, *words(place, out))
        assert (code, facts["error"]) == (
            2,
            f"out={out} holds thesis.tex besides what is to be replaced; give a new folder.",
        )
        assert content(out) == before

    def test_features_are_not_written_among_the_images(self, place, tmp_path, capsys):
        photos(tmp_path / "photos", 2)
        out = tmp_path / "photos" / "features"
        code, facts, _ = call(capsys, *words(place, out, f"data={tmp_path / 'photos'}"))
        assert code == 2
        assert "lies within data=" in facts["error"]
        assert not out.exists()

    def test_features_that_were_there_are_replaced_and_stay_when_it_fails(self, place, tmp_path, capsys):
        """By those of the same words: pictures that came since are taken in."""
        mine, out = photos(tmp_path / "photos", 4, broken=()), tmp_path / "f"
        given = words(place, out, f"data={mine}")
        assert call(capsys, *given)[0] == 0
        before = content(out)
        whole = {path: path.read_bytes() for path in mine.iterdir()}
        for path in whole:
            path.write_bytes(b"broken")
        assert call(capsys, *given)[0] == 2
        assert content(out) == before
        for path, one in whole.items():
            path.write_bytes(one)
        (mine / "new.jpg").write_bytes(next(iter(whole.values())))
        assert call(capsys, *given)[1]["rows"] == 5
        assert len(read_features(out).ids) == 5

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            ("tokens=patches", "tokens  image -> patches."),
            ("data={mine}/photos", "address  {place}/photos -> {mine}/photos."),
            ("backbone={mine}/b", "backbone  "),
        ],
    )
    def test_features_of_something_else_are_not_replaced(self, more, told, place, tmp_path, capsys):
        backbone(tmp_path / "b", seed=1)
        photos(tmp_path / "photos")
        out = tmp_path / "f"
        assert call(capsys, *words(place, out))[0] == 0
        before = content(out)
        code, facts, _ = call(capsys, *words(place, out, more.format(mine=tmp_path)))
        assert code == 2
        assert facts["error"].startswith(f"out={out} holds other features. They differ in: ")
        assert " ".join(told.format(mine=tmp_path, place=place).split()) in facts["error"]
        assert facts["error"].endswith(f" Give a new folder, or remove {out}.")
        assert content(out) == before
        assert not (tmp_path / ".f.embed").exists()

    @pytest.mark.parametrize("text", ["{", "[]", "{}"])
    def test_features_of_nobody_knows_what_are_not_replaced(self, text, place, tmp_path, capsys):
        out = tmp_path / "f"
        out.mkdir()
        (out / "features.json").write_text(text)
        code, facts, _ = call(capsys, *words(place, out))
        assert code == 2
        assert facts["error"] == f"{out / 'features.json'} cannot be read; give a new folder, or remove {out}."


def test_credentials_stay_out_of_what_is_written(place, tmp_path, capsys):
    """The address is written as the source tells it."""
    from dinoforge.verbs import embed as module

    opened = module.open_source

    def secret(address):
        source = opened(address)
        source.address = "s3://bucket/photos"
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_source", secret)
        assert call(capsys, *words(place, tmp_path / "f"))[0] == 0
    assert json.loads((tmp_path / "f" / "features.json").read_text())["address"] == "s3://bucket/photos"
