"""Schedules against values worked by hand; whole plans are compared in tests/golden."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoforge.base.schedule import Cosine, Ramp


def test_by_hand():
    schedule = Cosine(start=0.0, peak=1.0, end=0.0, warmup=0.3)
    values = [schedule.at(step, steps=10) for step in range(12)]
    assert values[:4] == [0.0, 0.5, 1.0, 1.0]
    assert values[4] == pytest.approx((1 + math.cos(math.pi / 7)) / 2)
    assert values[10] == values[11] == 0.0


def test_a_ramp_by_hand():
    ramp = Ramp(start=0.04, end=0.07, length=0.4)
    assert [ramp.at(step, steps=10) for step in (0, 3, 4, 99)] == pytest.approx([0.04, 0.07, 0.07, 0.07])


@given(st.floats(0, 0.9), st.integers(1, 500), st.integers(0, 600))
def test_stays_between_its_ends(warmup, steps, step):
    value = Cosine(start=0.0, peak=2.0, end=0.5, warmup=warmup).at(step, steps=steps)
    assert 0.0 <= value <= 2.0
