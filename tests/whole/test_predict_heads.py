"""Heads that `evaluate` keeps, used by `predict`: on the test pictures they are right as often as was measured."""

import json

import numpy as np
import pytest
from PIL import Image

import dinoforge
from dinoforge.cli import execute
from dinoforge.model.head_files import read_any_head
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone, save_backbone

TRAIN, TEST = "toy://species?images=40&size=40&seed=3&split=train", "toy://species?images=150&size=40&seed=3&split=test"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    config = VitConfig(width=16, depth=3, heads=2, patch=8, pixels=32, init_std=0.2)
    save_backbone(folder / "b", Backbone(build(config, seed=0), config, Preprocessing(short_side=32, side=32)))
    return folder


def scores(place, capsys, task, *more):
    """By name, measured while the head is kept."""
    capsys.readouterr()
    given = [
        f"backbone={place / 'b'}",
        f"tasks={task}",
        f"train={TRAIN}",
        f"test={TEST}",
        "features=none",
        "precision=fp32",
    ]
    assert execute(["evaluate", *given, f"save_heads={place / 'heads'}", *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    return {score["name"]: score["value"] for score in found}


def predictions(place, task, out, *more):
    given = [
        f"backbone={place / 'b'}",
        f"head={place / 'heads' / task}",
        f"images={TEST}",
        f"out={out}",
        "precision=fp32",
    ]
    assert execute(["predict", *given, *more]) == 0
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pool", ["true", "false"])
def test_linear(pool, place, tmp_path, capsys):
    """The class token alone too, which the released layout has no head for: the mean patch weighs nothing then."""
    more = ["linear.layers=2", f"linear.pool={pool}", "linear.learning_rates=0.1", "linear.iterations=60"]
    measured = scores(place, capsys, "linear", *more)["accuracy"]
    truth = dinoforge.open_source(TEST)
    rows = predictions(place, "linear", tmp_path / "o")
    assert [row["id"] for row in rows] == truth.columns["id"].tolist()
    right = [row["label"] == label for row, label in zip(rows, truth.columns["label"], strict=True)]
    assert np.mean(right) == pytest.approx(measured)
    mean = read_any_head(place / "heads" / "linear", load_backbone(place / "b")).module.weight[:, 2 * 16 :]
    assert bool(mean.any()) == (pool == "true")
    assert len({row["label"] for row in rows}) > 1 or pool == "false"
    names = dict(zip(truth.columns["label"].tolist(), truth.columns["label_name"].tolist(), strict=True))
    assert all(row["name"] == names.get(row["label"], row["name"]) for row in rows)


SMALL = [f"mask2former.{word}" for word in ("width=32", "heads=2", "pixel_layers=1", "decoder_layers=1", "queries=6")]


@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_segmentation(head, place, tmp_path, capsys):
    """By windows smaller than the picture, to the pixel; scores that are chances already meet no softmax."""
    words = ["head=mask2former", *SMALL, "iterations=4", "pixels=60", "crop=40"]
    if head == "mask2former":
        pytest.importorskip("transformers")
    else:
        words = ["iterations=30", "pixels=48", "crop=24"]
    measured = scores(
        place, capsys, "segmentation", "segmentation.batch=4", *(f"segmentation.{word}" for word in words)
    )
    rows, truth = predictions(place, "segmentation", tmp_path / "o"), dinoforge.open_source(TEST)
    assert all(0 < row["confidence"] <= 1 for row in rows)
    right = []
    for number, row in enumerate(rows):
        found = np.asarray(Image.open(tmp_path / "o" / row["files"]["map"]))
        right.append(found == truth.extra(number, "mask"))
    assert np.mean(right) == pytest.approx(measured["pixel_accuracy"], abs=2e-4)
