"""What numbers of depth maps are taken for."""

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.depth_units import DISPARITY, METRES, assumes_millimetres, known_unit, measured

NAN, INF = np.nan, np.inf


def test_sixteen_bits_are_millimetres_and_zero_is_no_reading():
    values = np.asarray([[0, 1, 65535]], np.uint16)
    found = measured(values, "", name="x")
    assert found.dtype == np.float32
    assert found[0].tolist() == pytest.approx([0, 0.001, 65.535])
    assert assumes_millimetres(values)
    assert measured(np.asarray([[-5, 250]], np.int16), "", name="x")[0].tolist() == pytest.approx([0, 0.25])


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, np.int32])
def test_other_numbers_need_a_unit(kind):
    values = np.ones((2, 3), kind)
    with pytest.raises(DataError, match=r"a/1\.png has depth as .* without a unit") as error:
        measured(values, "", name="a/1.png")
    assert len(str(error.value).splitlines()) == 1
    assert measured(values, "centimetres", name="a/1.png") == pytest.approx(np.full((2, 3), 0.01))


@pytest.mark.parametrize(("unit", "metres"), [*METRES.items(), ("0.00390625", 1 / 256), (DISPARITY, 1.0), ("2", 2.0)])
def test_a_unit_is_so_many_metres(unit, metres):
    values = np.asarray([[100.0, 0.0, -1.0, NAN, INF, -INF]])
    assert measured(values, unit, name="x")[0].tolist() == pytest.approx([100 * metres, 0, 0, 0, 0, 0])
    assert known_unit(unit) == unit


@pytest.mark.parametrize("unit", ["feet", "0", "-3", "nan", "inf", "1e400", "Metres"])
def test_an_unknown_unit_is_refused(unit):
    with pytest.raises(ConfigError, match=r"depth_unit takes metres"):
        known_unit(unit)
    with pytest.raises(ConfigError, match=r"depth_unit takes metres"):
        measured(np.ones((1, 1)), unit, name="x")
