"""`curate` and `contains` with learnt descriptors: what made them is carried along, and never mixed or reused wrongly."""

import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import dinoforge
from dinoforge.base.errors import UserError
from dinoforge.base.files import sha256
from dinoforge.features.descriptors import read_descriptors
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone

POOL = "toy://species?images=60&size=32&copies=0.2&leaks=0.1&seed=3&split={split}"


class Layout(nn.Module):
    """Six by six colours without their mean: enough for a copy to be near, and for most others not to be."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(images, 6)
        return self.sign * (x - x.mean(dim=[2, 3], keepdim=True)).flatten(1)


@pytest.fixture
def program(tmp_path):
    def write(name="d.torchscript.pt", sign=1.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(Layout(sign)), str(tmp_path / name))
        return {"descriptor": str(tmp_path / name), "trust_sha256": sha256(tmp_path / name)}

    return write


def curated(out, **words):
    words = {"retrieve": "all", "keep_out": POOL.format(split="test"), "workers": 1, "precision": "fp32", **words}
    return dinoforge.curate(pool=POOL.format(split="train"), out=str(out), **words)


def gone(out):
    return {line["id"]: line for line in pq.read_table(out / "dropped.parquet").to_pylist()}


def test_copies_are_found_by_the_published_thresholds_and_found_again(program, tmp_path, capsys):
    words, out = program(), tmp_path / "c"
    found = curated(out, **words)
    summary = json.loads((out / "summary.json").read_text())
    name = f"script {words['trust_sha256'][:16]}"
    assert summary["descriptor"] == f"{name}, learnt, width 108"
    by = {stage: [line for line in gone(out).values() if line["stage"] == stage] for stage in ("copies", "leaks")}
    assert by["copies"]
    assert by["leaks"]
    for stage, limit in (("copies", 0.6), ("leaks", 0.45)):
        near = np.asarray([np.nan if line["similarity"] is None else line["similarity"] for line in by[stage]])
        assert np.nanmin(near) > limit
    stored = read_descriptors(out / "descriptors")
    assert (stored.name, stored.values.shape) == (name, (found.kept, 108))
    again = dinoforge.contains(in_=str(out), images=POOL.format(split="train"), workers=1, **words)
    kept = set(stored.ids.tolist())
    near = {line["image"] for line in again.matches}
    assert {one for one, line in gone(out).items() if line["stage"] == "copies" and line["against"] in kept} <= near
    capsys.readouterr()
    # Another program in the same place: nothing is reused, and the stored ones are not compared with it.
    other = program("d.torchscript.pt", sign=-1.0)
    with pytest.raises(
        UserError, match=f"is 'script {other['trust_sha256'][:16]}'; .* has descriptors '{name}' of width 108"
    ):
        dinoforge.contains(in_=str(out), images=POOL.format(split="test"), **other)
    curated(out, **other)
    said = capsys.readouterr().err
    assert "descriptor.parts/pool holds embeddings by other weights; made anew" in said
    assert "pairs: made anew" in said
    assert "hash: " in said
    assert read_descriptors(out / "descriptors").name.startswith("script " + other["trust_sha256"][:16])


def test_whitened_and_relative_to_a_background(program, tmp_path):
    words = {
        **program(),
        "background": "toy://minerals?images=20&size=32",
        "copies.threshold": 0.2,
        "leaks.threshold": 0.1,
    }
    curated(tmp_path / "c", **words)
    pairs = next(
        row for row in json.loads((tmp_path / "c" / "summary.json").read_text())["stages"] if row["name"] == "pairs"
    )
    assert pairs["facts"]["normalised"]
    stored = read_descriptors(tmp_path / "c" / "descriptors")
    assert stored.measure.background.shape == (20, 108)
    with pytest.raises(UserError, match="fitted to more images than a descriptor has numbers, 108"):
        curated(tmp_path / "d", **program(), **{"pairs.whiten": True})


def test_a_backbone_is_a_descriptor_too_and_whitening_is_stored(tmp_path):
    """Wide weights, for an untrained one of usual weights sees all pictures alike, to the last bit of float16."""
    config = VitConfig(width=32, depth=1, heads=2, patch=16, pixels=32, init_std=0.5, layerscale=None)
    save_backbone(tmp_path / "b", Backbone(build(config, seed=0), config, Preprocessing(short_side=32, side=32)))
    out, words = tmp_path / "c", {"descriptor": str(tmp_path / "b"), "precision": "fp32"}
    found = curated(out, **words, **{"copies.threshold": 0.9, "leaks.threshold": 0.9, "pairs.whiten": True})
    assert found.kept > 10
    stored = read_descriptors(out / "descriptors")
    assert stored.name.startswith("backbone ")
    assert stored.values.shape == (found.kept, 32)
    assert stored.measure.whitening.directions.shape == (32, 32)
    again = dinoforge.contains(in_=str(out), images=POOL.format(split="train"), threshold=0.9, **words)
    kept, near = set(stored.ids.tolist()), {line["image"] for line in again.matches}
    assert {one for one, line in gone(out).items() if line["reason"] == "near copy" and line["against"] in kept} <= near
    assert again.contained < again.images


BAD = [
    ({"trust_sha256": "1"}, "trust_sha256 has no effect without descriptor="),
    ({"background": "toy://minerals?images=5"}, "background has no effect without descriptor="),
    ({"pairs.whiten": "true"}, "pairs.whiten has no effect without descriptor="),
    ({"descriptor": "b", "trust_sha256": "1"}, "trust_sha256= has no effect: b is no TorchScript file"),
    ({"descriptor": "b", "pairs.mirror": "false"}, "pairs.mirror has no effect with descriptor="),
    ({"descriptor": "b", "stages": "exact", "keep_out": None}, "descriptor=b has no effect: no stage that runs looks for near copies"),
    ({"descriptor": "b", "copies.threshold": "0.3"}, "copies.threshold=0.3 is below pairs.candidate=0.4"),
    ({"descriptor": "b", "background": "toy://minerals?images=5"}, "copies.threshold is required with background="),
    ({"descriptor": "nowhere"}, "backbone nowhere does not exist"),
    ({"descriptor": "text.pt"}, "text.pt is no readable weights file"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("no tensors")
    with pytest.raises(UserError) as error:
        curated(tmp_path / "c", **{"precision": "auto", **words})
    assert message in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def test_contains_takes_no_descriptor_where_none_was_used(program, tmp_path):
    curated(tmp_path / "c", precision="auto")
    with pytest.raises(UserError, match=r"has no effect: .* has descriptors 'layout' of width 248"):
        dinoforge.contains(in_=str(tmp_path / "c"), images=POOL.format(split="test"), **program())
