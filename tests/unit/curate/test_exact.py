"""Of equal images the first stays."""

import numpy as np
import pyarrow as pa

from dinoforge.curate.exact import copied


def test_of_equal_images_the_first_stays():
    gone = copied(pa.array(["1", "2", "1", "1", "2"]), np.asarray([10, 11, 14, 20, 21]))
    assert gone.row.tolist() == [14, 20, 21]
    assert gone.against.tolist() == [10, 10, 11]
    assert set(gone.reason.tolist()) == {"exact copy"}
    assert gone.similarity.tolist() == [1, 1, 1]


def test_no_image_and_no_copy():
    assert len(copied(pa.array([], pa.string()), np.zeros(0, np.int64))) == 0
    assert len(copied(pa.array(["1", "2"]), np.arange(2))) == 0
