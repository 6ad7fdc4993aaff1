"""The speed-run: how many seconds of training until a backbone knows the toy world; one JSON line, appended to a log.

``python bench/speedrun.py [LOG] [SETTING=VALUE …]``: the task is fixed (4,000 pictures of ``toy://species``, 800 of them of
individuals that are not trained on; the k-NN accuracy of the last backbone, 10 neighbours among 2,000, 600 asked, of at least
TARGET); the settings of `pretrain` are yours. What counts is ``seconds``: training, probes and checkpoints, from a fresh
start. The line holds all that a record needs: settings, a fingerprint of the source, versions, hardware, date.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dinoforge
from dinoforge.base.errors import SentinelStop, UserError
from dinoforge.base.files import append_line, place_for
from dinoforge.base.hardware import cores, processor, versions
from dinoforge.base.provenance import source_mark

DATA = "toy://species?images=4000&seed=0"
TARGET = 0.45
WORDS: dict[str, Any] = {"recipe": "vit_micro.toy", "seed": 0}
FIXED = {
    "data": DATA, "probe": DATA, "probe.neighbours": 10, "probe.train_rows": 2_000, "probe.test_rows": 600,
}  # fmt: skip
"""The task; no setting of yours changes it."""
FRESH = ("init", "teacher", "distil", "continuation", "retention", "config", "objective.gram")
"""Settings that begin so bring what was learnt before, or may: a start is fresh."""
GROUPS = ("data", "probe", "objective")
"""A whole group at once may hold one of these, or of the task's."""


def commit() -> str | None:
    """The commit that is checked out, with ``+`` where files differ from it; None outside a repository."""
    root = str(Path(__file__).parent)
    try:
        found = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False
        )
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def settings(given: Iterable[str]) -> dict[str, Any]:
    """What was typed, over what is tried by default.

    Raises:
        SystemExit: A word is no setting, or one that the task fixes.
    """
    words = dict(WORDS)
    for word in given:
        key, equals, value = word.partition("=")
        if not equals:
            raise SystemExit(f"Settings are written key=value; got {word!r}.")
        if key in FIXED or key in {"out", *GROUPS, "data.source", "probe.source"} or key.startswith(FRESH):
            raise SystemExit(f"The task fixes {key}; the speed-run takes settings of how to train.")
        words[key] = value
    return words


def run(words: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train once, from the start."""
    of = {"commit": commit(), "source": source_mark()}  # of what runs, whatever is saved meanwhile
    done = dinoforge.pretrain(out=folder, **FIXED, **words)
    knn = done.knn["last"] if done.knn else 0.0
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "reached": knn >= TARGET, "knn": knn, "seconds": round(done.seconds, 1),
        "images": done.images, "images_per_second": round(done.images_per_second, 1), "target": TARGET, "settings": words,
        "task": FIXED, **of, "cores": cores(), "processor": processor(), **versions(),
    }  # fmt: skip


def main(typed: list[str]) -> int:
    """From the command line."""
    places = [word for word in typed[:1] if "=" not in word]
    log = Path(places[0] if places else "speedrun.jsonl")
    words = settings(typed[len(places) :])
    try:
        place_for(log)  # before minutes of training, not after them
        with tempfile.TemporaryDirectory() as place:
            line = run(words, Path(place) / "run")
    except (UserError, SentinelStop) as error:
        raise SystemExit(f"speedrun: {error}") from None
    print(json.dumps(line))
    append_line(log, line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
