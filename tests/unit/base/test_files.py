"""Files are whole or absent, whatever happens in the middle."""

import json
import os
from pathlib import Path

import pytest

from dinoforge.base.errors import RunError
from dinoforge.base.files import (
    append_line,
    clear_leftovers,
    explained,
    new_folder,
    put_back,
    read_lines,
    remove_folder,
    sha256,
    write_atomic,
    write_json,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_atomic(path, fails)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_missing_inside_a_folder_is_no_place_that_cannot_be_written(tmp_path):
    """A file of a run that is gone would be our bug, or somebody else's doing."""
    for missing in (tmp_path / "run" / "x", tmp_path / "x", tmp_path / ".other.abcdefgh"):
        with pytest.raises(FileNotFoundError), explained(tmp_path / "run"):
            missing.read_bytes()
    for missing in (tmp_path / "run", tmp_path / ".run.abcdefgh"):
        with pytest.raises(RunError, match=r"run: no file can be made there\."), explained(tmp_path / "run"):
            missing.read_bytes()


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "b"
    with new_folder(target) as folder:
        (folder / "x").write_text("1")
    with pytest.raises(ValueError, match="stop"), new_folder(target) as folder:
        (folder / "x").write_text("2")
        raise ValueError("stop")
    assert (target / "x").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_link_stays_one_and_its_folder_is_replaced(tmp_path):
    """Also when it was killed in between, and when the link leads nowhere yet."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "b", target_is_directory=True)
    for text in ("1", "2"):
        with new_folder(link) as folder:
            (folder / "x").write_text(text)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "b" / "x").read_text() == "2"
    (tmp_path / "disk" / "b").rename(tmp_path / "disk" / ".b.old")
    put_back(link)
    assert (link / "x").read_text() == "2"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "disk", "link", "x"]


def test_the_working_folder_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", "..", str(tmp_path)):
        with pytest.raises(RunError, match="holds the folder that this was started in"), new_folder(Path(place)):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


def test_a_replacement_killed_between_its_renames_is_undone(tmp_path, monkeypatch):
    target = tmp_path / "b"
    with new_folder(target) as folder:
        (folder / "x").write_text("1")
    rename, calls = Path.replace, []

    def killed(self, other):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt), new_folder(target):
        pass
    monkeypatch.undo()
    assert not target.exists()
    put_back(target)
    assert (target / "x").read_text() == "1"
    put_back(target)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_whose_removal_is_killed_is_gone_all_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "step_1"
    folder.mkdir()
    for name in "xyz":
        (folder / name).touch()
    remove = os.unlink

    def killed(path, **where):
        if not (folder / "y").exists() or path == "y":
            raise KeyboardInterrupt
        remove(path, **where)

    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    monkeypatch.undo()
    assert not folder.exists()
    assert clear_leftovers(tmp_path, "step_*") == []  # nothing that was unfinished
    assert not list(tmp_path.iterdir())
    remove_folder(folder)  # nothing to do


def test_leftovers_of_killed_writers_are_cleared_and_nothing_else(tmp_path):
    """A set-aside folder comes back where its successor is missing, else goes."""
    for name in ("b", ".b.old", ".b.12345678", ".a.old", ".c.old", ".other.settings"):
        (tmp_path / name).mkdir()
    (tmp_path / ".x.json.a_b_c_d_").touch()
    clear_leftovers(tmp_path, "a", "b", "*.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.old", ".other.settings", "a", "b"]


def test_lines_survive_a_cut_off_tail(tmp_path):
    path = tmp_path / "m.jsonl"
    append_line(path, {"a": 1, "b": float("nan")})
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert read_lines(path) == [{"a": 1, "b": None}]
    append_line(path, {"a": 3})
    append_line(path, {"a": 4})
    assert read_lines(path) == [{"a": 1, "b": None}, {"a": 3}, {"a": 4}]
    assert path.read_bytes().endswith(b'"b"\n{"a": 3}\n{"a": 4}\n')


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": [float("inf"), 1.0]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1.0]}


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(RunError, match="a file stands where a folder is needed"):
        write_json(tmp_path / "f" / "x.json", {})


def test_sha256(tmp_path):
    (tmp_path / "e").write_bytes(b"")
    assert sha256(tmp_path / "e") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
