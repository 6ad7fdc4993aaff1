"""Object storage for real: a server that speaks S3, read row by row, by workers, and by a training run."""

import io
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import dinoforge
from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources import storage
from dinoforge.data.sources.bucket import Bucket
from dinoforge.data.sources.table import open_source


@pytest.fixture(scope="module")
def bucket(object_storage, tmp_path_factory):
    """24 pictures in object storage."""
    folder = tmp_path_factory.mktemp("bucket")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = folder / "photos" / ("train" if number % 4 else "test") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (70, 70, 3), dtype=np.uint8)).save(file, "PNG")
        path.write_bytes(file.getvalue())
    object_storage.put("whole", folder)
    object_storage.folder = folder
    return object_storage


class Rows(torch.utils.data.Dataset):
    """What a worker reads."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, row):
        return self.source.encoded(row)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_row_is_read_by_workers_too(method, bucket):
    source = open_source("s3://whole/photos")
    expected = [(bucket.folder / "photos" / name).read_bytes() for name in source.columns["id"].tolist()]
    assert [
        source.encoded(row) for row in range(len(source))
    ] == expected  # the parent's client is in use before the fork
    loader = DataLoader(
        Rows(source), batch_size=None, num_workers=2, multiprocessing_context=multiprocessing.get_context(method)
    )
    assert list(loader) == expected


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_error_in_the_middle_is_retried(status, bucket, monkeypatch):
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    source = open_source("s3://whole/photos/?split=test")
    source.encoded(0)
    bucket.reads()
    bucket.fail(1, status)
    assert len(source.encoded(1)) > 100
    assert bucket.reads() == 2
    bucket.fail(storage.TRIES, status)
    with pytest.raises(Broken, match=rf"^the file cannot be read: HTTP {status} .*\(tried 5 times\)$"):
        source.encoded(1)
    assert bucket.reads() == storage.TRIES
    assert len(source.encoded(1)) > 100


def test_what_is_not_there_is_one_line(bucket):
    with pytest.raises(DataError, match=r"^s3://whole/none does not exist"):
        open_source("s3://whole/none")
    with pytest.raises(DataError, match=r"^s3://nowhere/x does not exist"):
        open_source("s3://nowhere/x")


@pytest.mark.parametrize("address", ["s3://once/photos", "s3://twice/photos/**/*.png"])
def test_a_second_scan_reads_only_what_changed(address, object_storage, tmp_path):
    for number in range(5):
        write(tmp_path / "in" / "photos" / f"{number}.png", number)
    name = address.split("/")[2]
    object_storage.put(name, tmp_path / "in")

    def scan():
        object_storage.reads()
        return dinoforge.scan(data=address, out=str(tmp_path / "photos.parquet"), workers=1)

    first = scan()
    assert (first.images, first.read) == (5, 5)
    assert object_storage.reads() == 5
    again = scan()
    assert (again.images, again.read, again.reused) == (5, 0, 5)
    assert object_storage.reads() == 0
    before = (tmp_path / "in" / "photos" / "3.png").stat().st_size
    write(tmp_path / "in" / "photos" / "3.png", 9)
    assert (tmp_path / "in" / "photos" / "3.png").stat().st_size == before
    Bucket("s3")._client().pipe_file(f"{name}/photos/3.png", (tmp_path / "in" / "photos" / "3.png").read_bytes())
    changed = scan()
    assert (changed.read, changed.reused, changed.changed) == (1, 4, 1)
    assert object_storage.reads() == 1


def write(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, 0, 0)).save(path)


def ten_steps(out):
    return dinoforge.pretrain(
        recipe="vit_micro.toy", data="s3://whole/photos", out=str(out),
        **{"plan.images": 160, "plan.batch": 16, "objective.group": 16, "workers": 2},
    )  # fmt: skip


def test_errors_within_workers_change_nothing_of_a_training_run(bucket, tmp_path, monkeypatch):
    quiet = ten_steps(tmp_path / "quiet")
    notes, transient = tmp_path / "notes", storage.transient

    def noted(error):
        with notes.open("a") as file:
            file.write(f"{os.getpid()} {transient(error)} {storage._status(error)}\n")
        return transient(error)

    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(storage, "transient", noted)
    bucket.fail_every(3)
    try:
        done = ten_steps(tmp_path / "run")
    finally:
        bucket.fail_every(0)
    seen = [line.split() for line in notes.read_text().splitlines()]
    assert {tuple(rest) for _, *rest in seen} == {("True", "503")}
    in_workers = [process for process, *_ in seen if int(process) != os.getpid()]
    assert len(in_workers) > 10
    assert len(set(in_workers)) == 2
    assert (done.steps, done.quarantined) == (10, 0)
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
    assert done.losses == quiet.losses
    assert all(np.isfinite(value) for value in done.losses.values())
