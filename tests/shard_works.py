"""What shards do in the tests of engines: functions of a module that other processes find too."""

import os
import signal
import time

from dinoforge.base.errors import DataError
from dinoforge.curate.executors.inline import Inline


def double(job, processes):
    return job * 2


def dies(job, processes):
    """Kill the process where the number is negative."""
    if job < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * 2


def refuses(job, processes):
    raise DataError(f"{job} is no image.")


def fails(job, processes):
    raise ValueError(f"a bug\nwith {job}")


def raises(kind, processes):
    raise kind("a fault")


def speaks(job, processes):
    import sys

    print(f"Set aside {job}", file=sys.stderr)
    return os.getpid()


def total(job, processes):
    """Of something that all shards share."""
    kept, rows = job
    return float(kept.get()[rows].sum())


def sleeps(job, processes):
    time.sleep(job)


def named(name, *above, text=""):
    """An exception of a library that need not be there."""
    kind = Exception
    for one in (*reversed(above), name):
        kind = type(one, (kind,), {})
    return kind(text)


def twice(monkeypatch):
    """Have every shard done twice by this process, as where the first answer was lost with its process."""
    submit = Inline.submit

    def again(self, fn, /, *args, **words):
        submit(self, fn, *args, **words).result()
        return submit(self, fn, *args, **words)

    monkeypatch.setattr(Inline, "submit", again)
