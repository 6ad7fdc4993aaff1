"""A filter of the user's own: the regression is the textbook's, what was held out was held out, and no stranger's embeddings."""

import json

import numpy as np
import pytest

import dinoforge
from dinoforge.base.errors import ConfigError, DataError, UserError, WeightsError
from dinoforge.curate.safety.filter import Asked, about
from dinoforge.curate.safety.trained import (
    TRAINED,
    Linear,
    TrainedConfig,
    fit,
    held_out,
    measured,
    write_filter,
)
from dinoforge.data.toyworld.pollution import png
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone


def clouds(good, bad, width=6, apart=1.0):
    rng = np.random.default_rng(0)
    kinds = np.arange(good + bad) >= good
    vectors = rng.normal(size=(good + bad, width)) + 3
    vectors[kinds, 0] += apart
    return vectors.astype(np.float32), kinds


def test_the_regression_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    vectors, bad = clouds(40, 15)
    found = fit(vectors, bad)
    x = vectors.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    spread = np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean())
    ready = (x - x.mean(axis=0)) / spread
    theirs = linear_model.LogisticRegression(C=1 / 1e-3, tol=1e-10, max_iter=10_000)
    theirs.fit(ready, bad, sample_weight=np.where(bad, 0.5 / 15, 0.5 / 40))
    np.testing.assert_allclose(found.scores(vectors), theirs.predict_proba(ready)[:, 1], atol=2e-4)


def test_few_of_a_kind_weigh_as_much_as_many_of_the_other():
    vectors, bad = clouds(400, 8, apart=2.0)
    scores = fit(vectors, bad).scores(vectors)
    assert (scores[bad] >= 0.5).mean() >= 0.75
    assert (scores[~bad] >= 0.5).mean() <= 0.25
    same = np.ones((10, 3), np.float32)  # nothing to go by, and no crash
    np.testing.assert_allclose(fit(same, np.arange(10) < 5).scores(same), 0.5, atol=1e-6)


def test_what_is_held_out_is_not_seen():
    """More channels than images: on its own images any regression is right, on others of random kinds it cannot be."""
    rng = np.random.default_rng(1)
    vectors, bad = rng.normal(size=(120, 300)).astype(np.float32), rng.random(120) < 0.5
    assert ((fit(vectors, bad).scores(vectors) >= 0.5) == bad).all()
    assert 0.3 < ((held_out(vectors, bad) >= 0.5) == bad).mean() < 0.7
    with pytest.raises(DataError, match="at least 5 images to drop; there are 4"):
        held_out(vectors[:20], np.arange(20) < 4)


def test_figures_by_hand():
    scores = np.asarray([0.9, 0.6, 0.4, 0.1, np.nan], np.float32)
    bad = np.asarray([True, False, True, False, False])
    found = measured(scores, bad, threshold=0.5)  # dropped: 0, 1 and the one without a score
    assert (found.accuracy, found.precision, found.recall) == (2 / 5, 1 / 3, 1 / 2)
    assert np.isnan(measured(scores[:4], bad[:4], threshold=0.95).precision)


def test_a_filter_comes_back_as_it_was(tmp_path):
    linear = Linear(np.asarray([1.0, -2.0, 0.5]), 0.25)
    write_filter(tmp_path / "f", linear, {"embedder": "layout 3", "threshold": 0.5})
    vectors = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    asked = Asked(np.full(9, "a"), np.full(9, ""), embeddings=vectors)
    one = TRAINED.make(TrainedConfig(folder=str(tmp_path / "f"), licence="mine"))
    found = one.judge(asked)
    length = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-(length @ [1, -2, 0.5] + 0.25))), rtol=1e-5)
    np.testing.assert_array_equal(found.keep, found.scores < 0.5)
    assert (one.embedder, one.files[0].licence) == ("layout 3", "mine")
    strict = TRAINED.make(TrainedConfig(folder=str(tmp_path / "f"), threshold=0.01))
    assert not strict.judge(asked).keep.any()
    with pytest.raises(WeightsError, match="takes embeddings of 3 channels; these have 2"):
        one.judge(Asked(asked.url, asked.sha256, embeddings=vectors[:, :2]))


def test_a_filter_of_another_threshold_is_another_one(tmp_path):
    """By its files it is told whether what it said before still holds."""
    known = []
    for threshold in (0.5, 0.5, 0.9):
        write_filter(tmp_path / "f", Linear(np.ones(3), 0.0), {"embedder": "a", "threshold": threshold})
        known.append(about(TRAINED.make(TrainedConfig(folder=str(tmp_path / "f")))))
    assert known[0] == known[1] != known[2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("filter.json", None, "filter.json does not exist"),
        ("filter.json", b"{", "is no filter of curate train_filter="),
        ("filter.json", b'{"embedder": "a", "threshold": 0.5, "format": 2}', "is damaged, or of another version"),
        ("filter.safetensors", None, "filter.safetensors does not exist"),
        ("filter.safetensors", b"no tensors", "is no filter of curate train_filter="),
    ],
)
def test_what_is_no_filter_is_one_line(file, content, message, tmp_path):
    write_filter(tmp_path / "f", Linear(np.ones(3), 0.0), {"embedder": "a", "threshold": 0.5})
    (tmp_path / "f" / file).unlink()
    if content is not None:
        (tmp_path / "f" / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        TRAINED.make(TrainedConfig(folder=str(tmp_path / "f")))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def pictures(folder, count, seed, *, striped):
    """Coarse patches; those to drop have stripes across."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.kron(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        if striped:
            pixels[::8] = pixels[1::8] = 255
            pixels[2::8] = pixels[3::8] = 0
        (folder / f"{number}.png").write_bytes(png(pixels))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, seed in (("keep", 1), ("drop", 2)):
        pictures(tmp_path / "sorted" / kind, 12, seed, striped=kind == "drop")
    pictures(tmp_path / "pool" / "plain", 6, 3, striped=False)
    pictures(tmp_path / "pool" / "striped", 5, 4, striped=True)
    return tmp_path


def test_from_two_folders_to_a_curation(place, capsys):
    found = dinoforge.curate(train_filter="sorted", out="f", workers=1)
    assert (found.images, found.keep, found.drop, found.set_aside) == (24, 12, 12, 0)
    assert min(found.accuracy, found.precision, found.recall) >= 0.9
    assert "of 12 images to drop 100.0% would be dropped" in capsys.readouterr().err
    facts = json.loads((place / "f" / "filter.json").read_text())
    assert facts["embedder"] == found.embedder == "layout 248"
    assert facts["held_out"]["recall"] == found.recall
    words = {
        "pool": "pool", "retrieve": "all", "out": "c", "workers": 1, "safety.trained.folder": "f", "filters.most_noise": None
    }  # fmt: skip
    curated = dinoforge.curate(**words)
    assert (curated.kept, curated.safety) == (6, "safety-filtered by trained")
    assert curated.dropped == {"like what a trained filter drops": 5}
    # By another backbone its embeddings mean something else.
    config = VitConfig(width=32, depth=1, heads=2, patch=16, pixels=32)
    save_backbone(place / "b", Backbone(build(config, seed=0), config, Preprocessing(short_side=32, side=32)))
    theirs = {**words, "backbone": "b", "precision": "fp32"}
    with pytest.raises(
        ConfigError, match=r"safety\.trained was trained on embeddings by layout 248, this curation embeds by back"
    ):
        dinoforge.curate(**theirs)
    own = dinoforge.curate(train_filter="sorted", out="f", backbone="b", precision="fp32", workers=1)
    assert own.embedder.startswith("backbone ")
    assert dinoforge.curate(**theirs).safety == "safety-filtered by trained"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"train_filter": "pool"}, "takes images sorted into two folders, keep and drop (or a column label with these names); it has 'plain'"),
        ({"train_filter": "sorted/keep"}, "it has no labels"),
        ({"train_filter": "nowhere"}, "nowhere does not exist"),
        ({"train_filter": "few"}, "A filter takes at least 5 images to drop; there are 2"),
        ({"pool": "pool"}, "pool= has no effect with train_filter=, which trains a filter and curates nothing"),
        ({"copies.threshold": "0.9"}, "copies.threshold= has no effect with train_filter="),
        ({"out": "pool"}, "out=pool holds other files (plain); give a new folder"),
        ({"precision": "fp32"}, "precision=fp32 has no effect without backbone="),
        ({"train_filter": None}, "pool= is required: images to choose from; or train_filter="),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, message, place):
    pictures(place / "few" / "keep", 5, 1, striped=False)
    pictures(place / "few" / "drop", 2, 1, striped=True)
    with pytest.raises(UserError) as error:
        dinoforge.curate(**{"train_filter": "sorted", "out": "f", "workers": 1, **words})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (place / "f").exists()
