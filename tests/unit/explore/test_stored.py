"""What is stored is whole, replaced under the feet of nobody, and made by one process at a time."""

import errno

import numpy as np
import pytest

from dinoforge.base.errors import RunError
from dinoforge.base.lock import locked
from dinoforge.explore.stored import read_or_make, see_to


def test_a_file_that_is_mapped_stays_as_it_was(tmp_path):
    """A file cut short under a mapping kills the process that reads it; one that is replaced does not."""
    first = read_or_make(tmp_path / "a.npy", "one", lambda: np.arange(5))
    before = (tmp_path / "a.npy").stat().st_ino
    second = read_or_make(tmp_path / "a.npy", "two", lambda: np.zeros(2))
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert second.tolist() == [0, 0]
    assert (tmp_path / "a.npy").stat().st_ino != before


def test_a_full_disk_leaves_nothing_and_is_told_in_one_line(tmp_path):
    def full(file):
        file.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="no space left"):
        see_to(tmp_path / "a.npy", "one", lambda: full)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_another_makes_is_not_made_beside_it(tmp_path):
    read_or_make(tmp_path / "a.npy", "one", lambda: np.arange(5))
    with locked(tmp_path):
        assert read_or_make(tmp_path / "a.npy", "one", lambda: np.zeros(2)).tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(RunError, match="in use"):
            read_or_make(tmp_path / "a.npy", "two", lambda: np.zeros(2))
