"""The page as a text: whole, escaped, self-contained, whatever the run was."""

import base64
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from inspect import signature
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dinoforge.features.parts import BACKGROUND
from dinoforge.report.account import read_account
from dinoforge.report.page import page
from dinoforge.report.strip import neighbours, recoloured, strip
from dinoforge.verbs.explore import explore

HOSTILE = (
    """'"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\udcff\u202e&amp;</svg></style>$\\frac$"""
)


class Reader(HTMLParser):
    """Tags that are open, attributes and text of a page."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def check(html):
    """What every page keeps to; its reader."""
    reader = read(html)
    assert not [tag for tag, _ in reader.tags if tag in {"script", "iframe", "object", "embed", "base", "form"}]
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
        if tag == "img":
            assert attributes.get("alt")
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    return reader


def thumbnail(side=20):
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_finished_run_has_everything(made_run):
    folder = made_run()
    (folder / "plan.json").write_text(
        json.dumps(
            {
                "steps": 40,
                "passes": 13.3,
                "batch": 16,
                "memory_bytes": 3 * 2**30,
                "seconds": 75,
                "images_per_second": 30,
                "warnings": ["few images"],
            }
        )
    )
    (folder / "curation.json").write_text(json.dumps({
        "pool": 5200, "kept": 48, "dropped": {"exact copy": 12, "unreadable": 3},
        "examples": [{"id": "a.png", "reason": "exact copy", "against": "b.png", "thumbnail": thumbnail()}],
    }))  # fmt: skip
    (folder / "quarantine.jsonl").write_text(json.dumps({"id": "cut.jpg", "reason": "the file is empty"}) + "\n")
    (folder / "baselines.json").write_text(json.dumps({"knn_pixels": 0.3}))
    html = page(read_account(folder))
    reader = check(html)
    text = " ".join(" ".join(reader.texts).split())
    for words in ("5,200", "exact copy", "cut.jpg", "the file is empty", "3.00 GiB", "1 min 15 s", "few images", "pixels",
                  "step 20", "Nearest neighbours", "healthy", "d" * 16, "toy://species?images=60", "2.13.0"):  # fmt: skip
        assert words in text, words
    maps = [attributes for tag, attributes in reader.tags if tag == "img" and attributes.get("class") == "map"]
    assert len(maps) == 8 * 3 * 2
    assert len([1 for tag, attributes in reader.tags if tag == "svg"]) >= 6
    assert len(html.encode()) < 2**20


def test_names_and_labels_cannot_become_markup(made_run):
    hostile = HOSTILE
    folder = made_run(with_film=False)
    made_run.film(folder / "film")
    with np.load(folder / "film" / "images.npz") as file:
        cast = dict(file)
    cast["ids"], cast["labels"] = np.asarray([hostile] * 12), np.asarray([hostile] * 12)
    np.savez(folder / "film" / "images.npz", **cast)
    rows = made_run.metrics()
    rows[-1]["losses"][hostile] = rows[-1]["gradient_norms"][hostile] = 1.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "quarantine.jsonl").write_text(json.dumps({"id": hostile, "reason": hostile}) + "\n")
    (folder / "plan.json").write_text(json.dumps({"warnings": [hostile], "steps": hostile, "seconds": hostile}))
    (folder / "summary.json").write_text(json.dumps({"events": [hostile, {hostile: hostile}]}))
    (folder / "events.jsonl").write_text(
        json.dumps({"sentence": hostile, "step": hostile, "kind": [hostile]}) + "\n[7]\n"
    )
    (folder / "run.json").write_text(json.dumps({"fingerprint": hostile, "images": hostile, "versions": {hostile: 1}}))
    (folder / "config.yaml").write_text(json.dumps({"recipe": hostile, "backbone": hostile, "plan": hostile}))
    (folder / "curation.json").write_text(json.dumps({
        "pool": hostile, "kept": [1], "dropped": {hostile: hostile},
        "examples": [{"id": hostile, "reason": hostile, "against": hostile, "thumbnail": hostile}, hostile, None],
    }))  # fmt: skip
    html = page(read_account(folder))
    check(html)
    assert "49" not in re.sub(r"data:[^\"]*|<svg.*?</svg>|<style>.*?</style>", "", html, flags=re.DOTALL)
    html.encode("utf-8")


@pytest.mark.parametrize(
    "encoded", ["", None, 7, "not base64", base64.b64encode(b"<svg onload=alert(1)>").decode(), thumbnail(3000)]
)
def test_a_thumbnail_that_is_none_is_left_out(made_run, encoded):
    folder = made_run(with_film=False)
    (folder / "curation.json").write_text(json.dumps({"examples": [{"id": "a", "reason": "b", "thumbnail": encoded}]}))
    reader = check(page(read_account(folder)))
    assert not [tag for tag, _ in reader.tags if tag == "img"]


def test_runs_that_did_not_get_far(made_run):
    for name, rows in {"nothing": [], "first": made_run.metrics()[:1], "few": made_run.metrics()[:2]}.items():
        text = page(read_account(made_run(rows=rows, finished=False, with_film=False, name=name)))
        check(text)
        assert "This run kept no film." in text


def test_a_film_of_one_image_and_of_images_all_alike(made_run):
    folder = made_run(with_film=False)
    made_run.film(folder / "film", steps=(0,), images=2, queries=1)
    check(page(read_account(folder)))
    for path in (folder / "film").glob("step_*"):
        np.savez(path, patches=np.ones((1, 4, 4, 8), np.float16), attention=np.zeros((1, 4, 4), np.float32),
                 nearest=np.zeros((1, 0), np.int64))  # fmt: skip
    text = page(read_account(folder))
    check(text)
    assert "Nearest neighbours" not in text


def test_a_long_run_stays_small(made_run):
    rows = [{"step": step, "losses": {f"l{n}": 1.0 / (step + 1) for n in range(5)}} for step in range(5000)]
    folder = made_run(rows=rows)
    made_run.film(folder / "more", steps=range(50))
    (folder / "more").rename(folder / "films")
    assert len(page(read_account(folder))) < 3 * 2**20


def test_at_most_six_columns_with_first_and_last(made_run):
    from dinoforge.report.film import read_film

    folder = made_run(with_film=False)
    made_run.film(folder / "film", steps=range(0, 200, 10))
    _, frames = read_film(folder / "film")
    made = strip(frames)
    assert made.steps[0] == 0
    assert made.steps[-1] == 190
    assert len(made.steps) == len(made.parts) == len(made.attention) == 6


def test_colours_follow_a_part_through_swapped_and_turned_directions():
    """Principal components have neither order nor sign: undoing a swap and a turn gives the map back."""
    rng = np.random.default_rng(0)
    want = rng.integers(60, 200, (2, 4, 4, 3), dtype=np.uint8)
    want[0, 0] = BACKGROUND
    mixed = want[..., [2, 0, 1]].copy()
    mixed[..., 1] = 255 - mixed[..., 1]
    mixed[0, 0] = BACKGROUND
    assert (recoloured(mixed, want) == want).all()
    assert (recoloured(want, want) == want).all()
    flat = np.full((1, 4, 4, 3), BACKGROUND, np.uint8)
    assert (recoloured(flat, flat) == flat).all()


def test_neighbours_of_the_same_class(made_run):
    from dinoforge.report.film import Cast

    cast = Cast(np.zeros((3, 4, 4, 3), np.uint8), np.asarray(["a", "b", "c"]), np.asarray(["x", "y", "x"]), 1)
    ((first, second),) = neighbours(cast, np.asarray([[2, 1]]))
    assert (first.row, first.same, second.same) == (2, True, False)
    plain = Cast(cast.thumbnails, cast.ids, np.asarray(["", "", ""]), 1)
    assert neighbours(plain, np.asarray([[2, 1]]))[0][0].same is None


def test_label_free_scores_are_drawn_where_a_run_has_them(made_run):
    """Runs of earlier versions have none, and say nothing of them."""
    rows = made_run.metrics()
    for row in rows[::20]:
        row |= {"uniformity": -2.0, "smoothness": 0.3} | ({"stability": 0.7} if row["step"] else {})
    words = ("Uniformity", "Smoothness", "Neighbours kept")
    with_them, without = (
        check(page(read_account(made_run(rows=these, name=name)))) for these, name in ((rows, "new"), (None, "old"))
    )
    for reader, there in ((with_them, True), (without, False)):
        text = " ".join(reader.texts)
        assert [word in text for word in words] == [there] * 3
    charts = [len([1 for tag, _ in reader.tags if tag == "svg"]) for reader in (with_them, without)]
    assert charts[0] - charts[1] == 3


def test_it_tells_the_command_that_explores(made_run):
    folder = made_run(with_film=False)
    assert "dinoforge explore" not in page(read_account(folder))
    (folder / "backbone").mkdir()
    (folder / "backbone" / "backbone.json").write_text(json.dumps({"fingerprint": "b" * 16}))
    command = f"dinoforge explore backbone={folder} 'data=toy://species?images=60'"
    text = unescape(page(read_account(folder)))
    assert command in text
    assert f'href="http://127.0.0.1:{signature(explore).parameters["port"].default}/"' in text
