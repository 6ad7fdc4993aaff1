"""Readers of shards that take their time, or end their process; of a module, so that workers find them."""

import os
import signal
import time

import dinoforge.curate.images

_read = dinoforge.curate.images._read


def slow(job, processes):
    """A second for each shard, so that what is killed has one."""
    time.sleep(1)
    _read(job, processes)


def deadly(job, processes):
    """The second shard of four images ends its process."""
    if job.start == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    _read(job, processes)
