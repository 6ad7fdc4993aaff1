"""Fixtures of the tests that run the product as a user does."""

import sys
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
