"""The task ``copies``: whose copy a query is, pairs ranked together, score normalisation and whitening, and the descriptor."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.copies import CopiesConfig, compared, originals
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes
from dinoforge.features.kinds import KINDS
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing
from given import Listed, TableEyes, noise

measure = EVALUATIONS["copies"].measure
NAMES = ("micro_AP", "recall_at_precision_0.90", "mAP")


def scores(eyes, sides, **settings):
    return {score.name: score for score in measure(eyes, sides, CopiesConfig(**settings))}


def world(seed, queries=25, images=30):
    """Copies by noise of some gallery images, and queries that are copies of nothing."""
    rng = np.random.default_rng(seed)
    of = rng.integers(-10, images, queries)
    gallery = noise(images, 6, seed=seed)
    strength = torch.from_numpy(rng.random((queries, 1)) * 2).float()
    made = gallery[torch.from_numpy(np.maximum(of, 0))] + strength * noise(queries, 6, seed=seed + 1)
    made[of < 0] = noise(int((of < 0).sum()), 6, seed=seed + 2)
    return of, made, gallery


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_their_definition(seed):
    of, queries, gallery = world(seed)
    asked = Listed("q", len(of), copy_of=[f"g/{row}" if row >= 0 else "" for row in of])
    found = scores(TableEyes({"q": queries, "g": gallery}), Sides(Listed("g", 30), asked))
    cosine = torch.cosine_similarity(queries[:, None], gallery[None], dim=-1).numpy()
    right = of[:, None] == np.arange(30)
    assert found["micro_AP"].value == pytest.approx(average_precision_score(right.ravel(), cosine.ravel()), abs=1e-6)
    own = [average_precision_score(line, near) for line, near in zip(right, cosine, strict=True) if line.any()]
    assert found["mAP"].value == pytest.approx(np.mean(own), abs=1e-6)
    best = 0.0
    for threshold in cosine.ravel():
        taken = right[cosine >= threshold]
        best = max(best, taken.sum() / right.sum() if taken.mean() >= 0.9 else 0)
    assert found["recall_at_precision_0.90"].value == pytest.approx(best)
    assert (found["micro_AP"].n, found["mAP"].n) == (len(of), len(own))
    assert f"{len(of) - len(own)} queries with no original" in found["micro_AP"].protocol


def test_few_pairs_of_each_query_bound_what_is_found():
    of, queries, gallery = world(5)
    asked = Listed("q", len(of), copy_of=[f"g/{row}" if row >= 0 else "" for row in of])
    eyes, sides = TableEyes({"q": queries, "g": gallery}), Sides(Listed("g", 30), asked)
    found = scores(eyes, sides, pairs=3)
    cosine = torch.cosine_similarity(queries[:, None], gallery[None], dim=-1).numpy()
    right = of[:, None] == np.arange(30)
    near = np.argsort(-cosine, axis=1)[:, :3]
    hit, sure = (np.take_along_axis(table, near, axis=1).ravel() for table in (right, cosine))
    want = average_precision_score(hit, sure) * hit.sum() / right.sum()
    assert found["micro_AP"].value == pytest.approx(want, abs=1e-6)
    assert found["mAP"].value == pytest.approx(scores(eyes, sides)["mAP"].value)


def test_each_image_among_all_others_never_finds_itself():
    groups = np.asarray([0, 0, 0, 1, 1, -1, -1, 2, 2])
    features = torch.sign(noise(9, 4)) / 2  # cosines of these are exact, and one pair's are equal from either side
    source = Listed("mem", 9, group=groups)
    found = scores(TableEyes({"mem": features}), Sides(source, source, itself=True))
    cosine = torch.cosine_similarity(features[:, None], features[None], dim=-1).numpy()
    others = ~np.eye(9, dtype=bool)
    right = (groups[:, None] == groups) & (groups >= 0)
    want = average_precision_score(right[others], cosine[others].round(3))
    assert found["micro_AP"].value == pytest.approx(want, abs=1e-5)


def test_a_perfect_backbone_scores_one_and_a_constant_one_chance():
    """By hand: all pairs are equally sure, so their common precision is the share of right ones, 8 of 10 times 8."""
    sides = Sides(Listed("g", 8), Listed("q", 10, group_name=[f"g/{row}" for row in range(8)] + ["", ""]))
    perfect = TableEyes({"g": torch.eye(8, 9), "q": torch.cat([torch.eye(8, 9), torch.eye(9)[8:].repeat(2, 1)])})
    assert [scores(perfect, sides)[name].value for name in NAMES] == [1, 1, 1]
    found = scores(TableEyes({"g": torch.ones(8, 3), "q": torch.ones(10, 3)}), sides)
    assert found["micro_AP"].value == pytest.approx(8 / 80)
    assert found["recall_at_precision_0.90"].value == 0
    assert found["mAP"].value == pytest.approx(sum(1 / place for place in range(1, 9)) / 8)


def test_whose_copy_a_query_is():
    gallery = Listed("g", 3, group=[4, 5, 6])

    def equal(known, asked, itself=False):
        mine, theirs = originals(Sides(known, asked, itself))
        return ((mine[:, None] == theirs) & (mine[:, None] >= 0)).tolist()

    by_id = equal(gallery, Listed("q", 2, copy_of=["g/2", ""]))  # before any group
    assert by_id == [[False, False, True], [False] * 3]
    named = Listed("g", 2, copy_of=["g/2", ""])  # ids that occur on both sides name nobody
    assert equal(gallery, named) == [[False, False, True], [False] * 3]
    assert equal(gallery, Listed("q", 2, group=[5, -1], copy_of=["", ""])) == [[False, True, False], [False] * 3]
    assert equal(Listed("g", 3), Listed("q", 2, group_name=["", "g/0"], group=[-1, 0])) == [
        [False] * 3,
        [True, False, False],
    ]
    toy = Listed("t", 4, copy_of=["", "t/0", "t/0", ""])
    among = np.asarray(equal(toy, toy, itself=True))
    assert among[:3, :3].all()  # two copies of one picture are copies of one another
    assert among.sum() == 10
    with pytest.raises(
        DataError, match=r"q has no groups; .* or its queries a column copy_of with the id of the original"
    ):
        originals(Sides(gallery, Listed("q", 2)))
    with pytest.raises(DataError, match="no image of q is a copy of one of g, by its columns"):
        originals(Sides(gallery, Listed("q", 1, copy_of=["h/2"])))


def slow_compared(queries, gallery, background, whiten, normalise):
    """SSCD's: centre, rotate, divide by the spread, length 1; then cosines less the mean of the 3 nearest of the background."""
    sides = [F.normalize(side.double()).numpy() for side in (queries, gallery, background)]
    if whiten:
        mean = sides[2].mean(axis=0)
        _, spread, turned = np.linalg.svd(sides[2] - mean, full_matrices=False)
        sides = [(side - mean) @ turned.T / spread for side in sides]
        sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    near = np.sort(sides[0] @ sides[2].T, axis=1)[:, -3:].mean(axis=1, keepdims=True)
    return sides[0] @ sides[1].T - (near if normalise else 0)


@pytest.mark.parametrize(("whiten", "normalise"), [(True, False), (False, True), (True, True)])
def test_whitening_and_score_normalisation_equal_their_definition(whiten, normalise):
    tables = noise(7, 5) + 1, noise(9, 5, seed=1) + 1, noise(40, 5, seed=2) * torch.tensor([3, 1, 1, 0.5, 1]) + 1
    config = CopiesConfig(background="b", whiten=whiten, normalise=normalise)
    x, y, bias = compared(*tables, config=config)
    np.testing.assert_allclose((x @ y.T).numpy() - bias[:, None], slow_compared(*tables, whiten, normalise), atol=2e-5)
    with pytest.raises(DataError, match=r"copies\.background holds 2 usable images; it takes [36] or more"):
        compared(*tables[:2], tables[2][:2], config=config)


def test_score_normalisation_helps_where_one_query_is_near_to_everything(tmp_path, monkeypatch):
    """By hand: two distractors in the middle of all images have cosine 0.84 with each, faint copies 0.69 with their own."""
    gallery = F.normalize(torch.eye(6) + 0.4)
    queries = torch.cat([torch.eye(6) - 0.1, torch.ones(2, 6)])
    asked = Listed("q", 8, group_name=[f"g/{row}" for row in range(6)] + ["", ""])
    eyes = TableEyes({"g": gallery, "q": queries, "b": F.normalize(torch.ones(4, 6) + 0.2 * noise(4, 6))})
    monkeypatch.setattr("dinoforge.evaluate.copies.open_source", lambda address: Listed(address, 4))
    sides = Sides(Listed("g", 6), asked)
    plain, normalised = (scores(eyes, sides, **how) for how in ({}, {"background": "b", "normalise": True}))
    assert plain["micro_AP"].value == pytest.approx(sum(hit / (12 + hit) for hit in range(1, 7)) / 6, abs=0.05)
    assert normalised["micro_AP"].value == 1
    assert normalised["mAP"].value == pytest.approx(plain["mAP"].value)  # a ranking of its own does not change
    assert "score normalised, background b" in normalised["micro_AP"].protocol


def test_settings_that_would_do_nothing_are_refused():
    for settings in ({"background": "b"}, {"whiten": True}, {"normalise": True}):
        with pytest.raises(ConfigError, match="background= goes with whiten=true or normalise=true"):
            CopiesConfig.build(settings)


def test_gem_equals_its_definition():
    """The fourth root of the mean fourth power, negative numbers counting as nothing, next to the class token."""
    module = build(VitConfig(width=16, depth=2, heads=2, patch=4, pixels=16, layerscale=None), seed=0).eval()
    images = noise(3, 3, 16, 24)
    with torch.no_grad():
        found, features = KINDS["gem"](module, images), module(images)
    assert torch.equal(found[:, :16], features.image)
    for image, row in enumerate(found[:, 16:]):
        for channel, value in enumerate(row.tolist()):
            numbers = [max(number, 1e-6) for number in features.patches[image, :, :, channel].flatten().tolist()]
            assert value == pytest.approx((sum(number**4 for number in numbers) / len(numbers)) ** 0.25, rel=1e-4)


def test_planted_copies_are_found_by_whole_pictures():
    """Real eyes on drawn pictures: exact and mild copies come before everything else even for weights that are random."""
    module = build(VitConfig(width=16, depth=1, heads=2, patch=4, pixels=16, layerscale=None), seed=0)
    backbone = Backbone(module, module.config, Preprocessing(side=16, short_side=16))
    eyes = Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)
    source = open_source("toy://species?images=60&size=32&copies=0.3&split=train")
    for settings in ({}, {"descriptor": "class+gem", "longest": 20}):
        found = scores(eyes, Sides(source, source, itself=True), **settings)
        assert 0.1 < found["mAP"].value <= 1
    assert found["mAP"].n == (source.columns["copy_of"] != "").sum() + len({*source.columns["copy_of"].tolist()} - {""})
    with pytest.raises(ConfigError, match="a long side of 3 pixels is less than a patch of 4"):
        scores(eyes, Sides(source, source, itself=True), longest=3)
