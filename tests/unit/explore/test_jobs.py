"""What is computed beside the pages: told, tried again, ended."""

import threading
import time

import pytest

from dinoforge.base.errors import RunError
from dinoforge.data.decode import RGB
from dinoforge.explore.collection import DECODING
from dinoforge.explore.web import jobs as module
from dinoforge.explore.web import uploads
from dinoforge.explore.web.jobs import Computing, Job, Jobs


def test_the_time_left_is_of_what_this_start_does():
    """900 of 1000 lay there; 50 in ten seconds leave 50, which take ten more."""
    job = Job("a job", state="running")
    job.tick(900, 1000, "compute")
    assert job.left is None
    job.since -= 10
    job.tick(950, 1000, "compute")
    assert job.left == pytest.approx(10, abs=1)


def test_what_failed_is_tried_again(monkeypatch):
    monkeypatch.setattr(module, "_AGAIN", 0.05)
    jobs, tries = Jobs(), []

    def compute(_):
        tries.append(1)
        if len(tries) == 1:
            raise RunError("the folder is in use.")
        return 7

    for _ in range(2):
        with pytest.raises(RunError, match="in use"):
            jobs.need("a", "A", compute)
    time.sleep(0.1)
    assert jobs.need("a", "A", compute) == 7
    assert jobs.need("a", "A", compute) == 7
    assert len(tries) == 2
    jobs.close()


def test_closing_ends_what_is_computed():
    jobs, ended = Jobs(), threading.Event()

    def endless(job):
        try:
            while True:
                job.tick(1, 2, "turn")
                time.sleep(0.01)
        finally:
            ended.set()

    with pytest.raises(Computing):
        jobs.need("a", "A", endless)
    with pytest.raises(Computing):
        jobs.need("b", "B", lambda _: pytest.fail("it was begun after the end"))
    jobs.close()
    assert ended.is_set()
    assert not jobs._thread.is_alive()
    with pytest.raises(RunError, match="being closed"):
        jobs.need("c", "C", lambda _: 1)


def test_an_upload_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(uploads, "_QUEUED", 0.05)
    with DECODING, DECODING, pytest.raises(RunError, match="try again"):
        uploads.Uploads(100, RGB).add(b"an image")
