"""A folder is one process's, until that process ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dinoforge
from dinoforge.base.errors import RunError
from dinoforge.base.lock import locked

HOLD = """
import os, pathlib, sys, time
from dinoforge.base.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    child = os.fork()  # a worker that outlives its killed parent
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_until_its_holder_dies(tmp_path):
    """At once, though a worker forked from the holder still lives."""
    source = str(Path(dinoforge.__file__).parents[1])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}
    )
    with holder:
        worker = int(holder.stdout.readline())
        with pytest.raises(RunError, match="in use"), locked(tmp_path):
            pass
        holder.kill()  # the operating system lets go of what a killed process held
        holder.wait(timeout=20)
        with locked(tmp_path), pytest.raises(RunError, match="in use"), locked(tmp_path / "."):
            pass
        os.kill(worker, signal.SIGKILL)
    with locked(tmp_path):
        pass
