"""Running the product as a user does: in a process of its own, from the source tree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

SOURCE = Path(__file__).parents[2] / "src"


def start(*words, environment=(), **options):
    """A ``dinoforge`` process."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **dict(environment)}
    return subprocess.Popen(
        [sys.executable, "-m", "dinoforge", *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    last = out.strip().splitlines()[-1] if out.strip() else ""
    facts = json.loads(last) if last.startswith("{") else None
    return SimpleNamespace(code=process.returncode, out=out, err=err, facts=facts)
