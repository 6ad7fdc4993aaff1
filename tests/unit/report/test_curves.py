"""Curves: binning keeps means, SVG is whole, takes the page's colours and asks for nothing."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dinoforge.report.curves import Chart, Line, described, svg, thinned


def line(values, name="loss"):
    return Line(name, np.arange(len(values), dtype=np.float64), np.asarray(values, dtype=np.float64))


def test_thinning_keeps_the_mean_of_equal_bins():
    values = np.random.default_rng(0).normal(size=4000)
    few = thinned(line(values), points=400)
    np.testing.assert_allclose(few.values, values.reshape(400, 10).mean(1))
    np.testing.assert_allclose(few.steps[:2], [4.5, 14.5])
    assert len(thinned(line(values[:4001]), points=400).values) == 400
    assert thinned(line(values[:5])).values.tolist() == values[:5].tolist()


CHARTS = {
    "plain": Chart("Loss", [line([3.0, 2.0, 1.0])]),
    "one point": Chart("Loss", [line([3.0])]),
    "levels": Chart("k-NN", [line([0.1, 0.5])], levels={"pixels": 0.3}, dots=True, wide=True),
    "logarithmic": Chart("Norms", [line([1e-3, 10.0]), line([2.0, 3.0], "head")], logarithmic=True),
    "logarithmic with a zero": Chart("Norms", [line([0.0, 10.0])], logarithmic=True),
    "hostile": Chart('<script>"&', [line([1.0, 2.0], "$\\frac$ <b>&amp;"), line([1.0, 2.0], "_x")]),
    "equal values": Chart("Loss", [line([2.0, 2.0, 2.0])]),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_sound_svg_of_its_own(name):
    text = str(svg(CHARTS[name], "a1"))
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == described(CHARTS[name])
    assert not re.search(r"#0a0b", text)
    assert "var(--line-0)" in text
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert ids
    assert all(mark.startswith("a1-") for mark in ids)
    links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
    assert all(link.startswith("#a1-") for link in links)
    assert set(re.findall(r"https?://[^\"]*", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_a_chart_is_drawn_the_same_each_time():
    assert svg(CHARTS["levels"], "a") == svg(CHARTS["levels"], "a")


def test_in_words():
    assert described(CHARTS["levels"]) == "k-NN: loss from 0.1 to 0.5 over steps 0 to 1; pixels at 0.300."
