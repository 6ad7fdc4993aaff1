"""A million files: looked at once, then known; training begins, and goes on, in seconds.

Measured on two cores shared with others (AVX512, local disk, warm): see docs/records.md.
"""

import io
import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image
from process import SOURCE, start

FILES, FOLDERS, ORIGINALS = 1_000_000, 1_000, 25
GIB = 2**30


@pytest.fixture
def million(tmp_path):
    """``train/000/000.png`` …: few pictures of 1 to 8 pixels a side under a million names (one file has 65,000 at most)."""
    root, originals = tmp_path / "photos", []
    for number in range(ORIGINALS):
        rng, file = np.random.default_rng(number), io.BytesIO()
        pixels = rng.integers(0, 255, (1 + number % 8, 1 + number % 7, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        originals.append(tmp_path / f"{number}.png")
        originals[-1].write_bytes(file.getvalue())
    for folder in range(FOLDERS):
        here = f"{root}/train/{folder:03}"
        os.makedirs(here)  # noqa: PTH103 (a million Paths take longer than the files)
        for number in range(FILES // FOLDERS):
            os.link(originals[(folder + number) % ORIGINALS], f"{here}/{number:03}.png")
    yield root
    shutil.rmtree(tmp_path)


def measured(*words):
    """Facts, seconds, and the most memory that the command's largest process held at a time, in bytes."""
    began, process = time.monotonic(), start(*words, "--json")
    out = process.stdout.read()  # before the process is waited for: its errors are few
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    err = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), time.monotonic() - began, usage.ru_maxrss * 1024


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def first_step(words, metrics):
    """Seconds from the command to the first step that it did; then it is stopped, with a checkpoint."""
    before, began = lines(metrics), time.monotonic()
    process = start(*words)
    while lines(metrics) <= max(before, 1):  # the first line of all is a look before the first step
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 200
        time.sleep(0.02)
    seconds = time.monotonic() - began
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    return seconds


@pytest.mark.long
def test_a_million_files(million, tmp_path):
    out, run = tmp_path / "m.parquet", tmp_path / "run"
    scan = ("scan", f"data={million}", f"out={out}")
    facts, seconds, memory = measured(*scan)
    said = [f"scan {seconds:.0f} s, {memory / GIB:.2f} GiB"]
    wanted = {"images": FILES, "rejected": 0, "exact_duplicates": FILES - ORIGINALS, "read": FILES, "reused": 0}
    assert {name: facts[name] for name in wanted} == wanted
    assert (seconds < 500, memory < 2 * GIB) == (True, True), said

    (million / "train" / "000" / "new.png").write_bytes((tmp_path / "0.png").read_bytes())
    facts, seconds, memory = measured(*scan)
    said += [f"again {seconds:.0f} s, {memory / GIB:.2f} GiB"]
    wanted = {"images": FILES + 1, "read": 1, "reused": FILES, "new": 1, "changed": 0, "vanished": 0}
    assert {name: facts[name] for name in wanted} == wanted
    assert (seconds < 60, memory < 2 * GIB) == (True, True), said

    train = ("pretrain", f"data={out}", f"out={run}", "recipe=vit_micro.toy", "probe.rank_rows=200",
             "plan.checkpoint_images=320")  # fmt: skip
    begun = first_step(train, run / "metrics.jsonl")
    went_on = [first_step(train, run / "metrics.jsonl") for _ in range(2)]
    said += [f"first step {begun:.1f} s", f"resumed {min(went_on):.1f} s"]
    assert (begun < 60, min(went_on) < 10) == (True, True), said
    print("; ".join(said), SOURCE.name, sys.version.split()[0])
