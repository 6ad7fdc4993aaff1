"""The page of predictions: shares worked out by hand, names and addresses escaped."""

import re

import pytest

from dinoforge.report import predictions
from dinoforge.report.predictions import predictions_page

SKY, HOSTILE = "sky", "<b onclick='x'>&"
LEGEND = {
    "kind": "segmentation",
    "classes": [
        {"label": 0, "name": SKY, "colour": [1, 2, 255]},
        {"label": 1, "name": HOSTILE, "colour": [200, 0, 0]},
        {"label": 2, "name": "never", "colour": [0, 0, 0]},
    ],
}


def segmented(number, classes):
    picture = f"pictures/a b#{number}?.png"
    return {"id": f"a b#{number}?", "classes": classes, "confidence": 0.5, "files": {"picture": picture}}


def cells(html):
    return re.findall(r"<bdi>(.*?)</bdi></th><td class=\"number\">(.*?)</td>", html)


def test_shares_of_classes_by_hand():
    """Of two pictures the first is sky alone, of the second three quarters are the other: 5/8 and 3/8."""
    rows = [segmented(0, {SKY: 1.0}), segmented(1, {HOSTILE: 0.75, SKY: 0.25})]
    html = predictions_page(LEGEND, rows, name="photos", quarantined=3)
    assert cells(html) == [(SKY, "0.625"), ("&lt;b onclick=&#39;x&#39;&gt;&amp;", "0.375")]
    assert "#0102ff" in html
    assert HOSTILE not in html
    assert re.findall(r'<img src="(.*?)"', html) == ["pictures/a%20b%230%3F.png", "pictures/a%20b%231%3F.png"]
    assert "<dd>3</dd>" in html


def test_the_least_sure_come_first_and_no_more_than_are_shown(monkeypatch):
    monkeypatch.setattr(predictions, "SHOWN", 2)
    rows = [{"id": name, "label": 0, "name": SKY, "probability": p} for name, p in (("x", 0.9), ("y", 0.3), ("z", 0.6))]
    html = predictions_page(LEGEND | {"kind": "classification"}, rows, name="photos", quarantined=0)
    assert re.findall(r'<th scope="row"><bdi>(.*?)</bdi></th><td><bdi>', html) == ["y", "z"]
    assert "2 of 3; predictions.jsonl has all." in html
    assert cells(html) == [(SKY, "1.000")]
    assert "<img" not in html


@pytest.mark.parametrize("unit", ["metres", None])
def test_depth_says_how_far(unit):
    row = {"id": "x", "files": {"picture": "pictures/x.png"}, "least": 0.5, "median": 2.25, "largest": 10.0}
    html = predictions_page({"kind": "depth", "range": [0, 10], "unit": unit}, [row], name="photos", quarantined=0)
    assert f"0.5 to 10 {unit or ''}, median 2.25" in html
    assert "Classes" not in html
