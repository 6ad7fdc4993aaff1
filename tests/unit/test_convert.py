"""The verb ``convert``, and foreign backbones through the verbs that use one: what is said, written and refused."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinoforge.cli import execute
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone, save_backbone
from perturbed import perturbed

SIZE = {"position_offset": 0.0, "position_antialias": True}
TABLE = VitConfig(width=64, depth=2, heads=1, patch=8, pixels=32, registers=2, **SIZE)
ROPE = VitConfig(width=64, depth=2, heads=1, patch=8, registers=2, positions="rope", norm_eps=1e-5)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ours(path, config=TABLE, **preprocessing):
    save_backbone(path, perturbed(config, **preprocessing))
    return load_backbone(path)


def run(capsys, *words):
    """Status, facts and what was said."""
    status = execute(["convert", *words, "--json"])
    shown = capsys.readouterr()
    return status, json.loads(shown.out.strip().splitlines()[-1]), shown.err


def refused(capsys, *words):
    """The one line of a refusal; nothing is written by it."""
    before = sorted(Path().iterdir())
    status, facts, err = run(capsys, *words)
    assert status == 2, err
    assert "Traceback" not in err
    assert sorted(Path().iterdir()) == before
    assert "\n" not in facts["error"]
    return facts["error"]


@pytest.mark.parametrize("config", [TABLE, ROPE], ids=["table", "rope"])
@pytest.mark.parametrize(("form", "name"), [("official", "w.pth"), ("official", "w.safetensors"), ("huggingface", "hf"),
                                            ("timm", "t.safetensors")])  # fmt: skip
def test_there_and_back(config, form, name, here, capsys):
    """Tensors bit for bit but for those that are said; features compared with the library that is installed."""
    before = ours(here / "b", config, short_side=40, side=32)
    status, facts, err = run(capsys, "weights=b", f"out={name}", f"to={form}")
    count = len(before.module.state_dict())
    assert status == 0, err
    assert facts["tensors"] == f"{count}/{count} tensors"
    assert facts["unmatched"] == []
    assert f"{count}/{count} tensors" in err
    if form == "huggingface":
        pytest.importorskip("transformers")
        assert facts["max_error"] <= 1e-5
        assert facts["compared"].lower().startswith("compared with dino")
    else:
        assert facts["max_error"] is None
        assert "not compared" in facts["compared"]
        assert any("does not hold how pictures are read" in line for line in facts["differs"])
    status, back, err = run(capsys, f"weights={name}", "out=back")
    assert status == 0, err
    assert back["layout"] == facts_layout(form, config)
    assert (back["max_error"] is not None) == (form == "huggingface")
    after = load_backbone(here / "back")
    changed = {k for k, v in before.module.state_dict().items() if not torch.equal(after.module.state_dict()[k], v)}
    said = " ".join(facts["dropped"])
    assert all(key in said for key in changed)
    assert (not changed) == (form != "timm")
    assert (after.preprocessing.short_side == 40) == (form == "huggingface")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(after.module(x).patches, before.module(x).patches)
    assert after.lineage["layout"] == back["layout"]


def facts_layout(form, config):
    names = {
        "official": ("official DINOv2", "official DINOv3"),
        "huggingface": ("Hugging Face Dinov2", "Hugging Face DINOv3ViT"),
        "timm": ("timm DINOv2", "timm DINOv3"),
    }
    return names[form][config is ROPE]


def test_another_size_and_other_channels(here, capsys):
    before = ours(here / "b")
    status, facts, _ = run(capsys, "weights=b", "out=c", "pixels=48", "channels=5")
    assert status == 0
    after = load_backbone(here / "c")
    assert (after.config.pixels, after.config.channels, after.preprocessing.channels) == (48, 5, 5)
    assert after.lineage["pixels"] == 48
    assert facts["fingerprint"] == after.fingerprint != before.fingerprint
    assert "no multiple of backbone.patch=8" in refused(capsys, "weights=b", "out=d", "pixels=45")
    assert "pixels takes a whole number; got 'many'" in refused(capsys, "weights=b", "out=d", "pixels=many")
    assert "channels must be above 0" in refused(capsys, "weights=b", "out=d", "channels=0")
    assert "channels=3 has no effect" in refused(capsys, "weights=b", "out=d", "channels=3")


def test_what_is_left_out_is_said(here, capsys):
    state = {f"backbone.{k}": v for k, v in ours(here / "b").module.state_dict().items()}
    torch.save({"teacher": state | {"dino_head.last_layer.weight_g": torch.zeros(2, 1)}, "iteration": 3}, "w.pth")
    status, facts, err = run(capsys, "weights=w.pth", "out=c")
    assert status == 0
    assert facts["dropped"] == ["iteration (beside teacher)", "dino_head.last_layer.weight_g (no part of the backbone)"]
    assert "Left out: dino_head.last_layer.weight_g" in err
    run(capsys, "weights=b", "out=t.pth", "to=timm")
    save_file({**torch.load("t.pth"), "head.weight": torch.zeros(3, 64)}, "t.safetensors")
    assert "head.weight (a classifier on top)" in run(capsys, "weights=t.safetensors", "out=d")[1]["dropped"]


def test_what_is_resampled_otherwise_is_said(here, capsys):
    ours(here / "b", VitConfig(width=64, depth=1, heads=1, patch=8, pixels=32))
    status, facts, err = run(capsys, "weights=b", "out=hf", "to=huggingface")
    assert status == 0
    assert facts["differs"] == ["position_offset 0.1 -> 0.0: away from 32 pixels features differ a little"]
    assert "position_offset 0.1 -> 0.0" in err


def test_every_tensor_without_a_place_is_named(here, capsys):
    state = dict(ours(here / "b").module.state_dict())
    for name in ("norm1", "norm2"):
        state[f"blocks.0.{name}.wait"] = state.pop(f"blocks.0.{name}.weight")
    for number in range(6):
        state[f"adapter.{number}"] = torch.zeros(1)
    save_file(state, "w.safetensors")
    status, facts, err = run(capsys, "weights=w.safetensors", "out=c")
    assert status == 2
    assert "tensors fit. 2 missing: blocks.0.norm1.weight, blocks.0.norm2.weight; 8 left over" in facts["error"]
    for name in (*(f"left over: adapter.{n}" for n in range(6)), "missing: blocks.0.norm2.weight"):
        assert name in err
    assert not (here / "c").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def test_bad_files_are_one_line(here, capsys):
    state = dict(ours(here / "b").module.state_dict())
    save_file(state, "w.safetensors")
    torch.save(state, "w.pth")
    for name in ("w.safetensors", "w.pth"):
        whole = (here / name).read_bytes()
        (here / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
        assert "is no readable weights file" in refused(capsys, f"weights=cut_{name}", "out=c")
    save_file({"layer1.0.conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(2)}, "resnet.safetensors")
    line = refused(capsys, "weights=resnet.safetensors", "out=c")
    assert "is no DINOv2 backbone: it has no cls_token" in line
    assert "its names begin" in line
    with open("evil.pth", "wb") as file:  # noqa: PTH123
        pickle.dump({"cls_token": Evil()}, file)
    assert "is a pickle with code inside" in refused(capsys, "weights=evil.pth", "out=c")
    assert not (here / "EXECUTED").exists()
    assert "backbone nowhere does not exist" in refused(capsys, "weights=nowhere", "out=c")
    (here / "empty").mkdir()
    assert "holds no backbone" in refused(capsys, "weights=empty", "out=c")
    save_file({**state, "patch_embed.proj.weight": torch.zeros(64, 3, 8, 4)}, "odd.safetensors")
    assert "patch_embed.proj.weight is [64, 3, 8, 4], not" in refused(capsys, "weights=odd.safetensors", "out=c")
    save_file({**state, "pos_embed": torch.zeros(1, 12, 64)}, "table.safetensors")
    assert "pos_embed is [1, 12, 64], not [1, 10, 64]" in refused(capsys, "weights=table.safetensors", "out=c")


def test_a_wrong_patch_beside_the_weights(here, capsys):
    ours(here / "b")
    run(capsys, "weights=b", "out=hf", "to=huggingface")
    settings = json.loads((here / "hf" / "config.json").read_text())
    (here / "hf" / "config.json").write_text(json.dumps(settings | {"patch_size": 4}))
    assert "patch_embed.proj.weight is [64, 3, 8, 8], not [64, 3, 4, 4]" in refused(capsys, "weights=hf", "out=c")
    (here / "hf" / "config.json").write_text(json.dumps(settings | {"model_type": "swin"}))
    assert "model_type 'swin' is not supported; dinov2" in refused(capsys, "weights=hf", "out=c")
    (here / "hf" / "config.json").write_text("[]")
    assert "does not describe a model" in refused(capsys, "weights=hf", "out=c")
    del settings["hidden_size"]
    (here / "hf" / "config.json").write_text(json.dumps(settings))
    assert "'hidden_size' is missing" in refused(capsys, "weights=hf", "out=c")


def test_what_is_there_stays(here, capsys):
    ours(here / "b")
    (here / "there").mkdir()
    (here / "f.pth").write_text("mine")
    assert "out=there exists" in refused(capsys, "weights=b", "out=there")
    assert "out=f.pth exists" in refused(capsys, "weights=b", "out=f.pth", "to=official")
    assert (here / "f.pth").read_text() == "mine"
    assert "must end in .pth or .safetensors with to=timm" in refused(capsys, "weights=b", "out=x", "to=timm")
    assert "names a file, and to=backbone writes a folder" in refused(capsys, "weights=b", "out=x.pth")
    assert "Unknown layout 'tim'. Did you mean 'timm'" in refused(capsys, "weights=b", "out=x", "to=tim")
    assert "weights= is required" in refused(capsys, "out=x")
    assert "nobody/none is no folder and not in Hugging Face's cache" in refused(
        capsys, "weights=hf:nobody/none", "out=x"
    )
    assert "weights=timm:vit_tiny is timm's name of a model; give the file or folder" in refused(
        capsys, "weights=timm:vit_tiny", "out=x"
    )
    save_backbone(here / "toy", Backbone(build(ToyConfig(), seed=0), ToyConfig(), Preprocessing()))
    assert "is a toy backbone; convert is for vision transformers" in refused(capsys, "weights=toy", "out=x")


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "weights=~nosuch/b", "out=c"],
        ["convert", "weights=w.pth", "out=~nosuch/b"],
        ["export", "backbone=b", "to=program", "out=~nosuch/b"],
        ["export", "backbone=~nosuch/b", "to=program", "out=e"],
        ["embed", "backbone=~nosuch/b", "data=toy://species?images=2", "out=e"],
        ["embed", "backbone=hf:~nosuch/b", "data=toy://species?images=2", "out=e"],
    ],
    ids=lambda words: " ".join(word for word in words if word == words[0] or "nosuch" in word),
)
def test_a_home_that_is_not_known_is_one_line(words, here, capsys):
    assert execute(words) == 2
    assert (
        "~nosuch/b names the home of a user who is not known here." in capsys.readouterr().err.strip().splitlines()[-1]
    )
    assert not list(here.iterdir())


def test_without_transformers_it_is_said(here, capsys, monkeypatch):
    import sys

    ours(here / "b")
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, facts, _ = run(capsys, "weights=b", "out=hf", "to=huggingface")
    assert status == 0
    assert 'not compared: transformers is not installed (pip install "dinoforge[interop]")' in facts["compared"]


def test_other_features_are_an_error(here, capsys, monkeypatch):
    """Weights that fit but are computed otherwise there."""
    pytest.importorskip("transformers")
    ours(here / "b")
    run(capsys, "weights=b", "out=hf", "to=huggingface")
    monkeypatch.setattr("dinoforge.verbs.convert.BOUND", -1.0)
    assert "from=hf: features differ by" in refused(capsys, "weights=hf", "out=c")
    assert "out=hf2: features differ by" in refused(capsys, "weights=b", "out=hf2", "to=huggingface")


def test_what_transformers_cannot_open_is_one_line(here, capsys):
    pytest.importorskip("transformers")
    ours(here / "b")
    run(capsys, "weights=b", "out=hf", "to=huggingface")
    path = here / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_attn_implementation": "nosuch"}))
    assert "from=hf cannot be opened by transformers: " in refused(capsys, "weights=hf", "out=c")


@pytest.mark.parametrize(
    ("processor", "differs"),
    [
        (
            {"resample": 2, "size": {"height": 32, "width": 32}},
            ["it resamples otherwise than bicubic", "it squashes pictures"],
        ),
        ({"do_resize": False, "resample": 2, "size": {"height": 32, "width": 32}}, ["it does not resize pictures"]),
        ({"size": {"shortest_edge": 40}, "crop_size": 32}, []),
    ],
    ids=["squashed", "not resized", "as here"],
)
def test_what_the_processor_does_otherwise_is_said(processor, differs, here, capsys):
    """By load_backbone and by convert, which lists it too."""
    ours(here / "b")
    run(capsys, "weights=b", "out=hf", "to=huggingface")
    (here / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    load_backbone(here / "hf")
    said = capsys.readouterr().err
    status, facts, err = run(capsys, "weights=hf", "out=c")
    assert status == 0
    assert len(facts["differs"]) == len(differs)
    for line, begin in zip(facts["differs"], differs, strict=True):
        assert line.startswith(begin)
        assert err.count(f"hf: {line}.") == said.count(f"hf: {line}.") == 1


def test_frozen_models_of_others_in_the_verbs(here, capsys):
    """evaluate, embed, pca and match take hf:; attention says that there is none; training refuses it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained("vit")
    data = "toy://species?images=24&size=32"
    assert execute(["embed", "backbone=hf:vit", f"data={data}", "out=f", "tokens=patches", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["width"] == 32
    assert "frozen" in shown.err
    assert execute(["evaluate", "backbone=hf:vit", f"train={data}", f"test={data}", "--json"]) == 0
    capsys.readouterr()
    for verb in ("pca", "match"):
        assert execute([verb, "backbone=hf:vit", f"images={data}", f"out={verb}.png"]) == 0
        assert (here / f"{verb}.png").exists()
    capsys.readouterr()
    assert execute(["attention", "backbone=hf:vit", f"images={data}", "out=a.png"]) == 2
    assert "does not show its attention" in capsys.readouterr().err
    words = ["pretrain", "recipe=vit_micro.toy", f"data={data}", "out=r", "init=hf:vit"]
    assert execute(words) == 2
    assert "can be used frozen only" in capsys.readouterr().err


def test_weights_are_read_as_they_are(here, capsys):
    """The file holds what the backbone held, read by the library alone."""
    before = ours(here / "b").module.state_dict()
    run(capsys, "weights=b", "out=w.safetensors", "to=official")
    there = load_file("w.safetensors")
    assert set(there) == set(before)
    assert all(torch.equal(there[key], before[key]) for key in before)


def test_a_folder_of_timm(here, capsys):
    """As on its hub: model.safetensors beside a config.json of its own."""
    before = ours(here / "b")
    (here / "t").mkdir()
    run(capsys, "weights=b", "out=t/model.safetensors", "to=timm")
    (here / "t" / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_reg4_dinov2"}))
    assert run(capsys, "weights=t", "out=c")[1]["layout"] == "timm DINOv2"
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_backbone(here / "c").module(x).patches, before.module(x).patches)


def test_a_library_and_a_folder_are_the_folder(here, capsys):
    """What is used frozen by these words is converted by them, to be trained from."""
    before, x = ours(here / "b").module, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run(capsys, "weights=b", "out=h", "to=huggingface")
    (here / "t").mkdir()
    run(capsys, "weights=b", "out=t/model.safetensors", "to=timm")
    (here / "t" / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_reg4_dinov2"}))
    for address, layout in (("hf:h", "Hugging Face Dinov2"), ("timm:t", "timm DINOv2")):
        status, facts, _ = run(capsys, f"weights={address}", f"out=of_{address[0]}")
        assert (status, facts["layout"][: len(layout)]) == (0, layout)
        assert torch.equal(load_backbone(here / f"of_{address[0]}").module(x).patches, before(x).patches)


def test_what_timm_says_of_images_is_taken(here, capsys):
    """Its ``pretrained_cfg``, from the folder and from the file in it; by ``load_backbone`` and by ``convert``."""
    ours(here / "b")
    (here / "t").mkdir()
    run(capsys, "weights=b", "out=t/model.safetensors", "to=timm")
    facts = {
        "input_size": [3, 32, 32],
        "crop_pct": 0.8,
        "mean": [0.3] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
    }
    config = here / "t" / "config.json"
    config.write_text(json.dumps({"architecture": "vit_small_patch14_reg4_dinov2", "pretrained_cfg": facts}))
    for place in ("t", "t/model.safetensors"):
        how = load_backbone(place).preprocessing
        assert (how.mean, how.std, how.side, how.short_side) == ((0.3,) * 3, (0.5,) * 3, 32, 40)
    _, told, err = run(capsys, "weights=t", "out=c")
    assert load_backbone("c").preprocessing == how
    assert "resamples bilinear" in err
    assert told["differs"] == ["it resamples bilinear; here it is bicubic"]
    config.write_text(json.dumps({"architecture": "x", "pretrained_cfg": facts | {"input_size": [4, 32, 32]}}))
    assert "does not describe what is done with images" in refused(capsys, "weights=t", "out=d")
    config.write_text(json.dumps({"architecture": "x", "pretrained_cfg": {"input_size": [3, 32, 32]}}))
    assert "KeyError" in refused(capsys, "weights=t", "out=d")
    config.write_text(json.dumps({"architecture": "x", "pretrained_cfg": facts | {"mean": [0.5], "std": [1.0],
                                                                                   "input_size": [1, 32, 32]}}))  # fmt: skip
    assert "is for images of 1 channels" in run(capsys, "weights=t", "out=e")[2]
    assert load_backbone("e").preprocessing == Preprocessing.usual(3)


def test_weights_of_satellite_pictures_have_their_own_constants(here, capsys):
    """DINOv3's, which the file does not hold; its name tells them from those of photographs."""
    ours(here / "b", ROPE)
    for name, mean, std in (
        ("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
        ("dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        run(capsys, "weights=b", f"out={name}", "to=official")
        how = load_backbone(name).preprocessing
        assert (how.mean, how.std) == (mean, std)
