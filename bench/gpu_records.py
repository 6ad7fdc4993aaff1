"""CIFAR-10 from scratch on one GPU, 200 passes, in calls of under 9 minutes; then k-NN and linear, as one JSON line.

``make gpu-records``, or without an installation ``PYTHONPATH=src python3 bench/gpu_records.py [OUT] [SETTING=VALUE …]``: the
recipe is ``vit_tiny.small_images_long``, other settings of `pretrain` are yours: ``data=`` and ``probe=`` where CIFAR-10 is not
beside the checkout. When the time of a call is up, a checkpoint is written, and the same command goes on. OUT
(``runs/gpu-records``) holds the run, ``calls.jsonl`` with a line a call, and in the end ``record.json``. Public tables have
84.0 % by k-NN after 200 passes and 89.5 % by a linear head after 1,000 (DINO, ResNet-18).

Exit status: 0 when all is done, 75 when the same command is to go on, 1 when something is wrong, 2 without a CUDA device.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dinoforge
from dinoforge.base.errors import ConfigError, Interrupted, SentinelStop, UserError
from dinoforge.base.files import append_line, read_lines, write_json
from dinoforge.base.hardware import versions
from dinoforge.base.provenance import source_mark
from dinoforge.cli import parse

SECONDS = 480.0
"""Of a call, after which it ends as soon as a checkpoint is written."""
DATA = str(Path(__file__).parents[2] / "shared" / "data" / "cifar10")
WORDS: dict[str, Any] = {
    "recipe": "vit_tiny.small_images_long",
    "data": DATA,
    "probe": DATA + "?split=train",
    "seed": 0,
}
"""A backbone is kept by its vote on a part of the train images: the test images are for the end."""
JUDGED: dict[str, Any] = {"data": DATA, "tasks": "knn,linear"}


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Ask this process to stop when the time is up, as a scheduler would."""

    def stop(*_: object) -> None:
        raise Interrupted("Stopped before the first step; the same command starts again.")

    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, stop)  # where no run listens yet, or no more
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def call(words: dict[str, Any], out: Path, *, seconds: float = SECONDS, judged: dict[str, Any] = JUDGED) -> bool:
    """Train until all is done or the time is up; where all is done, judge and write the record. Whether all is done."""
    run, mark = out / "run", source_mark()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with ended_after(seconds):
            done = dinoforge.pretrain(out=run, **words)
    except Interrupted:
        append_line(out / "calls.jsonl", {"images": seen(run), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"})
        return False
    if done.resumed_from < done.steps:  # else all was done before, and only judging is left
        append_line(out / "calls.jsonl", {"images": done.images, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"})
    scores = dinoforge.evaluate(backbone=str(run), **judged).scores
    write_json(out / "record.json", {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "images": done.images, "images_per_second": done.images_per_second,
        "calls": len(read_lines(out / "calls.jsonl")), "settings": words, "judged": judged, "source": mark,
        "scores": [{"task": one.task, "name": one.name, "value": one.value, "how": one.protocol} for one in scores],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", **versions(),
    })  # fmt: skip
    return True


def seen(run: Path) -> int:
    """Images of the last step that a run wrote down."""
    rows = read_lines(run / "metrics.jsonl")
    return int(rows[-1]["images"]) if rows else 0


def main(typed: list[str]) -> int:
    """One call from the command line."""
    if not torch.cuda.is_available():
        print("No CUDA device; on two cores: dinoforge pretrain recipe=vit_tiny.small_images", file=sys.stderr)
        return 2
    places = [word for word in typed[:1] if "=" not in word]
    out = Path(places[0] if places else "runs/gpu-records")
    try:
        words = WORDS | parse(typed[len(places) :])
        if "out" in words:
            raise ConfigError("The folder is the first word, without out=.")
        done = call(words, out, judged=JUDGED | {"data": words["data"]})
    except Interrupted as stop:  # while judging
        print(f"{stop}", file=sys.stderr)
        return 75
    except (UserError, SentinelStop) as error:
        print(f"gpu-records: {error}", file=sys.stderr)
        return 1
    if not done:
        print(f"{seen(out / 'run'):,} images seen; the same command goes on.")
        return 75
    print((out / "record.json").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
