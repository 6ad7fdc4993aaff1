"""Heads in folders: what is written is what is read, on the right backbone alone; released files with what they do not say."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.model.head_files import HeadFacts, read_any_head, save_head, spread_blocks
from dinoforge.model.released_heads import DptDepth, LinearClassifier, LinearDepth, LinearSegmentation
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing

VIT = VitConfig(width=16, depth=5, heads=2, patch=4, pixels=16)


def backbone(seed=0, **changes):
    config = VIT.model_copy(update=changes)
    return Backbone(build(config, seed=seed), config, Preprocessing(short_side=16, side=16))


def random_head(module, seed=0):
    """The module with every number drawn, variances above 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.1 if name.endswith("var") else -0.5))
    return module.eval()


def made(kind, family="linear"):
    return random_head({
        ("classification", "linear"): lambda: LinearClassifier(16, 2, 3),
        ("segmentation", "linear"): lambda: LinearSegmentation(16, 2, 3),
        ("depth", "linear"): lambda: LinearDepth(16, 2, 256),
        ("depth", "dpt"): lambda: DptDepth(16),
    }[kind, family]())  # fmt: skip


def facts(kind, family="linear", **more):
    about = {"range": (0.5, 8.0)} if kind == "depth" else {"classes": ("wall", "sky", "tree"), "labels": (1, 2, 7)}
    blocks = (0, 1, 3, 4) if family == "dpt" else (3, 4)
    return HeadFacts(kind=kind, family=family, width=16, blocks=blocks, **about | more)


KINDS = [
    ("classification", "linear", ""),
    ("segmentation", "linear", ""),
    ("segmentation", "linear", "head.json"),
    ("segmentation", "linear", "head.safetensors"),
    ("depth", "linear", ""),
    ("depth", "dpt", ""),
]


@pytest.mark.parametrize(("kind", "family", "name"), KINDS)
@torch.no_grad()
def test_a_head_is_what_was_saved(kind, family, name, tmp_path):
    eyes = backbone()
    module, about = made(kind, family), facts(kind, family, backbone=eyes.fingerprint, window=32, stride=20)
    save_head(tmp_path / "heads" / "h", module, about)
    head = read_any_head(tmp_path / "heads" / "h" / name, eyes)
    assert head.facts == about
    assert not head.module.training
    assert not any(parameter.requires_grad for parameter in head.module.parameters())
    seen = eyes.module.intermediate(torch.randn(1, 3, 16, 16), about.blocks)
    ends = {"nearest": 0.5, "farthest": 8.0} if kind == "depth" else {}
    torch.testing.assert_close(head(seen), module(seen, **ends), rtol=0, atol=0)
    if kind == "depth":
        assert 0.5 <= head(seen).min() < head(seen).max() <= 8.0


def test_a_head_belongs_to_one_backbone(tmp_path, capsys):
    eyes = backbone()
    save_head(tmp_path / "h", made("depth"), facts("depth", backbone=eyes.fingerprint))
    with pytest.raises(WeightsError, match=f"was trained on backbone {eyes.fingerprint}; this one is"):
        read_any_head(tmp_path / "h", backbone(seed=1))
    with pytest.raises(WeightsError, match="for backbones of width 16; this one has 32"):
        read_any_head(tmp_path / "h", backbone(width=32))
    save_head(tmp_path / "h", made("depth"), facts("depth"))
    capsys.readouterr()
    read_any_head(tmp_path / "h", backbone(seed=1))
    assert "does not say which backbone" in capsys.readouterr().err
    with pytest.raises(WeightsError, match=r"head of blocks 3, 4 \(from 0\); this backbone has 4 blocks"):
        read_any_head(tmp_path / "h", backbone(depth=4))
    with pytest.raises(ConfigError, match=r"range=0,1 has no effect: .*head.json says"):
        read_any_head(tmp_path / "h", backbone(), range=(0, 1))


def test_what_is_no_head(tmp_path):
    eyes, place = backbone(), tmp_path / "heads" / "h"
    with pytest.raises(WeightsError, match="does not exist"):
        read_any_head(place, eyes)
    save_head(place, made("segmentation"), facts("segmentation"))
    with pytest.raises(WeightsError, match="of those in it give one: h"):
        read_any_head(place.parent, eyes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"holds no head; give a folder with head\.safetensors"):
        read_any_head(tmp_path / "empty", eyes)
    (tmp_path / "notes.txt").write_text("a head?")
    with pytest.raises(WeightsError, match="is no readable weights file"):
        read_any_head(tmp_path / "notes.txt", eyes)
    torch.save(eyes.module.state_dict(), tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="is no released head"):
        read_any_head(tmp_path / "b.pth", eyes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "poses"}, "kind must be one of"),
        ({"family": "dtp"}, "Unknown family of segmentation heads 'dtp'"),
        ({"options": {"depth": 3}}, "does not describe a head: TypeError"),
        ({"classes": ["wall"], "labels": []}, "of another shape"),
        ({"labels": [1]}, "1 labels for 3 classes"),
        ({"classes": [], "labels": []}, "needs the names of its classes"),
        ({"blocks": [4, 3]}, "blocks must rise"),
        ({"blocks": [-1]}, "at least 0"),
        ({"window": 16, "stride": 17}, "leaves gaps"),
        ({"classes": ["wall", "sky", "wall"]}, "each class has a name of its own"),
        ({"protocol": "another"}, "is damaged"),
        ({"colour": 1}, "Unknown setting 'colour'"),
    ],
)
def test_facts_that_are_wrong(change, told, tmp_path):
    save_head(tmp_path / "h", made("segmentation"), facts("segmentation"))
    file = tmp_path / "h" / "head.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=told):
        read_any_head(tmp_path / "h", backbone())


def test_damaged_weights(tmp_path):
    save_head(tmp_path / "h", made("segmentation"), facts("segmentation"))
    file = tmp_path / "h" / "head.safetensors"
    state = load_file(file)
    state["conv_seg.bias"][0] += 1
    save_file(state, file)
    with pytest.raises(WeightsError, match="is damaged"):
        read_any_head(tmp_path / "h", backbone())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsError, match="no readable weights file"):
        read_any_head(tmp_path / "h", backbone())


def released(path, module, **beside):
    state = {f"decode_head.{name}": value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state, **beside}, path)
    return path


def test_released_files(tmp_path):
    eyes = backbone(depth=12)
    linear = released(tmp_path / "nyu_linear.pth", random_head(LinearDepth(16, 1, 256)))
    with pytest.raises(ConfigError, match=r"range= is required: .* Give range=0.001,10 for NYU Depth"):
        read_any_head(linear, eyes)
    near = read_any_head(linear, eyes, range=(0.001, 10.0))
    assert near.facts.range == (0.001, 10.0)
    assert near.facts.blocks == (11,)
    assert not near.facts.norm
    seen = eyes.module.intermediate(torch.randn(1, 3, 16, 16), near.facts.blocks, norm=False)
    far = read_any_head(linear, eyes, range=(0.001, 80.0))
    torch.testing.assert_close((far(seen) - 0.001) * (9.999 / 79.999) + 0.001, near(seen))
    four = read_any_head(released(tmp_path / "l4.pth", random_head(LinearDepth(16, 4, 256))), eyes, range=(0.001, 10.0))
    dpt = read_any_head(released(tmp_path / "dpt.pth", made("depth", "dpt")), eyes, range=(0.001, 10.0))
    assert four.facts.blocks == dpt.facts.blocks == (2, 5, 8, 11)
    assert dpt.facts.family == "dpt"
    meta = {"CLASSES": ("a", "b", "c"), "PALETTE": None}
    segment = released(tmp_path / "s.pth", random_head(LinearSegmentation(16, 4, 3)), meta=meta)
    assert read_any_head(segment, eyes).facts.classes == ("a", "b", "c")
    assert read_any_head(segment, eyes).facts.blocks == (8, 9, 10, 11)
    with pytest.raises(ConfigError, match=r"has no effect: .* is no head for depth"):
        read_any_head(segment, eyes, range=(0.001, 10.0))
    torch.save(random_head(LinearClassifier(16, 1, 5)).state_dict(), tmp_path / "c.pth")
    assert read_any_head(tmp_path / "c.pth", eyes).facts.classes == tuple(f"class {k}" for k in range(5))
    with pytest.raises(WeightsError, match="this backbone has 2 blocks"):
        read_any_head(segment, backbone(depth=2))


def test_four_blocks():
    """As released for 12, 24 and 40 blocks; of others, four that rise to the last."""
    assert [spread_blocks(depth) for depth in (12, 24, 40)] == [(2, 5, 8, 11), (4, 11, 17, 23), (9, 19, 29, 39)]
    assert all(spread_blocks(n)[-1] == n - 1 and len({*spread_blocks(n)}) == 4 for n in range(4, 41))
