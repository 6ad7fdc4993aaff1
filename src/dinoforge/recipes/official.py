"""An official dinov2 training YAML becomes a recipe, with every translated value told.

Its keys and defaults are those of the released training code (ssl_default_config.yaml). Epochs there are a fixed number of
iterations, whatever the data; here lengths are shares of the plan, and the plan counts images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, closest
from dinoforge.recipes.recipe import Recipe
from dinoforge.train.plan import PlanConfig

DEFAULTS: dict[str, dict[str, Any]] = {
    "MODEL": {"WEIGHTS": ""},
    "compute_precision": {"grad_scaler": True, "teacher": {}, "student": {}},
    "dino": {
        "loss_weight": 1.0, "head_n_prototypes": 65_536, "head_bottleneck_dim": 256, "head_nlayers": 3,
        "head_hidden_dim": 2048, "koleo_loss_weight": 0.1,
    },
    "ibot": {
        "loss_weight": 1.0, "mask_sample_probability": 0.5, "mask_ratio_min_max": [0.1, 0.5], "separate_head": False,
        "head_n_prototypes": 65_536, "head_bottleneck_dim": 256, "head_nlayers": 3, "head_hidden_dim": 2048,
    },
    "train": {
        "batch_size_per_gpu": 64, "dataset_path": "ImageNet:split=TRAIN", "output_dir": ".", "saveckp_freq": 20, "seed": 0,
        "num_workers": 10, "OFFICIAL_EPOCH_LENGTH": 1250, "cache_dataset": True, "centering": "centering",
    },
    "student": {
        "arch": "vit_large", "patch_size": 16, "drop_path_rate": 0.3, "layerscale": 1e-5, "drop_path_uniform": True,
        "pretrained_weights": "", "ffn_layer": "mlp", "block_chunks": 0, "qkv_bias": True, "proj_bias": True,
        "ffn_bias": True, "num_register_tokens": 0, "interpolate_antialias": False, "interpolate_offset": 0.1,
    },
    "teacher": {
        "momentum_teacher": 0.992, "final_momentum_teacher": 1, "warmup_teacher_temp": 0.04, "teacher_temp": 0.07,
        "warmup_teacher_temp_epochs": 30,
    },
    "optim": {
        "epochs": 100, "weight_decay": 0.04, "weight_decay_end": 0.4, "base_lr": 0.004, "lr": 0.0, "warmup_epochs": 10,
        "min_lr": 1e-6, "clip_grad": 3.0, "freeze_last_layer_epochs": 1, "scaling_rule": "sqrt_wrt_1024",
        "patch_embed_lr_mult": 0.2, "layerwise_decay": 0.9, "adamw_beta1": 0.9, "adamw_beta2": 0.999,
    },
    "crops": {
        "global_crops_scale": [0.32, 1.0], "local_crops_number": 8, "local_crops_scale": [0.05, 0.32],
        "global_crops_size": 224, "local_crops_size": 96,
    },
    "evaluation": {"eval_period_iterations": 12_500},
}  # fmt: skip
"""What the released code uses where a file says nothing."""

ARCHITECTURES = {
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant2": (1536, 40, 24),
}
"""Width, depth and heads by ``student.arch``."""
_FFN = {"mlp": "mlp", "swiglu": "swiglu", "swiglufused": "swiglu"}
_TARGETS = {"centering": "centring", "sinkhorn_knopp": "sinkhorn"}
_SCALING = {"sqrt_wrt_1024": "sqrt"}

SAME = {
    "dino.loss_weight": "objective.dino_weight",
    "dino.head_n_prototypes": "objective.head.prototypes",
    "dino.head_bottleneck_dim": "objective.head.bottleneck",
    "dino.head_nlayers": "objective.head.layers",
    "dino.head_hidden_dim": "objective.head.hidden",
    "dino.koleo_loss_weight": "objective.koleo_weight",
    "ibot.loss_weight": "objective.ibot_weight",
    "ibot.mask_sample_probability": "data.masks.probability",
    "ibot.mask_ratio_min_max": "data.masks.ratio",
    "train.seed": "seed",
    "train.num_workers": "speed.workers",
    "student.patch_size": "backbone.patch",
    "student.drop_path_rate": "backbone.drop_path",
    "student.layerscale": "backbone.layerscale",
    "student.drop_path_uniform": "backbone.drop_path_uniform",
    "student.qkv_bias": "backbone.qkv_bias",
    "student.proj_bias": "backbone.proj_bias",
    "student.ffn_bias": "backbone.ffn_bias",
    "student.num_register_tokens": "backbone.registers",
    "student.interpolate_antialias": "backbone.position_antialias",
    "student.interpolate_offset": "backbone.position_offset",
    "teacher.momentum_teacher": "plan.teacher_momentum.peak",
    "teacher.final_momentum_teacher": "plan.teacher_momentum.end",
    "teacher.warmup_teacher_temp": "plan.teacher_temperature.start",
    "teacher.teacher_temp": "plan.teacher_temperature.end",
    "optim.weight_decay": "plan.weight_decay.peak",
    "optim.weight_decay_end": "plan.weight_decay.end",
    "optim.base_lr": "plan.learning_rate.peak",
    "optim.min_lr": "plan.learning_rate.end",
    "optim.clip_grad": "plan.clip",
    "optim.patch_embed_lr_mult": "plan.patch_rate",
    "optim.layerwise_decay": "plan.layer_decay",
    "crops.global_crops_scale": "data.augment.global_scale",
    "crops.local_crops_number": "data.augment.local_views",
    "crops.local_crops_scale": "data.augment.local_scale",
    "crops.local_crops_size": "data.augment.local_pixels",
}
"""Keys whose value is taken as it stands."""
RAMP = "teacher.warmup_teacher_temp_epochs"
SHARES = {
    RAMP: "plan.teacher_temperature.length",
    "optim.warmup_epochs": "plan.learning_rate.warmup",
    "optim.freeze_last_layer_epochs": "plan.last_layer_frozen",
}
"""Epochs that become a share of the plan."""
PATCH_HEAD = {
    "ibot.head_n_prototypes": "prototypes",
    "ibot.head_bottleneck_dim": "bottleneck",
    "ibot.head_nlayers": "layers",
    "ibot.head_hidden_dim": "hidden",
}
"""Keys that count only with a head of their own for patches."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A recipe, and how each of its values came about, a line each."""

    recipe: Recipe
    lines: list[str]


def is_official(values: Mapping[str, Any]) -> bool:
    """Whether a file's top-level keys are those of the official form; none of them is a key of ours."""
    return not DEFAULTS.keys().isdisjoint(values)


def translated(values: Mapping[str, Any], *, batch: int | None = None) -> Translation:
    """The recipe that an official file describes; its defaults fill what it leaves out.

    Args:
        batch: Images a step in all, where known; the official form gives those of one GPU and leaves the number of GPUs to
            the launcher. Without it one GPU is assumed.

    Raises:
        ConfigError: An unknown key, or a value that has no meaning here.
    """
    flat = _filled(values)
    group, epochs = flat["train.batch_size_per_gpu"], flat["optim.epochs"]
    if epochs <= 0 or group <= 0:
        raise ConfigError(f"optim.epochs and train.batch_size_per_gpu must be above 0; got {epochs} and {group}.")
    batch = batch or group
    settings: dict[str, Any] = {"data.masks.exact": False}
    lines: list[str] = []

    def put(key: str, path: str, value: Any, note: str = "") -> None:
        settings[path] = value
        lines.append(f"{key} {_plain(flat[key])} -> {path} {_plain(value)}{f'  ({note})' if note else ''}")

    for key, path in SAME.items():
        put(key, path, _reached(flat) if key == "teacher.teacher_temp" else flat[key])
    for key, path in SHARES.items():
        part = flat[key] / epochs
        cut = part > 1 and key != "optim.warmup_epochs"  # without a rate that falls again there is no plan
        put(key, path, 1.0 if cut else part, "all of the plan" if cut else f"share of {_plain(epochs)} epochs")
    gpus = f"{batch / group:g} GPUs" if batch > group else "one GPU assumed; plan.batch= says otherwise"
    put("train.batch_size_per_gpu", "objective.group", group)
    put("train.batch_size_per_gpu", "plan.batch", batch, gpus)
    iterations = epochs * flat["train.OFFICIAL_EPOCH_LENGTH"]
    put("optim.epochs", "plan.images", round(iterations * batch), f"{iterations:g} iterations of {batch} images")
    put("evaluation.eval_period_iterations", "plan.probe_images", flat["evaluation.eval_period_iterations"] * batch)
    for path, value in zip(("width", "depth", "heads"), _chosen(flat, "student.arch", ARCHITECTURES), strict=True):
        put("student.arch", f"backbone.{path}", value)
    put("student.ffn_layer", "backbone.ffn", _chosen(flat, "student.ffn_layer", _FFN))
    put("train.centering", "objective.targets.kind", _chosen(flat, "train.centering", _TARGETS))
    put("optim.scaling_rule", "plan.rate_scaling", _chosen(flat, "optim.scaling_rule", _SCALING))
    put("optim.adamw_beta1", "plan.betas", [flat["optim.adamw_beta1"], flat["optim.adamw_beta2"]])
    put("optim.adamw_beta2", "plan.betas", [flat["optim.adamw_beta1"], flat["optim.adamw_beta2"]])
    for path in ("data.augment.global_pixels", "backbone.pixels"):
        put("crops.global_crops_size", path, flat["crops.global_crops_size"])
    head = {name: flat[key] for key, name in PATCH_HEAD.items()} if flat["ibot.separate_head"] else None
    put("ibot.separate_head", "objective.patch_head", head, "" if head else "shared")
    if flat["student.pretrained_weights"]:
        put("student.pretrained_weights", "init", flat["student.pretrained_weights"])
    code = "Not a key but how its code masks -> data.masks.exact false."
    told = {line.partition(" ")[0] for line in lines} | (PATCH_HEAD.keys() if head else set())
    lines.append(code)
    lines.append("Without meaning here: " + ", ".join(key for key in flat if key not in told) + ".")
    recipe = with_settings(Recipe(plan=PlanConfig(images=1)), settings)
    return Translation(recipe, lines)


def _reached(flat: Mapping[str, Any]) -> float:
    """The temperature that the teacher comes to: its warm-up may be longer than the plan, which then cuts it off."""
    first, last = flat["teacher.warmup_teacher_temp"], flat["teacher.teacher_temp"]
    steps, ramp = (flat[key] * flat["train.OFFICIAL_EPOCH_LENGTH"] for key in ("optim.epochs", RAMP))
    return float(last if ramp <= steps else first + (last - first) * (steps - 1) / (ramp - 1))


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every official key with its dotted name, from the file or by default; ``compute_precision`` stays unread."""
    known = [*DEFAULTS, *(f"{group}.{name}" for group, names in DEFAULTS.items() for name in names)]
    flat = {f"{group}.{name}": value for group, names in DEFAULTS.items() for name, value in names.items()}
    for group, given in values.items():
        if group not in DEFAULTS:
            raise ConfigError(f"Unknown key {group!r} in an official configuration.{closest(str(group), known)}")
        if not isinstance(given, Mapping):
            raise ConfigError(f"{group} is a group of keys in an official configuration; got {given!r}.")
        for name, value in given.items():
            key = f"{group}.{name}"
            if key not in flat:
                raise ConfigError(f"Unknown key {key!r} in an official configuration.{closest(key, known)}")
            flat[key] = _like(key, value, DEFAULTS[group][name])
    return flat


def _like(key: str, value: Any, default: Any) -> Any:
    """A value of the kind that the default is of. YAML 1.1 reads 1e-5 as text."""
    if isinstance(default, (dict, list, str, bool)):
        if type(value) is type(default):
            return value
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            return int(number) if isinstance(default, int) and number == int(number) else number
    kinds = {
        dict: "a group of keys",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    raise ConfigError(f"{key} takes {kinds[type(default)]}; got {value!r}.")


def _chosen(flat: Mapping[str, Any], key: str, table: Mapping[str, Any]) -> Any:
    if flat[key] not in table:
        raise ConfigError(f"{key} must be one of {', '.join(table)}; got {flat[key]!r}.{closest(flat[key], table)}")
    return table[flat[key]]


def _plain(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
