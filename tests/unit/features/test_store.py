"""Features on disk are those that were computed; ids stay beside their rows; what is finished is not computed again."""

import errno
import hashlib
import json
from collections import deque
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dinoforge.base.errors import DataError, RunError
from dinoforge.base.lock import in_use, locked
from dinoforge.data.sources.table import open_source
from dinoforge.features import kept
from dinoforge.features.extract import Extraction, computed, image_features, pictures
from dinoforge.features.eyes import Eyes
from dinoforge.features.kinds import KINDS
from dinoforge.features.store import read_features, write_features
from dinoforge.features.unfinished import Unfinished
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.weights import Backbone, Preprocessing

HOW = Preprocessing(short_side=24, side=24)
CPU = torch.device("cpu")


def quiet(name, reason):
    pass


@pytest.mark.parametrize("shard", [2, 4, 64])
@pytest.mark.parametrize("tokens", ["image", "patches", "tokens"])
def test_rows_are_the_features(tokens, shard, tmp_path):
    module, source = build(ToyConfig(), seed=0), open_source("toy://species?images=11&size=24")
    shards = Unfinished(tmp_path / ".f", {"backbone": "b"}, images=11, rows=shard)
    how = Extraction(CPU, rows_at_once=2)
    parts = computed(module, source, HOW, how, of=KINDS[tokens], on_broken=quiet)
    shards.write(((rows, found.numpy()) for rows, found in parts), deque())
    assert write_features(tmp_path / "f", shards, columns=source.columns, facts={"backbone": "b"}) == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f"]
    assert not (tmp_path / "f" / "quarantine.jsonl").exists()
    stored = read_features(tmp_path / "f")
    assert stored.values.shape == {"image": (11, 16), "patches": (11, 3, 3, 16), "tokens": (11, 10, 16)}[tokens]
    x = torch.stack([torch.from_numpy(source.pixels(n)).permute(2, 0, 1) for n in range(11)]).float() / 255
    x = (x - torch.tensor(HOW.mean).view(3, 1, 1)) / torch.tensor(HOW.std).view(3, 1, 1)
    with torch.no_grad():
        seen = module(x)
    both = torch.cat([seen.image[:, None], *seen.patches.unbind(1)], dim=1)
    want = (both if tokens == "tokens" else getattr(seen, tokens)).numpy()
    np.testing.assert_allclose(stored.values, want, atol=1e-5)
    assert stored.ids.tolist() == source.columns["id"].tolist()
    assert pq.read_table(tmp_path / "f" / "ids.parquet")["label"].to_pylist() == source.columns["label"].tolist()
    facts = json.loads((tmp_path / "f" / "features.json").read_text())
    assert (facts["backbone"], facts["rows"], facts["shape"]) == ("b", 11, list(want.shape[1:]))
    assert facts["digest"] == hashlib.sha256(np.ascontiguousarray(stored.values).data).hexdigest()[:16]


def test_how_many_at_once_changes_nothing():
    module, source = build(ToyConfig(), seed=0).train(), open_source("toy://species?images=11&size=24")
    found = [
        image_features(module, source, HOW, Extraction(CPU, rows_at_once=n), on_broken=quiet)[0] for n in (1, 4, 100)
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert module.training  # as it was


def test_what_is_larger_than_memory_may_only_be_read(tmp_path, monkeypatch, recwarn):
    module, source = build(ToyConfig(), seed=0), open_source("toy://species?images=11&size=24")
    backbone = Backbone(module, ToyConfig(), HOW)
    words = {"folder": tmp_path / "f", "on_broken": quiet}
    first = Eyes(backbone, Extraction(CPU), **words).look(source)
    load = np.load

    def refused(path, mmap_mode=None, **more):
        if mmap_mode == "c":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return load(path, mmap_mode=mmap_mode, **more)

    monkeypatch.setattr(np, "load", refused)
    again = Eyes(backbone, Extraction(CPU), **words).look(source)
    assert torch.equal(again.values, first.values)
    assert not recwarn.list


def test_what_holds_no_features(tmp_path):
    with pytest.raises(DataError, match="holds no features"):
        read_features(tmp_path)


def made(rows, at_once=2):
    """Row r has the features r, r + 1/2."""
    for start in range(0, len(rows), at_once):
        some = np.asarray(rows[start : start + at_once])
        yield some, np.stack([some, some + 0.5], 1).astype(np.float32)


def test_broken_images_have_no_row_and_keep_their_reasons(tmp_path):
    """Of three shards of 4: one with two broken images, one with none that is whole, one whose last is broken."""
    shards, reasons = Unfinished(tmp_path / "s", {}, images=12, rows=4), deque()

    def found():
        yield np.asarray([1]), np.ones((1, 2), np.float32)
        yield np.asarray([2]), np.full((1, 2), 2, np.float32)
        # A part of the third shard is asked for before the first is closed, and with it what is broken until there.
        reasons.extend(["b3", "b4", "b5", "b6", "b7"])
        yield np.asarray([8, 9, 10]), np.full((3, 2), 8, np.float32)
        reasons.append("b11")

    reasons.append("b0")
    shards.write(found(), reasons)
    broken = [(row, f"b{row}") for row in (0, 3, 4, 5, 6, 7, 11)]
    assert shards.broken() == broken
    assert not reasons
    again = Unfinished(tmp_path / "s", {}, images=12, rows=4)
    assert (again.missing(), again.broken()) == ([], broken)
    columns = {"id": np.asarray([f"i{row}" for row in range(12)])}
    aside = [{"id": f"i{row}", "reason": reason} for row, reason in broken]
    assert write_features(tmp_path / "f", again, columns=columns, facts={}, set_aside=aside) == 5
    stored = read_features(tmp_path / "f")
    assert stored.ids.tolist() == ["i1", "i2", "i8", "i9", "i10"]
    assert stored.values.tolist() == [[1, 1], [2, 2], [8, 8], [8, 8], [8, 8]]
    lines = (tmp_path / "f" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == aside


def test_numbers_of_16_bits(tmp_path):
    """Half as many bytes; a shard that is cut off is seen as such."""
    shards = Unfinished(tmp_path / "s", {}, images=11, rows=4, half=True)
    shards.write(made(range(11)), deque())
    assert sorted(path.stat().st_size for path in (tmp_path / "s").glob("0*.f16")) == [12, 16, 16]
    (tmp_path / "s" / "00001.f16").write_bytes(b"cut")
    again = Unfinished(tmp_path / "s", {}, images=11, rows=4, half=True)
    assert again.missing() == [1]
    again.write(made(again.span(1)), deque())
    write_features(tmp_path / "f", again, columns={"id": np.arange(11).astype(str)}, facts={})
    stored = read_features(tmp_path / "f")
    assert stored.values.dtype == np.float16
    assert stored.values[:, 0].tolist() == [*range(11)]


def test_numbers_beyond_16_bits(tmp_path):
    """The largest that there is; what is not finite is 0."""
    shards = Unfinished(tmp_path / "s", {}, images=1, rows=4, half=True)
    shards.write([(np.arange(1), np.asarray([[1e6, -1e6, np.inf, -np.inf, np.nan, 3.0]], np.float32))], deque())
    write_features(tmp_path / "f", shards, columns={"id": np.arange(1).astype(str)}, facts={})
    found = read_features(tmp_path / "f", mode="r").values
    assert found.tolist() == [[65504, -65504, 0, 0, 0, 3]]
    assert not found.flags.writeable


@pytest.mark.parametrize("harm", ["absent", "no note", "cut off", "note cut off", "older temporary"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_only_what_is_missing_is_written(number, harm, tmp_path):
    shards = Unfinished(tmp_path / "s", {"a": 1}, images=11, rows=4)
    shards.write(made(range(11)), deque())
    values, note = tmp_path / "s" / f"{number:05}.f32", tmp_path / "s" / f"{number:05}.json"
    whole = values.read_bytes()
    if harm == "absent":
        values.unlink()
    elif harm == "no note":
        note.unlink()
    elif harm == "cut off":
        values.write_bytes(whole[:-3])
    elif harm == "note cut off":
        note.write_text(note.read_text()[:-4])
    else:
        values.rename(tmp_path / "s" / f".{values.name}.a1b2c3d4")
    others = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("s/0*") if path.stem != values.stem}
    again = Unfinished(tmp_path / "s", {"a": 1}, images=11, rows=4)
    assert again.missing() == [number]
    again.write(made(again.span(number)), deque())
    assert values.read_bytes() == whole
    assert {name: (tmp_path / "s" / name).stat().st_mtime_ns for name in others} == others
    assert not list(tmp_path.glob("s/.0*"))
    write_features(tmp_path / "f", again, columns={"id": np.arange(11).astype(str)}, facts={})
    assert read_features(tmp_path / "f").values[:, 0].tolist() == [*range(11)]


def test_what_fails_keeps_the_shards_before_it(tmp_path):
    shards = Unfinished(tmp_path / "s", {}, images=12, rows=4)

    def fails():
        yield from made(range(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(fails(), deque())
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["00000.f32", "00000.json", "about.json"]
    assert Unfinished(tmp_path / "s", {}, images=12, rows=4).missing() == [1, 2]


@pytest.mark.parametrize(
    ("about", "images", "rows", "told"),
    [
        ({"a": {"b": 2}}, 11, 4, r"a\.b  1 -> 2"),
        ({"a": {"b": 1}, "c": 1}, 11, 4, r"c  \(absent\) -> 1"),
        ({"a": {"b": 1}}, 12, 4, "images  11 -> 12"),
        ({"a": {"b": 1}}, 11, 8, "shard  4 -> 8"),
    ],
)
def test_shards_of_something_else_are_refused(about, images, rows, told, tmp_path):
    first = Unfinished(tmp_path / "s", {"a": {"b": 1}}, images=11, rows=4)
    before = (tmp_path / "s" / "about.json").read_text()
    first.write(made(range(4)), deque(["x"] * 7))
    with pytest.raises(
        RunError,
        match=rf"^.*/s holds finished shards of other features\. They differ in: {told}\. Give .*or remove .*/s to start anew\.$",
    ):
        Unfinished(tmp_path / "s", about, images=images, rows=rows)
    assert (tmp_path / "s" / "about.json").read_text() == before
    (tmp_path / "s" / "about.json").write_text("{")  # of what they are is not known any more
    with pytest.raises(RunError, match="holds finished shards of other features"):
        Unfinished(tmp_path / "s", {"a": {"b": 1}}, images=11, rows=4)


def test_without_a_finished_shard_nothing_is_refused(tmp_path):
    Unfinished(tmp_path / "s", {"a": 1}, images=11, rows=4)
    assert Unfinished(tmp_path / "s", {"a": 2}, images=12, rows=4).missing() == [0, 1, 2]
    assert json.loads((tmp_path / "s" / "about.json").read_text()) == {"a": 2, "images": 12, "shard": 4}


def test_how_many_decode_changes_nothing(tmp_path):
    """Pictures and what is said of broken ones come in the order of the source."""
    for row in range(9):
        Image.fromarray(np.full((24, 24, 3), row, np.uint8)).save(tmp_path / f"{row}.png")
    for row in (2, 3, 8):
        (tmp_path / f"{row}.png").write_bytes(b"cut off")
    source = open_source(str(tmp_path))
    for decoders in (1, 3):
        told: list[str] = []
        found = pictures(
            source, HOW, on_broken=lambda name, _, to=told: to.append(name), rows_at_once=4, decoders=decoders
        )
        parts = list(found)
        assert [rows.tolist() for rows, _ in parts] == [[0, 1], [4, 5, 6, 7]]
        assert [int(image[0, 0, 0]) for _, images in parts for image in images] == [0, 1, 4, 5, 6, 7]
        assert told == ["2.png", "3.png", "8.png"]


def eyes(folder):
    return Eyes(Backbone(build(ToyConfig(), seed=0), ToyConfig(), HOW), Extraction(CPU), folder=folder, on_broken=quiet)


def test_the_lock_comes_before_what_takes_long(tmp_path, monkeypatch):
    """Two that begin together: the second has not looked at a file when it learns of the first."""
    source = open_source("toy://species?images=11&size=24")
    monkeypatch.setattr(kept, "files_of", lambda _: str(in_use(next(tmp_path.glob("f/.*.embed")))))
    eyes(tmp_path / "f").look(source)
    path = next(tmp_path.glob("f/*/features.json")).parent
    path.rename(tmp_path / "whole")
    monkeypatch.setattr(kept, "files_of", lambda _: pytest.fail("looked at files"))
    with locked(kept.beside(path)):
        seen = eyes(tmp_path / "f").look(source)
    assert not path.exists()
    np.testing.assert_array_equal(seen.values, read_features(tmp_path / "whole").values)


def test_what_another_process_has_just_finished_is_not_computed_again(tmp_path, monkeypatch):
    source = open_source("toy://species?images=11&size=24")

    @contextmanager
    def after_another(folder):
        monkeypatch.setattr(kept, "locked", locked)
        eyes(tmp_path / "f").look(source)
        monkeypatch.setattr(kept, "computed", lambda *_, **__: pytest.fail("computed again"))
        with locked(folder):
            yield

    monkeypatch.setattr(kept, "locked", after_another)
    assert len(eyes(tmp_path / "f").look(source).values) == 11
    assert not list(tmp_path.glob("f/.*"))
