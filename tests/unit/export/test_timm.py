"""A folder of timm's form: read by a stand-in that builds the transformer from ``config.json`` alone.

timm itself pulls torchvision, which does not load beside a CPU build of torch; where it is there, the contract test of exports
uses it.
"""

import json
import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from dinoforge.base.errors import WeightsError
from dinoforge.export import timm
from dinoforge.export.compare import compared, judge, sizes
from dinoforge.export.timm import TARGET, settings
from dinoforge.model.processor import timm_preprocessing
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Preprocessing
from perturbed import perturbed

SIZE = {"position_offset": 0.0, "position_antialias": True}
SMALL = {"width": 64, "depth": 2, "heads": 1, "patch": 8, "pixels": 32}


class StandIn(nn.Module):
    """What timm's transformer computes with these arguments, written down from what they mean there."""

    def __init__(self, args, state, *, gated):
        super().__init__()
        self.args, self.state, self.gated, self.output_fmt = args, state, gated, "NCHW"
        self.num_prefix_tokens = 1 + args.get("reg_tokens", 0)
        assert state["patch_embed.proj.weight"].shape[1] == args["in_chans"]
        hidden = int(args["embed_dim"] * args["mlp_ratio"])
        assert state["blocks.0.mlp.fc1.weight"].shape == (hidden, args["embed_dim"])
        assert sum(name.endswith("norm1.weight") for name in state) == args["depth"]

    def forward_features(self, images):
        args, s = self.args, self.state
        x = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=args["patch_size"])
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        table, side = s["pos_embed"], args["img_size"] // args["patch_size"]
        before = 0 if args.get("no_embed_class") else 1
        assert table.shape[1] == before + side * side
        if (rows, columns) != (side, side):
            assert args["dynamic_img_size"]
            grid = table[:, before:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True).flatten(2).mT
            table = torch.cat([table[:, :before], grid], dim=1)
        first = [s["cls_token"], *([s["reg_token"]] if "reg_token" in s else [])]
        first = [token.expand(len(x), -1, -1) for token in first]
        x = torch.cat([*first, x + table], dim=1) if not before else torch.cat([*first, x], dim=1) + table
        for number in range(args["depth"]):
            x = self.block(x, {k.split(".", 2)[2]: v for k, v in s.items() if k.startswith(f"blocks.{number}.")})
        return F.layer_norm(x, x.shape[-1:], s["norm.weight"], s["norm.bias"], 1e-6)

    def block(self, x, s):
        y = F.layer_norm(x, x.shape[-1:], s["norm1.weight"], s["norm1.bias"], 1e-6)
        qkv = F.linear(y, s["attn.qkv.weight"], s.get("attn.qkv.bias")).unflatten(-1, (3, self.args["num_heads"], -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        y = (weights @ value).transpose(1, 2).flatten(2)
        y = F.linear(y, s["attn.proj.weight"], s.get("attn.proj.bias"))
        x = x + y * s.get("ls1.gamma", torch.ones(1))
        y = F.layer_norm(x, x.shape[-1:], s["norm2.weight"], s["norm2.bias"], 1e-6)
        y = F.linear(y, s["mlp.fc1.weight"], s.get("mlp.fc1.bias"))
        if self.gated:
            gate, y = y.chunk(2, dim=-1)
            y = F.silu(gate) * y
        else:
            y = F.gelu(y)
        return x + F.linear(y, s["mlp.fc2.weight"], s.get("mlp.fc2.bias")) * s.get("ls2.gamma", torch.ones(1))

    def forward_head(self, tokens, *, pre_logits):
        assert pre_logits
        return tokens[:, 0]


@pytest.fixture
def library(monkeypatch):
    """A module of timm's calls."""

    def create(name, *, pretrained, num_classes):
        kind, _, folder = name.partition(":")
        assert (kind, pretrained, num_classes) == ("local-dir", True, 0)
        with open(f"{folder}/config.json") as file:  # noqa: PTH123
            facts = json.load(file)
        made.update(facts)
        return StandIn(
            facts["model_args"], load_file(f"{folder}/model.safetensors"),
            gated=facts["architecture"] == "vit_giant_patch14_dinov2",
        )  # fmt: skip

    made = {}
    module = types.ModuleType("timm")
    module.create_model, module.__version__, module.__spec__ = create, "0", types.SimpleNamespace()
    module.data = types.SimpleNamespace(resolve_model_data_config=lambda _: made["pretrained_cfg"])
    monkeypatch.setitem(sys.modules, "timm", module)
    return made


KINDS = {
    "mlp": VitConfig(**SMALL, **SIZE),
    "registers": VitConfig(**SMALL, registers=3, **SIZE),
    "swiglu, registers": VitConfig(**SMALL, registers=2, ffn="swiglu", **SIZE),
    "offset": VitConfig(**SMALL),
    "no factors, no biases": VitConfig(**SMALL, layerscale=None, qkv_bias=False, proj_bias=False, ffn_bias=False, **SIZE),
    "channels": VitConfig(**SMALL, channels=5, **SIZE),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_timm_reads_what_was_written(name, tmp_path, library):
    backbone = perturbed(KINDS[name], short_side=40, side=32)
    TARGET.refuse(backbone)
    written = TARGET.write(tmp_path, backbone)
    reopened = TARGET.reopen(tmp_path, written)
    assert reopened.compared
    assert reopened.runtime == "StandIn of timm 0"
    where = sizes(32, 8)
    seen = compared(written.backbone.module, reopened.features, where, channels=backbone.config.channels)
    judge(seen, TARGET.bound, name="to=timm")
    assert (written.backbone is backbone) == (name != "offset")
    if name == "offset":  # by its own rule; the backbone itself resamples otherwise
        with pytest.raises(WeightsError, match="features differ"):
            judge(compared(backbone.module, reopened.features, where, channels=3), TARGET.bound, name="x")
    cfg = library["pretrained_cfg"]
    assert cfg["input_size"] == [backbone.config.channels, 32, 32]
    assert cfg["crop_pct"] == 0.8
    assert len(cfg["mean"]) == backbone.config.channels


def test_without_timm_it_is_said_that_it_was_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "installed", lambda _: False)
    written = TARGET.write(tmp_path, perturbed(KINDS["registers"]))
    reopened = TARGET.reopen(tmp_path, written)
    assert not reopened.compared
    assert "timm is not installed" in reopened.runtime


@pytest.mark.parametrize("hidden", [4, 488, 920, 1536, 4096, 6144])
@pytest.mark.parametrize("width", [3, 448, 384, 1536, 1025])
def test_the_ratio_gives_the_hidden_width_whatever_is_rounded(hidden, width):
    """timm computes int(width * ratio), and 448 * (488 / 448) is 487.99999999999994."""
    for config, due in (
        (VitConfig(width=width, heads=1), hidden),
        (VitConfig(width=width, heads=1, ffn="swiglu"), 2 * hidden),
    ):
        assert int(width * settings(config, Preprocessing(), hidden=hidden)["model_args"]["mlp_ratio"]) == due


@pytest.mark.parametrize(
    ("gated", "name"), [("mlp", "vit_small_patch16_dinov3"), ("swiglu", "vit_small_plus_patch16_dinov3")]
)
def test_rotary_positions_are_of_timms_other_class(gated, name):
    config = VitConfig(**SMALL, positions="rope", registers=4, ffn=gated, norm_eps=1e-5)
    facts = settings(config, Preprocessing(), hidden=168)
    assert facts["architecture"] == name
    assert facts["model_args"]["num_reg_tokens"] == 4
    assert "reg_tokens" not in facts["model_args"]
    assert int(64 * facts["model_args"]["mlp_ratio"]) == 168


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VitConfig(**SMALL, proj_bias=False, **SIZE), "has one switch for backbone.proj_bias=False and backbone.ffn_bias=True"),
        (VitConfig(**SMALL, positions="rope", norm_eps=1e-5, ffn_bias=False), "no form for backbone.ffn_bias=false"),
        (VitConfig(**{**SMALL, "heads": 2}, **SIZE), r"to=timm: timm DINOv2 has no form for backbone.heads=2 \(there it is 1\)\.$"),
    ],
)  # fmt: skip
def test_what_timm_cannot_express(config, message):
    with pytest.raises(WeightsError, match=message):
        TARGET.refuse(perturbed(config))


@pytest.mark.parametrize(("side", "short"), [(224, 256), (16, 93), (16, 186), (518, 592)])
def test_timm_resizes_to_the_same_short_side(side, short):
    """It divides the side by ``crop_pct`` and rounds down, so the quotient must not fall below."""
    facts = settings(VitConfig(pixels=16, patch=16), Preprocessing(side=side, short_side=short), hidden=1)[
        "pretrained_cfg"
    ]
    assert math.floor(facts["input_size"][-1] / facts["crop_pct"]) == short
    assert timm_preprocessing(facts)[0] == Preprocessing(side=side, short_side=short)
