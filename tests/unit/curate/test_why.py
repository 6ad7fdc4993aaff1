import numpy as np
import pytest

from dinoforge.curate.why import NOBODY, Dropped, together


def test_dropped_for_themselves_have_nobody_to_blame():
    found = Dropped.alone(np.asarray([4, 1]), np.asarray(["flat", "noise"]), stage="filters")
    assert found.against.tolist() == [NOBODY, NOBODY]
    assert np.isnan(found.similarity).all()
    assert found.kept(6).tolist() == [0, 2, 3, 5]


def test_together_of_nothing():
    with pytest.raises(ValueError, match="at least one"):
        together([])
