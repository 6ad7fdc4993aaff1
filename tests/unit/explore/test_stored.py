"""What is stored is whole, replaced under the feet of nobody, and made by one process at a time."""

import errno

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, RunError
from dinoforge.base.lock import locked
from dinoforge.explore import stored
from dinoforge.explore.stored import NAMES, read_or_make, read_or_make_part, refuse_strange, see_to


def test_a_file_that_is_mapped_stays_as_it_was(tmp_path):
    """A file cut short under a mapping kills the process that reads it; one that is replaced does not."""
    first = read_or_make(tmp_path / "a.npy", "one", lambda: np.arange(5))
    before = (tmp_path / "a.npy").stat().st_ino
    second = read_or_make(tmp_path / "a.npy", "two", lambda: np.zeros(2))
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert second.tolist() == [0, 0]
    assert (tmp_path / "a.npy").stat().st_ino != before


def test_a_full_disk_leaves_no_file_and_is_told_in_one_line(tmp_path):
    def full(file):
        file.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="no space left"):
        see_to(tmp_path / "a.npy", "one", lambda: full)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.npy.of"]
    assert "unfinished" in (tmp_path / "a.npy.of").read_text()


def test_what_another_makes_is_not_made_beside_it(tmp_path):
    read_or_make(tmp_path / "a.npy", "one", lambda: np.arange(5))
    with locked(tmp_path):
        assert read_or_make(tmp_path / "a.npy", "one", lambda: np.zeros(2)).tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(RunError, match="in use"):
            read_or_make(tmp_path / "a.npy", "two", lambda: np.zeros(2))


@pytest.mark.parametrize("name", [*NAMES, "copies.npz.parts/holiday.jpg", "copies.npz.parts"])
def test_files_of_mine_are_not_replaced(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name} exists and was not written by explore; give another folder\.$"):
        refuse_strange(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("written", range(4))
def test_what_a_killed_process_left_is_gone_on_with(tmp_path, monkeypatch, written):
    """Killed before any of the notes, of a part or of the whole: what is there is not taken for somebody else's."""
    left = iter([True] * written)

    def writes(path, text):
        if not next(left, False):
            raise KeyboardInterrupt
        path.write_text(text)

    def made():
        read_or_make_part(tmp_path / "copies.npz", 0, "one", lambda: {"a": np.arange(5)})
        return read_or_make(tmp_path / "copies.npz", "one", lambda: np.arange(5)).tolist()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stored, "write_text", writes)
        made()
    refuse_strange(tmp_path)
    assert made() == [0, 1, 2, 3, 4]
