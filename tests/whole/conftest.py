"""Fixtures of the tests that run the product as a user does."""

import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from process import finish, start


@pytest.fixture
def run():
    return lambda *words, **options: finish(start(*words, **options))


@pytest.fixture
def started():
    """Start a process that is killed after the test whatever happens."""
    processes = []

    def begin(*words, **options):
        processes.append(start(*words, **options))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def swept(monkeypatch):
    """End after the test what it started and what that started, which all know a mark."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("DINOFORGE_SWEPT", mark)
    yield
    end = time.monotonic() + 30
    while (left := _marked(mark.encode())) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    assert not left


def _marked(mark):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"DINOFORGE_SWEPT=" + mark in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found
