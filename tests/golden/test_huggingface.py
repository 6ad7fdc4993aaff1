"""12_hf: Hugging Face's names and settings for the recorded networks, and its features of the same weights."""

import json
import re

import pytest
import torch
from recorded import Case, config, files, needs_recordings
from test_vit import FORWARD, vit_config

from dinoforge.model import huggingface
from dinoforge.model.layouts import write_layout
from dinoforge.model.official import unchunked

pytestmark = needs_recordings


def cases():
    return [
        pytest.param(path, name, id=name) for path in files("12_hf/*.json") for name in json.loads(path.read_text())
    ]


def weights(name):
    path = next(path for path in files("01_vit/*.safetensors") if path.stem == name)
    return path, {unchunked(key): value for key, value in Case(path).under("state").items()}


@pytest.mark.parametrize(("path", "name"), cases())
def test_names_and_shapes(path, name):
    recorded = json.loads(path.read_text())[name]["key_map"]
    _, state = weights(name)
    theirs = huggingface.to_names(state)
    assert set(theirs) == set(recorded)
    for key, about in recorded.items():
        official, _, rows = about["official"].partition("[")
        want = state[unchunked(official)]
        if rows:
            start, end = (int(n) for n in re.fullmatch(r"(\d)\*D:(\d)\*D\]", rows).groups())
            width = len(want) // 3
            want = want[start * width : end * width]
        assert list(theirs[key].shape) == about["shape"], key
        assert torch.equal(theirs[key], want), key
    back = huggingface.from_names(theirs)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("path", "name"), cases())
def test_settings(path, name):
    """What the recorded settings say, ours say too, both ways."""
    recorded = json.loads(path.read_text())[name]
    mine, want = vit_config(config(weights(name)[0])), recorded["hf_config"]
    got = huggingface.config_to(mine)
    for key in set(want) & set(got):
        assert got[key] == want[key] or (key == "layerscale_value"), key
    again = huggingface.config_from({**got, **want, "model_type": got["model_type"]})
    for field in ("width", "depth", "heads", "patch", "pixels", "registers", "ffn", "ffn_ratio", "qkv_bias"):
        assert getattr(again, field) == getattr(mine, field), field


@pytest.mark.parametrize(("path", "name"), cases())
def test_features(path, name, tmp_path):
    """The recorded network in Hugging Face's own code gives the recorded features, at the native size."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    recorded = json.loads(path.read_text())[name]
    file, state = weights(name)
    write_layout(tmp_path / "hf", huggingface.compose(vit_config(config(file)), state))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    image = Case(file, "native/in/")["image"]
    with torch.no_grad():
        got = theirs(pixel_values=image).last_hidden_state
    want = Case(file, "native/nomask/")["x_norm_clstoken"]
    assert (got[:, 0] - want).abs().max().item() <= FORWARD
    assert set(recorded) == {"key_map", "max_abs_diff_native", "transformers", "hf_config"}
    assert all(value <= FORWARD for value in numbers(recorded["max_abs_diff_native"]))


def numbers(value):
    """Every number in a nested dictionary."""
    return [n for part in value.values() for n in numbers(part)] if isinstance(value, dict) else [value]
