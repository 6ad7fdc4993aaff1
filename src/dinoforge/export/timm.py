"""A folder of timm's form: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens it.

timm names a model by a function that draws up the architecture, and ``model_args`` change what it draws up. Which function
and which arguments make our transformers is known from timm's source (Apache-2.0, models/vision_transformer.py and
models/eva.py); where timm is installed it is tried, elsewhere it is said that it was not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dinoforge.base.errors import WeightsError
from dinoforge.base.files import write_json
from dinoforge.export.layout import expressible, written
from dinoforge.export.target import Reopened, Target, Written, installed
from dinoforge.model.foreign import open_backbone
from dinoforge.model.official import read_state
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone

FILE = "model.safetensors"

_USAGE = """import timm

model = timm.create_model("local-dir:.", pretrained=True, num_classes=0).eval()
tokens = model.forward_features(images)  # [B, C, Y, X], normalised
tokens[:, 0], tokens[:, model.num_prefix_tokens :]  # class token, patches row by row"""


def _refuse(backbone: Backbone) -> None:
    expressible("timm", backbone)
    config: VitConfig = backbone.config
    rope = config.positions == "rope"
    if rope and not (config.proj_bias and config.ffn_bias):
        lacking = "proj_bias" if not config.proj_bias else "ffn_bias"
        raise WeightsError(f"to=timm: its DINOv3 has no form for backbone.{lacking}=false.")
    if config.proj_bias != config.ffn_bias:
        raise WeightsError(
            f"to=timm has one switch for backbone.proj_bias={config.proj_bias} and backbone.ffn_bias={config.ffn_bias}."
        )


def _write(folder: Path, backbone: Backbone) -> Written:
    found = written(folder, backbone, "timm", file=FILE, beside={})
    state = read_state(folder / FILE)
    write_json(folder / "config.json", settings(backbone.config, backbone.preprocessing, hidden=_hidden(state)))
    return found


def _hidden(state: dict[str, Any]) -> int:
    """Channels between the two feed-forward layers."""
    return int(state["blocks.0.mlp.fc2.weight"].shape[1])


def settings(config: VitConfig, how: Preprocessing, *, hidden: int) -> dict[str, Any]:
    """``config.json`` of timm's form.

    Args:
        hidden: Channels that the second feed-forward layer takes.
    """
    gated, rope = config.ffn == "swiglu", config.positions == "rope"
    # timm multiplies and cuts off what is behind the point; half a channel more than due keeps it from falling below
    inside = 2 * hidden if gated and not rope else hidden
    args: dict[str, Any] = {
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "in_chans": config.channels,
        "img_size": config.pixels,
        "mlp_ratio": (inside + 0.5) / config.width,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layerscale,
        "dynamic_img_size": True,
        "global_pool": "token",
    }
    if rope:
        name = "vit_small_plus_patch16_dinov3" if gated else "vit_small_patch16_dinov3"
        args |= {"num_reg_tokens": config.registers}
    else:
        name = "vit_giant_patch14_dinov2" if gated else "vit_small_patch14_dinov2"
        args |= {"proj_bias": config.proj_bias}
        if config.registers:
            args |= {"reg_tokens": config.registers, "no_embed_class": True}
    many = how.channels
    mean, std = (list(v) * (many if len(v) == 1 else 1) for v in (how.mean, how.std))
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": "token",
        "model_args": args,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [many, how.side, how.side],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": _share(how.side, how.short_side),
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def _share(side: int, short_side: int) -> float:
    """The part of the short side that is cut out; timm divides by it, rounds down, and is to find that side again."""
    share = side / short_side
    return share if math.floor(side / share) == short_side else math.nextafter(share, 0.0)


def _reopen(folder: Path, _written: Written) -> Reopened:
    if installed("timm"):
        import timm

        found = open_backbone(f"timm:{folder}")
        return Reopened(found.module, f"{type(found.module.model).__name__} of timm {timm.__version__}")
    again = load_backbone(folder / FILE)
    told = f"timm is not installed (pip install timm); the file was read back by dinoforge, {again.loaded}"
    return Reopened(again.module, told, compared=False)


TARGET = Target(
    title="timm",
    needs=(),
    install="",
    bound=1e-5,
    library="timm",
    usage=_USAGE,
    refuse=_refuse,
    write=_write,
    reopen=_reopen,
)
