"""Weights: recognised, freed of wrappers, refused loudly, never executed."""

import json
import os
import pickle
import re
import threading

import pytest
import torch
from safetensors.torch import save_file

from dinoforge.base.errors import WeightsError
from dinoforge.model.layouts import open_layout
from dinoforge.model.official import config_of, strip, unchunked
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, fingerprint, load_backbone, load_into, save_backbone

CONFIG = VitConfig(width=128, depth=4, heads=2, patch=8, pixels=32)


def made(config=CONFIG):
    return build(config, seed=0).eval()


def chunked(state, chunks=2, depth=4):
    """Block names as the released training code stores them: ``blocks.{chunk}.{index}.…``."""
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) * chunks // depth))
        found[".".join(parts)] = value
    return found


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("form", ["plain", "chunked", "teacher export", "module prefix", "safetensors"])
def test_official_files_load(registers, ffn, form, tmp_path):
    config = CONFIG.model_copy(
        update={
            "registers": registers, "ffn": ffn, "position_offset": 0.0 if registers else 0.1,
            "position_antialias": registers > 0,
        }
    )  # fmt: skip
    module = made(config)
    state = dict(module.state_dict())
    if form in {"chunked", "teacher export"}:
        state = chunked(state)
    if form == "teacher export":
        state = {"teacher": {f"backbone.{k}": v for k, v in state.items()} | {"dino_head.mlp.0.bias": torch.zeros(3)}}
    if form == "module prefix":
        state = {f"module.backbone.{k}": v for k, v in state.items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    found = load_backbone(path)
    count = len(module.state_dict())
    assert found.loaded == f"{count}/{count} tensors"
    assert found.config == config
    x = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.module(x).patches, module(x).patches, rtol=0, atol=0)


def test_misfits_are_named():
    module, state = made(), dict(made().state_dict())
    state["blocks.1.mlp.fc3.bias"] = state.pop("blocks.1.mlp.fc1.bias")
    state["norm.weight"] = torch.zeros(7)
    with pytest.raises(WeightsError) as error:
        load_into(module, state, name="w.pth")
    line = str(error.value)
    count = len(module.state_dict())
    assert f"w.pth: {count - 2}/{count} tensors fit" in line
    assert "1 missing: blocks.1.mlp.fc1.bias" in line
    assert "blocks.1.mlp.fc3.bias Did you mean 'blocks.1.mlp.fc1.bias'?" in line
    assert "norm.weight is [7], not [128]" in line


class Evil:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("plain.pth", "wb") as file:  # noqa: PTH123
        pickle.dump({"cls_token": Evil()}, file)
    torch.save({"cls_token": torch.zeros(1), "x": Evil()}, "zip.pth")
    for name in ("plain.pth", "zip.pth"):
        with pytest.raises(WeightsError, match="is a pickle with code inside"):
            load_backbone(name)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02."])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_other_files_are_one_line(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="is no readable weights file") as error:
        load_backbone(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cls_token": torch.zeros(())}, "cls_token is [], not [1, tokens, width]"),
        ({"pos_embed": torch.zeros(1, 0, 128)}, "pos_embed is [1, 0, 128], not [1, tokens, width]"),
        ({"register_tokens": torch.zeros(128)}, "register_tokens is [128], not [1, tokens, width]"),
        ({"blocks.0.mlp.fc1.weight": torch.zeros(())}, "a setting or tensor is not as its layout has it (tuple index"),
        ({"cls_token": torch.zeros(1, 1, 0)}, "a setting or tensor is not as its layout has it (division by zero)"),
    ],
    ids=["cls", "positions", "registers", "feed-forward", "no width"],
)
def test_tensors_of_odd_shapes_are_one_line(change, said, tmp_path):
    torch.save(dict(made().state_dict()) | change, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=re.escape(said)) as error:
        load_backbone(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_tensors_without_a_name(tmp_path):
    torch.save({0: torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w.pth holds something under 0, which is no name"):
        load_backbone(tmp_path / "w.pth")
    torch.save({"teacher": dict(made().state_dict()) | {7: torch.zeros(1)}, "epoch": 3}, tmp_path / "w.pth")
    assert open_layout(tmp_path / "w.pth").parsed.dropped == {"epoch": "beside teacher", "7": "no tensor by name"}
    assert load_backbone(tmp_path / "w.pth").config == CONFIG


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    threading.Thread(target=lambda: (tmp_path / "w.pth").open("wb").close(), daemon=True).start()  # wakes what reads it
    with pytest.raises(WeightsError, match=r"w.pth is no regular file\."):
        load_backbone(tmp_path / "w.pth")


def test_what_is_no_backbone(tmp_path):
    with pytest.raises(WeightsError, match="does not exist; give a folder"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="holds no backbone"):
        load_backbone(tmp_path)
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="is no DINOv2 backbone: it has no cls_token"):
        load_backbone(tmp_path / "w.safetensors")
    torch.save([1, 2], tmp_path / "l.pth")
    with pytest.raises(WeightsError, match="holds a list, not tensors by name"):
        load_backbone(tmp_path / "l.pth")


def test_a_changed_weight_is_noticed(tmp_path):
    save_backbone(tmp_path / "b", Backbone(made(), CONFIG, Preprocessing()))
    state = dict(made().state_dict())
    state["norm.bias"] = state["norm.bias"] + 1
    save_file(state, tmp_path / "b" / "backbone.safetensors")
    with pytest.raises(WeightsError, match="is damaged: its weights have fingerprint"):
        load_backbone(tmp_path / "b")
    facts = json.loads((tmp_path / "b" / "backbone.json").read_text())
    (tmp_path / "b" / "backbone.json").write_text(json.dumps({**facts, "architecture": {"kind": "vit", "depht": 2}}))
    with pytest.raises(WeightsError, match="does not describe a backbone: Unknown setting 'depht'"):
        load_backbone(tmp_path / "b")


def test_names():
    assert unchunked("blocks.1.3.norm1.weight") == "blocks.3.norm1.weight"
    assert unchunked("blocks.3.norm1.weight") == "blocks.3.norm1.weight"
    assert set(strip({"model": {"module.norm.bias": torch.zeros(1)}, "epoch": 3})) == {"norm.bias"}


def test_the_architecture_is_read_off_the_shapes():
    bare = CONFIG.model_copy(update={"layerscale": None, "qkv_bias": False, "proj_bias": False, "ffn_bias": False})
    assert config_of(made(bare).state_dict(), "x") == bare


def test_how_pictures_are_read_comes_back(tmp_path):
    config = CONFIG.model_copy(update={"channels": 2})
    how = Preprocessing(channels=2, range=[[0, 10], [5, 9]], mean=(0.1, 0.2), std=(0.3,), max_pixels=7)
    save_backbone(tmp_path / "b", Backbone(made(config), config, how))
    assert load_backbone(tmp_path / "b").preprocessing == how
    assert "2 channels, numbers in [[0.0, 10.0], [5.0, 9.0]]" in (tmp_path / "b" / "README.md").read_text()
    path = tmp_path / "b" / "backbone.json"
    facts = json.loads(path.read_text())
    for change, reason in (
        ({"mean": [0, 0, 0]}, "mean is for 3 channels, the backbone takes 2"),
        ({"channels": 1, "mean": [0], "range": None}, "it takes 2 channels, its preprocessing gives 1"),
        ({"range": [[1, 0]]}, "a range takes low < high"),
        ({"std": [0.3, 0]}, "std must be above 0; got [0.3, 0.0]"),
    ):
        path.write_text(json.dumps({**facts, "preprocessing": {**facts["preprocessing"], **change}}))
        with pytest.raises(WeightsError, match=re.escape(reason)):
            load_backbone(tmp_path / "b")


def test_weights_without_preprocessing_take_what_is_usual(tmp_path):
    for channels, mean in ((3, (0.485, 0.456, 0.406)), (5, (0.0,))):
        save_file(dict(made(CONFIG.model_copy(update={"channels": channels})).state_dict()), tmp_path / "w.safetensors")
        found = load_backbone(tmp_path / "w.safetensors")
        assert (found.preprocessing.channels, found.preprocessing.mean) == (channels, mean)


def test_a_folder_of_an_earlier_version_keeps_its_fingerprint(tmp_path):
    """It was written when there were fewer settings; what is new has its default, and nothing is damaged."""
    config = VitConfig(width=8, depth=1, heads=2, patch=4, pixels=8)
    save_backbone(tmp_path / "b", Backbone(build(config, seed=0), config, Preprocessing()))
    facts = json.loads((tmp_path / "b" / "backbone.json").read_text())
    del facts["architecture"]["positions"]
    state = load_backbone(tmp_path / "b").module.state_dict()
    facts["fingerprint"] = fingerprint(facts["architecture"], state)
    (tmp_path / "b" / "backbone.json").write_text(json.dumps(facts))
    found = load_backbone(tmp_path / "b")
    assert found.config == config
    assert found.fingerprint == facts["fingerprint"] != fingerprint(config.model_dump(mode="json"), state)
