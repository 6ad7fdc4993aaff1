"""What a person sees: lines without a terminal, never on standard output."""

import pytest

from dinoforge.base import log


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.031, "0.031 s"),
        (0.5, "0.5 s"),
        (5, "5 s"),
        (9.97, "10 s"),
        (75, "1 min 15 s"),
        (3600, "1 h 0 min"),
        (7384, "2 h 3 min"),
    ],
)
def test_clock(seconds, text):
    assert log.clock(seconds) == text


def test_lines_without_a_terminal(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.progress("train", 100) as tick:
        for done in range(10, 101, 10):
            now[0] += 4
            tick(done, "loss 1.0")
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0] == "train: 30/100 images, 2.5/s, 28 s left  loss 1.0"
    assert lines[-1].startswith("train: 100/100 images")
    assert len(lines) == 4


def test_rate_of_a_resumed_run_counts_its_own_images(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.progress("train", 100, start=80) as tick:
        now[0] += 10
        tick(90)
    assert "90/100 images, 1.0/s, 10 s left" in capsys.readouterr().err


def test_track_yields_everything(capsys):
    assert list(log.track(iter("abc"), "scan", 3)) == ["a", "b", "c"]
    assert "scan: 3/3" in capsys.readouterr().err
