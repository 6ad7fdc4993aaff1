"""Reading in shards: once, again only what changed, and never what is broken twice as something else."""

import shutil

import numpy as np
import pytest

from dinoforge.base.errors import RunError
from dinoforge.curate import images as reading
from dinoforge.curate.executors.run import Lost, Shards, here
from dinoforge.curate.filters import measured
from dinoforge.curate.images import read_images, read_shard, take, write_shard
from dinoforge.data.decode import open_picture
from dinoforge.data.picture import Picture
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png
from dinoforge.features.copies import describe, thumbnail


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(reading, "SHARD", 4)


def folder(root, count=10):
    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(count):
        (root / f"{number}.png").write_bytes(png(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)))
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:90])
    return root


def read(root, at):
    return read_images(open_source(str(root)), at, name="pool", crew=here(2))


def counted(monkeypatch):
    """Rows that are looked at."""
    rows = []
    whole = reading.looked
    monkeypatch.setattr(
        reading, "looked", lambda source, some, **how: rows.extend(some.tolist()) or whole(source, some, **how)
    )
    return rows


def test_it_is_what_each_image_says_by_itself(tmp_path):
    root = folder(tmp_path / "p")
    found = read(root, tmp_path / "s")
    assert found.whole.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert "truncated" in found.broken[3]
    pixels = open_picture((root / "5.png").read_bytes()).pixels()
    np.testing.assert_array_equal(found.thumbnails[5], thumbnail(pixels))
    np.testing.assert_array_equal(found.descriptors[5], describe(thumbnail(pixels)[None])[0].astype(np.float16))
    assert found.measured(np.asarray([5])) == [measured(pixels)]
    assert found.sizes[5].tolist() == [20, 24, 3, (root / "5.png").stat().st_size]
    listed = found.manifest()
    assert listed.column("id").tolist() == [f"{n}.png" for n in range(10) if n != 3]
    assert listed.column("sha256").tolist() == found.sha256[found.whole].tolist()


def test_shards_that_are_there_are_not_read_again(tmp_path, monkeypatch, capsys):
    root = folder(tmp_path / "p")
    first = read(root, tmp_path / "s")
    rows = counted(monkeypatch)
    again = read(root, tmp_path / "s")
    assert rows == []
    assert again.fingerprint == first.fingerprint
    for name in ("sha256", "sizes", "broken", "measures", "thumbnails", "descriptors"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    (root / "6.png").write_bytes((root / "7.png").read_bytes())
    changed = read(root, tmp_path / "s")
    assert rows == [4, 5, 6, 7]
    assert changed.sha256[6] == changed.sha256[7]
    assert changed.fingerprint != first.fingerprint
    assert "1 of 3 shards" in capsys.readouterr().err


def test_what_is_forgotten_of_an_image_is_read_again(tmp_path, monkeypatch):
    root = folder(tmp_path / "p")
    read(root, tmp_path / "s").forget(6)
    rows = counted(monkeypatch)
    read(root, tmp_path / "s")
    assert rows == [4, 5, 6, 7]


def test_a_source_that_cannot_tell_of_changes_is_named_where_it_is_not_read_again(tmp_path, capsys, monkeypatch):
    root = folder(tmp_path / "p")

    def said(address, *, place):
        read(address, tmp_path / place)
        return "does not tell when its images were changed; remove" in capsys.readouterr().err

    for address in (root, "toy://species?images=6&size=16"):
        assert [said(address, place="a"), said(address, place="a")] == [False, False]
    monkeypatch.setattr(type(open_source(str(root))), "stamp", lambda *_: None)
    assert [said(root, place="b"), said(root, place="b")] == [False, True]


def test_a_missing_or_damaged_shard_is_read_again(tmp_path, monkeypatch):
    root = folder(tmp_path / "p")
    first = read(root, tmp_path / "s")
    files = sorted((tmp_path / "s").glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:500])
    files[2].unlink()
    rows = counted(monkeypatch)
    assert read(root, tmp_path / "s").fingerprint == first.fingerprint
    assert rows == [0, 1, 2, 3, 8, 9]


def test_shards_of_a_longer_source_are_cleared(tmp_path):
    root = folder(tmp_path / "p")
    read(root, tmp_path / "s")
    for number in (7, 8, 9):
        (root / f"{number}.png").unlink()
    assert len(read(root, tmp_path / "s")) == 7
    assert len(list((tmp_path / "s").glob("*.npz"))) == 2


def test_a_shard_holds_no_code(tmp_path):
    np.savez(tmp_path / "a.npz", mark=np.asarray([{"a": 1}], dtype=object))
    assert read_shard(tmp_path / "a.npz") is None
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 no zip")
    assert read_shard(tmp_path / "b.npz") is None
    write_shard(tmp_path / "c.npz", {"x": np.arange(3)})
    assert read_shard(tmp_path / "c.npz")["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.int32])
@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_any_channels_and_numbers(kind, channels):
    ramp = np.arange(40)[:, None, None] * np.linspace(1, 5, 40)[None, :, None] * np.ones(channels)
    pixels = ramp.astype(kind)
    found = take(Picture.of(pixels), pixels)
    assert found.thumbnail.shape == (32, 32, 3)
    if kind in {np.float32, np.int32}:  # without a white: stretched, whatever their range
        assert found.thumbnail.max() > 200
        both = take(Picture.of(pixels), (pixels * 7).astype(kind))
        assert np.abs(both.thumbnail.astype(int) - found.thumbnail).max() <= 1


def test_a_picture_of_one_number_or_none_is_no_crash():
    for pixels in (np.full((20, 20, 3), 3.5, np.float32), np.full((20, 20, 1), np.nan, np.float32)):
        assert take(Picture.of(pixels), pixels).measures[2] == 0  # flat


def test_what_a_worker_wrote_elsewhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_SHOWN", 0.01)
    with pytest.raises(RunError, match=r"a\.npz was written by a worker and is not seen here; out= must lie where"):
        reading.written(tmp_path / "a.npz", "new")
    write_shard(tmp_path / "a.npz", {"mark": np.asarray("old"), "rows": np.arange(3)})
    with pytest.raises(RunError, match="is not seen here"):
        reading.written(tmp_path / "a.npz", "new")
    with pytest.raises(RunError, match="is not seen here"):
        reading.written(tmp_path / "a.npz", "old", np.asarray([2, 3]))
    assert reading.written(tmp_path / "a.npz", "old", np.asarray([2]))["rows"].tolist() == [0, 1, 2]


def test_images_of_a_shard_that_is_given_up_are_set_aside_until_it_can_be_read(tmp_path, monkeypatch):
    root, crew = folder(tmp_path / "p"), here()

    def loses(work, shards, **_words):
        for place, shard in enumerate(shards):
            if shard.job.start == 4:
                yield place, Lost("its process died")
            else:
                yield place, work(shard.job, 1)

    monkeypatch.setattr(Shards, "each", lambda _self, *words, **more: loses(*words, **more))
    found = read_images(open_source(str(root)), tmp_path / "s", name="pool", crew=crew)
    assert found.whole.tolist() == [0, 1, 2, 8, 9]
    assert set(found.broken[4:8]) == {"reading its shard failed twice: its process died"}
    monkeypatch.undo()
    monkeypatch.setattr(reading, "SHARD", 4)
    rows = counted(monkeypatch)
    assert read(root, tmp_path / "s").whole.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert rows == [4, 5, 6, 7]


def test_columns_are_mapped_and_made_once(tmp_path, monkeypatch):
    """Nothing that is as long as the pool is held; the files are those that others open, and are of these images."""
    root = folder(tmp_path / "p")
    found = read(root, tmp_path / "s")
    for name in ("sha256", "sizes", "broken", "measures", "thumbnails", "descriptors"):
        array = getattr(found, name)
        assert isinstance(array.base, np.memmap)
        assert not array.flags.writeable
        np.testing.assert_array_equal(np.load(found.file(name)), array)
    assert found.keys(np.asarray([0, 5, 9])).to_pylist() == found.sha256[[0, 5, 9]].tolist()
    with monkeypatch.context() as patch:
        patch.setattr(reading, "write_columns", None)  # not called
        assert read(root, tmp_path / "s").fingerprint == found.fingerprint
    found.file("thumbnails").unlink()
    found.file("thumbnails").write_bytes(b"\x93NUMPY")
    np.testing.assert_array_equal(read(root, tmp_path / "s").thumbnails, found.thumbnails)
    shutil.copytree(tmp_path / "s" / "flat", tmp_path / "old")
    (root / "6.png").write_bytes((root / "7.png").read_bytes())
    for _ in range(2):
        changed = read(root, tmp_path / "s")
        np.testing.assert_array_equal(changed.thumbnails[6], found.thumbnails[7])
        shutil.rmtree(
            tmp_path / "s" / "flat"
        )  # as if killed when the shards were read and the columns were not yet made
        shutil.copytree(tmp_path / "old", tmp_path / "s" / "flat")
    assert (found.thumbnails[6] != found.thumbnails[7]).any()  # who has the old ones mapped keeps them


def test_columns_of_a_shard_that_is_read_again_are_made_anew(tmp_path, monkeypatch):
    """Killed after a damaged shard was read again, under the same stamps, and before its columns were made."""
    root = folder(tmp_path / "images")
    read(root, tmp_path / "s")
    next((tmp_path / "s").glob("*.npz")).write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(reading, "write_columns", lambda *_words, **_more: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read(root, tmp_path / "s")
    assert not (tmp_path / "s" / "flat" / "key").exists()
    assert len(read(root, tmp_path / "s").whole) == 9


def test_columns_of_what_does_not_last_are_made_anew(tmp_path, monkeypatch):
    root = folder(tmp_path / "p")
    whole = reading.looked

    def slow(source, rows, **how):
        for some in whole(source, rows, **how):
            yield [one._replace(lasting=False) for one in some]

    with monkeypatch.context() as patch:
        patch.setattr(reading, "looked", slow)
        read(root, tmp_path / "s")
    assert (tmp_path / "s" / "flat" / "key").read_text() == ""
    read(root, tmp_path / "s")
    assert (tmp_path / "s" / "flat" / "key").read_text() != ""
