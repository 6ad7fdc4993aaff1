"""What was set aside in a run is written down once, whatever the disk says meanwhile."""

import pytest

from dinoforge.base import files
from dinoforge.base.errors import RunError
from dinoforge.base.files import read_lines
from dinoforge.data.quarantine import Quarantine


def full(*_):
    raise RunError("no space left")


def test_a_full_disk_ends_no_run_and_loses_no_line(tmp_path, monkeypatch):
    note, write = Quarantine(tmp_path / "q.jsonl"), files.append_line
    monkeypatch.setattr(files, "append_line", full)
    note("a", "damaged")
    note("b", "empty")
    assert not (tmp_path / "q.jsonl").exists()
    monkeypatch.setattr(files, "append_line", write)
    note("a", "damaged")  # no news
    note("c", "too large")
    assert read_lines(tmp_path / "q.jsonl") == [
        {"id": "a", "reason": "damaged"}, {"id": "b", "reason": "empty"}, {"id": "c", "reason": "too large"}
    ]  # fmt: skip
    assert Quarantine(tmp_path / "q.jsonl").seen == {"a", "b", "c"}


def test_what_nothing_follows_is_written_when_asked(tmp_path, monkeypatch):
    """The last image of a run that is set aside: no later one takes its line along."""
    note, write = Quarantine(tmp_path / "q.jsonl"), files.append_line
    monkeypatch.setattr(files, "append_line", full)
    note("a", "damaged")
    with pytest.raises(RunError, match="no space left"):
        note.flush()
    monkeypatch.setattr(files, "append_line", write)
    note.flush()
    note.flush()
    assert read_lines(tmp_path / "q.jsonl") == [{"id": "a", "reason": "damaged"}]
