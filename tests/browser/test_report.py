"""The report in a real browser: drawn, silent, alone, and no wider than the window."""

import json

import numpy as np
import pytest

from dinoforge.report.account import read_account
from dinoforge.report.page import page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run with a film, names that want to be markup, and one that is too long for any window."""
    folder = tmp_path_factory.mktemp("run") / ("a run with a long name " + "x" * 90)
    (folder / "film").mkdir(parents=True)
    rng = np.random.default_rng(0)
    hostile = '"><img src="http://127.0.0.1:9/x.png" onerror=alert(1)>'
    np.savez(folder / "film" / "images.npz", thumbnails=rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8), queries=8,
             ids=np.asarray([hostile] * 20), labels=np.asarray([hostile, "moth"] * 10))  # fmt: skip
    for step in (0, 10, 20, 30, 40, 50, 60):
        np.savez(folder / "film" / f"step_{step:09d}.npz", patches=rng.normal(size=(8, 8, 8, 16)).astype(np.float16),
                 attention=rng.random((8, 8, 8), dtype=np.float32), nearest=np.tile(np.arange(8, 13), (8, 1)))  # fmt: skip
    rows = [
        {"step": step, "losses": {"total": 9 - step / 10}, "knn": 0.2 + step / 100, "rank": 9.0} for step in range(61)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "quarantine.jsonl").write_text(json.dumps({"id": "long" * 60, "reason": hostile}) + "\n")
    (folder / "config.yaml").write_text(f"recipe: vit_micro.toy\nnote: {'y' * 400}\n")
    (folder / "report.html").write_text(page(read_account(folder)), encoding="utf-8")
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_drawn_silent_alone_and_narrow_enough(browser, report, opened, logged, width, scheme):
    opened(report.as_uri(), width=width, scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
    sizes = browser.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert len(sizes) >= 8 * (1 + 6) * 2
    assert min(sizes) > 0
    heights = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(heights) >= 3
    assert min(heights) > 80

    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    film, inside = browser.execute_script(
        "const box = document.querySelector('.scroll'); return [box.clientWidth, box.scrollWidth]"
    )
    assert film <= width
    if width == 390:
        assert inside > film  # the strip scrolls in a box of its own

    seen = logged()
    assert seen.complaints == []
    assert {*seen.asked} == {report.as_uri()}
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [url for url in fetched if not url.startswith("data:")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser, report, opened, scheme):
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3) for every text against the page."""
    opened(report.as_uri(), width=1280, scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
    colours = browser.execute_script(
        """const found = new Set();
        for (const node of document.querySelectorAll('h1,h2,h3,p,td,th,dt,dd,figcaption,summary,.mark,.label,svg text')) {
          const style = getComputedStyle(node);
          found.add(node.ownerSVGElement ? style.fill : style.color);
        }
        return [getComputedStyle(document.body).backgroundColor, ...found];"""
    )
    ground, *texts = [_luminance(colour) for colour in colours]
    assert len(texts) >= 2
    for text in texts:
        light, dark = max(text, ground), min(text, ground)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
