"""The task ``retrieval``: what is relevant, what does not count, and what is left out; whole scores by slow loops and by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.baseline import thumbnail
from dinoforge.evaluate.copies import CopiesConfig
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.gallery import same
from dinoforge.evaluate.retrieval import GROUPS, RetrievalConfig, judged
from dinoforge.evaluate.table import EVALUATIONS
from given import Listed, TableEyes, noise

GROCERY = Path("../shared/data/grocery_store")
measure = EVALUATIONS["retrieval"].measure


def scores(eyes, sides, **settings):
    return {score.name: score for score in measure(eyes, sides, RetrievalConfig(**settings))}


def slow_order(query, gallery):
    cosines = [float(torch.cosine_similarity(query, image, dim=0)) for image in gallery]
    return sorted(range(len(gallery)), key=lambda row: -cosines[row])


def slow_map(queries, gallery, find, skip, trapezoid):
    """The mean over queries, image after image; ``find`` and ``skip`` are sets of gallery rows."""
    found = []
    for query, wanted, ignored in zip(queries, find, skip, strict=True):
        if not wanted:
            continue
        ap, hits, place, before = 0.0, 0, 0, 1.0
        for image in slow_order(query, gallery):
            if image in ignored:
                continue
            place += 1
            hits += image in wanted
            if image in wanted:
                ap += (hits / place + before) / 2 if trapezoid else hits / place
            before = hits / place
        found.append(ap / len(wanted))
    return sum(found) / len(found), len(found)


@pytest.mark.parametrize("seed", range(2))
def test_groups_leave_the_query_out(seed):
    groups = np.random.default_rng(seed).integers(-1, 6, 24)
    features = noise(24, 4, seed=seed)
    source = Listed("mem", 24, group=groups)
    found = scores(TableEyes({"mem": features}), Sides(source, source, itself=True))
    find = [{row for row in range(24) if row != own and groups[row] == groups[own] >= 0} for own in range(24)]
    want, count = slow_map(features, features, find, [{own} for own in range(24)], trapezoid=False)
    assert found["mAP"].value == pytest.approx(want)
    assert found["mAP"].n == count
    assert f"{24 - count} queries with nothing to find left out" in found["mAP"].protocol
    first = [
        next(row for row in slow_order(features[own], features) if row != own) in find[own]
        for own in range(24)
        if find[own]
    ]
    assert found["recall_at_1"].value == pytest.approx(np.mean(first))
    low, high = found["mAP"].interval
    assert low < want < high


def test_a_query_that_is_in_the_gallery_too_is_found_there():
    """Two sides are two sets of images, even where one picture is in both."""
    features = noise(4, 8)
    sides = Sides(Listed("g", 4, group=[0, 1, 2, 3]), Listed("q", 4, group=[0, 1, 2, 3]))
    found = scores(TableEyes({"g": features, "q": features}), sides)
    assert (found["mAP"].value, found["recall_at_1"].value) == (1, 1)


def lists(find):
    return ["\n".join(f"g/{row}" for row in sorted(some)) for some in find]


@pytest.mark.parametrize("seed", range(2))
def test_the_revisited_settings(seed):
    rng = np.random.default_rng(seed)
    grade = rng.integers(0, 8, (7, 40))  # 1 easy, 2 hard, 3 junk
    grade[0][grade[0] == 2] = 0  # nothing hard
    grade[1][grade[1] < 3] = 3  # nothing at all
    sets = [[set(np.flatnonzero(line == number).tolist()) for line in grade] for number in (1, 2, 3)]
    easy, hard, junk = sets
    queries, gallery = noise(7, 5, seed=seed), noise(40, 5, seed=seed + 9)
    asked = Listed("q", 7, easy=lists(easy), hard=lists(hard), junk=lists(junk))
    found = scores(TableEyes({"g": gallery, "q": queries}), Sides(Listed("g", 40), asked))
    both = [one | other for one, other in zip(easy, hard, strict=True)]
    for name, find, skip in (
        ("easy", easy, [one | other for one, other in zip(hard, junk, strict=True)]),
        ("medium", both, junk),
        ("hard", hard, [one | other for one, other in zip(easy, junk, strict=True)]),
    ):
        want, count = slow_map(queries, gallery, find, skip, trapezoid=True)
        assert found[f"mAP_{name}"].value == pytest.approx(want)
        assert found[f"mAP_{name}"].n == count == (5 if name == "hard" else 6)
        assert 0 < found[f"mP_at_10_{name}"].value <= 1


def test_lists_that_do_not_fit_are_refused():
    gallery = Listed("g", 3)

    def of(**columns):
        return scores(TableEyes({"g": noise(3, 2), "q": noise(1, 2)}), Sides(gallery, Listed("q", 1, **columns)))

    with pytest.raises(DataError, match=r"query q/0 names 'x' as hard, which is not in g\."):
        of(easy=["g/1"], hard=["x"], junk=[""])
    with pytest.raises(DataError, match="query q/0 names 'g/1' as junk and as something else"):
        of(easy=["g/1"], hard=[""], junk=["g/1"])
    with pytest.raises(DataError, match=r"q has no groups; .* or its queries columns easy, hard and junk"):
        of(easy=["g/1"], hard=[""])
    with pytest.raises(DataError, match="no usable query of q has a usable image to find"):
        of(easy=[""], hard=[""], junk=["g/1\ng/2"])


def test_lists_may_stand_in_any_table(tmp_path):
    columns = {"id": ["q"], "image": [b""], "easy": ["a\nb"], "hard": [None], "junk": ["c"], "copy_of": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "query.parquet")
    found = open_source(str(tmp_path / "query.parquet")).columns
    assert [found[name].tolist() for name in ("easy", "hard", "junk", "copy_of")] == [["a\nb"], [""], ["c"], ["a"]]


def test_a_perfect_backbone_scores_one_and_a_constant_one_chance():
    """By hand: where each of 12 queries has one of 12 images to find, a fixed order has it at every place once, so that
    mAP = (1 + 1/2 + ... + 1/12) / 12 and one query in 12 has it first; the trapezoidal AP of places after the first is half."""
    names = [f"g/{row}" for row in range(12)]
    gallery = Listed("g", 12, group=np.arange(12))
    grouped, listed = (
        Listed("q", 12, group=np.arange(12)), Listed("q", 12, easy=names, hard=[""] * 12, junk=[""] * 12)
    )  # fmt: skip
    perfect, constant = (TableEyes({"g": table, "q": table}) for table in (torch.eye(12), torch.ones(12, 5)))
    for asked, name in ((grouped, "mAP"), (grouped, "recall_at_1"), (listed, "mAP_easy"), (listed, "mAP_medium")):
        assert scores(perfect, Sides(gallery, asked))[name].value == 1
    chance = sum(1 / place for place in range(1, 13)) / 12
    found = scores(constant, Sides(gallery, grouped))
    assert found["mAP"].value == pytest.approx(chance)
    assert found["recall_at_1"].value == pytest.approx(1 / 12)
    assert scores(constant, Sides(gallery, listed))["mAP_easy"].value == pytest.approx((chance + 1 / 12) / 2)


def test_sources_that_say_nothing_are_refused():
    eyes, plain = TableEyes({}), Listed("q", 3)
    with pytest.raises(
        DataError, match=r"q has no groups; its images take a column group .* or its queries columns easy"
    ):
        scores(eyes, Sides(plain, plain, itself=True))
    unknown = Listed("q", 3, group=[-1, -1, -1])
    with pytest.raises(DataError, match="q has no groups"):
        scores(eyes, Sides(Listed("g", 2, group=[0, 1]), unknown))
    ones = Listed("q", 3, group=[0, 1, 2])
    with pytest.raises(DataError, match="no image of q shares its group with another image; nothing can be found"):
        scores(eyes, Sides(ones, ones, itself=True))
    with pytest.raises(DataError, match="no image of q shares its group with an image of g;"):
        scores(eyes, Sides(Listed("g", 2, group=[5, 6]), ones))
    assert eyes.views == []  # before any image is looked at


def test_broken_images_are_neither_asked_nor_found():
    features = noise(10, 4)
    source = Listed("mem", 10, group=[0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    kept = [0, 1, 2, 4, 5, 6, 7, 8]
    found = scores(TableEyes({"mem": features}, gone={"mem": [3, 9]}), Sides(source, source, itself=True))
    rest = source.select(np.asarray(kept))
    want = scores(TableEyes({"mem": features[kept]}), Sides(rest, rest, itself=True))
    assert found["mAP"].value == pytest.approx(want["mAP"].value)
    gone = TableEyes({"mem": features}, gone={"mem": [1, 2, 4, 5, 7, 8, 9]})
    with pytest.raises(DataError, match="no usable query of mem has a usable image to find"):
        scores(gone, Sides(source, source, itself=True))


def test_distractors_add_gap():
    """By hand, k = 1: sure 0.9 right, 0.8 a distractor, 0.6 right, 0.5 wrong, of three with an answer."""
    gallery = torch.eye(4)

    def at(cosine, row):
        vector = torch.zeros(5)
        vector[row], vector[4] = cosine, (1 - cosine**2) ** 0.5
        return vector

    queries = torch.stack([at(0.9, 0), at(0.8, 1), at(0.6, 2), at(0.5, 3)])
    sides = Sides(Listed("g", 4, group=[0, 1, 2, 3]), Listed("q", 4, group=[0, -1, 2, 0]))
    eyes = TableEyes({"g": torch.nn.functional.pad(gallery, (0, 1)), "q": queries})
    found = scores(eyes, sides, neighbours=1)
    assert found["GAP"].value == pytest.approx((1 + 2 / 3) / 3)
    assert found["GAP_without_distractors"].value == pytest.approx(2 / 3)
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert [found[name].n for name in ("GAP", "GAP_without_distractors", "accuracy", "mAP")] == [4, 3, 3, 3]
    with pytest.raises(ConfigError, match=r"retrieval\.neighbours=1 has no effect: no query is a distractor"):
        scores(eyes, Sides(sides.known, Listed("q", 4, group=[0, 1, 2, 3])), neighbours=1)


def test_queries_at_once_change_nothing(monkeypatch):
    """All three ways, and copies, with two queries at a time."""
    eyes = TableEyes({"g": noise(30, 4), "q": noise(25, 4, seed=1), "b": noise(5, 4, seed=3)})
    monkeypatch.setattr("dinoforge.evaluate.copies.open_source", lambda address: Listed(address, 5))
    names = [f"g/{row}" for row in range(25)]
    tasks = [
        (measure, RetrievalConfig(), {"group": [-1, *range(1, 25)]}),
        (measure, RetrievalConfig(), {"easy": names, "hard": [*names[1:], ""], "junk": [*names[2:], "", ""]}),
        (EVALUATIONS["copies"].measure, CopiesConfig(background="b", normalise=True), {"copy_of": names}),
    ]

    def found():
        gallery = Listed("g", 30, group=range(30))
        sides = [(run, how, Sides(gallery, Listed("q", 25, **known))) for run, how, known in tasks]
        every = [score for run, how, pair in sides for score in run(eyes, pair, how)]
        return [score.value for score in every], [score.interval or (0, 0) for score in every]

    want = found()
    monkeypatch.setattr("dinoforge.evaluate.ranking._PAIRS_AT_ONCE", 60)
    for got, before in zip(found(), want, strict=True):
        np.testing.assert_allclose(got, before)
    assert len(set(want[0])) > 6


def test_every_query_has_its_own_measures():
    """Those that are not ranked have none, and the others keep their places."""
    source, queries = Listed("g", 4, group=range(4)), Listed("q", 3, group=[-1, 1, 2])
    eyes = TableEyes({"g": torch.eye(4), "q": torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]])})
    known, asked = eyes.look(source), eyes.look(queries)
    grades = same(queries.columns["group"], source.columns["group"], itself=False)
    some = np.asarray([False, True, True])
    (found,) = judged(known, asked, grades, GROUPS, trapezoid=False, some=some)
    np.testing.assert_array_equal(found, [[np.nan, 1, 0.5], [np.nan, 1, 0.5], [np.nan, 1, 0]])


@pytest.mark.skipif(not GROCERY.exists(), reason="no real images beside the repository")
def test_products_by_their_colours_are_found_above_chance():
    """Thumbnails of the clean pictures against those of the shop; the label is what they share."""
    sides = [open_source(f"{GROCERY}?split={split}&group=label") for split in ("test", "iconic")]
    sides = [side.select(np.flatnonzero(side.columns["group"] < 12)) for side in sides]
    tables = {side.address: torch.stack([thumbnail(side.pixels(row)) for row in range(len(side))]) for side in sides}
    found = scores(TableEyes(tables), Sides(*sides))
    assert found["mAP"].n == 12
    assert 0.1 < found["mAP"].value < 0.6
