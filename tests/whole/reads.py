"""Readers of shards that take their time, or end their process; of a module, so that workers find them."""

import os
import signal
import time
from pathlib import Path

import dinoforge.curate.images

_read = dinoforge.curate.images._read


def slow(job, processes):
    """A second for each shard, so that what is killed has one."""
    time.sleep(1)
    _read(job, processes)


def slowest(job, processes):
    """Long enough for another start."""
    time.sleep(15)
    _read(job, processes)


def counted(path):
    """A line for each call, and how many there are."""
    with Path(path).open("a+") as file:
        file.write("made\n")
        file.seek(0)
        return len(file.readlines())


def deadly(job, processes):
    """The second shard of four images ends its process."""
    if job.start == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    _read(job, processes)
