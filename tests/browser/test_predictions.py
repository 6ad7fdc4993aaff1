"""The page of predictions in a real browser: pictures from its own folder, nothing else, and no wider than the window."""

import numpy as np
import pytest
from PIL import Image

from dinoforge.report.predictions import predictions_page

pytestmark = pytest.mark.browser

HOSTILE = '"><img src="http://127.0.0.1:9/x.png" onerror=alert(1)>'
NAMES = ("a b#0?.png", "long" * 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("predicted")
    (place / "pictures").mkdir()
    rows = []
    for name in NAMES:
        Image.fromarray(np.full((30, 700, 3), 99, np.uint8)).save(place / "pictures" / f"{name}.png")
        rows.append({"id": HOSTILE + name, "classes": {HOSTILE: 1.0}, "files": {"picture": f"pictures/{name}.png"}})
    legend = {"kind": "segmentation", "classes": [{"label": 0, "name": HOSTILE, "colour": [200, 0, 0]}]}
    (place / "index.html").write_text(predictions_page(legend, rows, name=HOSTILE, quarantined=0), encoding="utf-8")
    return place


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_drawn_silent_alone_and_narrow_enough(browser, folder, opened, logged, width, scheme):
    opened((folder / "index.html").as_uri(), width=width, scheme=scheme)
    browser.execute_script("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    sizes = browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth))).then(done)"
    )
    assert sizes == [700, 700]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    seen = logged()
    assert seen.complaints == []
    asked = {(folder / "pictures" / f"{name}.png").as_uri() for name in NAMES}
    assert {*seen.asked} == {(folder / "index.html").as_uri()} | asked
