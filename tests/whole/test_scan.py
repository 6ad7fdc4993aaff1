"""`scan` as a user runs it: it tells what it found, reads again only what it must, and can be stopped at any moment."""

import contextlib
import os
import resource
import signal
import subprocess
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from process import finish, start

from dinoforge.cli import execute
from dinoforge.data.manifest import read_made, read_manifest, write_manifest
from dinoforge.data.toyworld.pollution import png

FACTS = {"images", "rejected", "exact_duplicates", "read", "reused", "new", "changed", "vanished", "seconds", "out"}


def photos(root, count=12):
    for number in range(count):
        path = root / ("cat" if number % 2 else "dog") / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((6, 5, 3), number % 250, np.uint8)))
    return root


def many(root, count, side=700):
    """Pictures that take some milliseconds each."""
    root.mkdir()
    (root / "0000.png").write_bytes(png(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)))
    for number in range(1, count):
        os.link(root / "0000.png", root / f"{number:04}.png")
    return root


def test_a_manifest_among_the_pictures_is_no_picture(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "notes.txt").write_text("x")
    (root / "cat" / os.fsdecode(b"bad\xff.png")).write_bytes(b"x")
    (root / "cat" / "new\nline.png").write_bytes((root / "dog" / "0000.png").read_bytes())
    out = root / "m.parquet"
    first = finish(start("scan", f"data={root}", f"out={out}", "--json"))
    assert (first.code, set(first.facts)) == (0, FACTS), first.err
    assert "Traceback" not in first.err
    wanted = {"images": 13, "rejected": 2, "exact_duplicates": 1, "read": 13, "reused": 0, "new": 13}
    assert {name: first.facts[name] for name in wanted} == wanted
    second = finish(start("scan", f"data={root}", f"out={out}", "workers=1", "--json"))
    wanted |= {"read": 0, "reused": 13, "new": 0, "changed": 0, "vanished": 0}
    assert {name: second.facts[name] for name in wanted} == wanted
    assert sorted(path.name for path in root.iterdir()) == ["cat", "dog", "m.parquet", "notes.txt"]
    assert [line["id"] for line in read_made(out)["rejected"]] == ["cat/bad\\xff.png", "notes.txt"]


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on(number, tmp_path):
    root, out = many(tmp_path / "photos", 600), tmp_path / "m.parquet"
    words = ("scan", f"data={root}", f"out={out}", "workers=2", "--json")
    process = start(*words, start_new_session=True)
    journal = tmp_path / ".m.parquet.scan" / "journal.arrow"
    until = time.monotonic() + 60
    while not noted(journal):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)  # as a scheduler does it
    else:
        process.send_signal(number)
    stopped = finish(process)
    assert not out.exists()
    if number == signal.SIGKILL:
        assert stopped.code == -signal.SIGKILL
    else:
        assert (stopped.code, list(stopped.facts)) == (75, ["error"])
        assert stopped.err.splitlines()[-1].endswith("Run the same command to go on.")
    assert not left(process.pid)
    done = finish(start(*words))
    assert done.code == 0, done.err
    assert done.facts["reused"] >= 32
    assert done.facts["read"] + done.facts["reused"] == done.facts["images"] == 600
    assert done.facts["exact_duplicates"] == 599
    assert [path.name for path in tmp_path.iterdir() if path.name != "photos"] == ["m.parquet"]


def noted(journal):
    """Rows in the whole batches of a journal: its size alone says nothing, a batch may be half written."""
    rows = 0
    with contextlib.suppress(FileNotFoundError, pa.ArrowException), journal.open("rb") as file:
        for batch in pa.ipc.open_stream(file):
            rows += len(batch)
    return rows


def left(group):
    """Processes of a group that live on two seconds after its leader."""
    for _ in range(40):
        found = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-g", str(group)], capture_output=True, text=True, check=False
        )
        alive = [line for line in found.stdout.splitlines() if "Z" not in line]
        if not alive:
            break
        time.sleep(0.05)
    return alive


def test_two_scans_do_not_share_an_output(tmp_path):
    root, out = many(tmp_path / "photos", 600), tmp_path / "m.parquet"
    one = start("scan", f"data={root}", f"out={out}", "--json")
    while not (tmp_path / ".m.parquet.scan" / "journal.arrow").exists():
        time.sleep(0.02)
    one.send_signal(signal.SIGSTOP)  # or it is done before the other has begun
    other = finish(start("scan", f"data={root}", f"out={out}", "--json"))
    one.send_signal(signal.SIGCONT)
    assert other.code == 2
    assert "is in use by another dinoforge process" in other.facts["error"]
    assert finish(one).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=m.csv"], "out=m.csv must be a .parquet file"),
        (["out=notes.parquet"], "out=notes.parquet is there and is no manifest; choose another name, or remove it"),
        (["out=table.parquet"], "out=table.parquet is there and is no manifest"),
        (["out=folder.parquet"], "out=folder.parquet is there and is no manifest"),
        (["out=curated.parquet"], "is a manifest of `curate`, not of `scan`; choose another name, or remove it"),
        (["data=scanned.parquet", "out=./scanned.parquet"], "is the manifest that is to be scanned"),
        (["out=m.parquet", "workers=0"], "workers must be 1 to 1024; got 0"),
        (["out=m.parquet", "workers=all"], "workers takes a whole number; got 'all'"),
        (["out=photos/cat/0001.png/m.parquet"], "a file stands where a folder is needed"),
        (["out=/sys/m.parquet"], "Cannot write /sys/.m.parquet.scan: permission denied"),
        ([f"out={'m' * 245}.parquet"], "has a name of more than 240 bytes; give a shorter one"),
    ],
)
def test_what_cannot_be_written_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    (tmp_path / "notes.parquet").write_text("mine")
    (tmp_path / "folder.parquet").mkdir()
    pq.write_table(read_manifest_of_nothing(tmp_path), tmp_path / "table.parquet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = [*([] if words[0].startswith("data=") else ["data=photos"]), *words]
    assert execute(["scan", *given]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def read_manifest_of_nothing(folder):
    for verb in ("curate", "scan"):
        name = "curated" if verb == "curate" else "scanned"
        write_manifest(folder / f"{name}.parquet", [], made={"verb": verb})
    return read_manifest(folder / "scanned.parquet").table.replace_schema_metadata(None)


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path):
    root, out = photos(tmp_path / "photos", 400), tmp_path / "m.parquet"
    assert finish(start("scan", f"data={root}", f"out={out}")).code == 0
    before = out.read_bytes()
    for path in root.rglob("*.png"):
        os.utime(path, ns=(1, 1))

    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    full = finish(start("scan", f"data={root}", f"out={out}", "--json", preexec_fn=small))
    assert full.code == 2, full.err
    assert "no space left" in full.facts["error"]
    assert "Traceback" not in full.err
    assert out.read_bytes() == before
    assert finish(start("scan", f"data={root}", f"out={out}")).code == 0
