"""Parameter groups, AdamW and clipping as DINOv2 does them (training code; Loshchilov & Hutter 2019 for the decay)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinoforge.base import dist
from dinoforge.base.schedule import share
from dinoforge.train.continuation import ContinueConfig
from dinoforge.train.plan import PlanConfig, Scheduled

_TOKENS = ("cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Multipliers:
    """What the schedules' values are multiplied with for one parameter."""

    rate: float
    decay: float
    last_layer: bool
    opens: float = 0.0
    """Share of the plan before which the rate is 0."""


def multipliers(name: str, *, blocks: int, plan: PlanConfig, continuation: ContinueConfig | None = None) -> Multipliers:
    """The multipliers of a parameter, by its name inside its sub-module.

    The rate falls by ``layer_decay`` a block from the final norm (1) down to the tokens, positions and patch embedding
    (``layer_decay ** (blocks + 1)``). Tokens and positions are decayed, as in the released code.

    Args:
        blocks: Depth of the sub-module; 0 for a head, whose rate is 1 throughout.
        continuation: How a backbone goes on that has been trained before, where this is a parameter of such a one.
    """
    block = _BLOCK.match(name)
    above = 0
    if blocks and name.startswith(_TOKENS):
        above = blocks + 1
    elif blocks and block:
        above = blocks - int(block.group(1))
    rate = plan.layer_decay**above
    if "patch_embed" in name:
        rate *= plan.patch_rate
    opens = 0.0
    if continuation is not None:
        if name == "mask_token":  # no feature depends on it; it learns like a head
            rate = 1.0
        else:
            rate, opens = rate * continuation.backbone_rate, continuation.opens(above, blocks=blocks)
    plain = name.endswith(".bias") or "norm" in name or "gamma" in name
    return Multipliers(rate=rate, decay=0.0 if plain else 1.0, last_layer="last_layer" in name, opens=opens)


def depth(module: nn.Module) -> int:
    """Number of transformer blocks among a module's parameters."""
    found = [_BLOCK.match(name) for name, _ in module.named_parameters()]
    return max((int(match.group(1)) + 1 for match in found if match), default=0)


def optimizer(
    student: nn.Module, plan: PlanConfig, *, fused: bool = False, continuation: ContinueConfig | None = None
) -> torch.optim.AdamW:
    """AdamW over the student's sub-modules; parameters with equal multipliers share a group, in order of appearance.

    Args:
        fused: One kernel updates everything of a parameter, instead of one kernel an operation for all parameters.
    """
    groups: dict[Multipliers, list[Tensor]] = {}
    for label, module in student.named_children():
        blocks, how = depth(module), continuation if label == "backbone" else None
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(multipliers(name, blocks=blocks, plan=plan, continuation=how), []).append(parameter)
    settings: list[dict[str, Any]] = [{"params": members, "multipliers": key} for key, members in groups.items()]
    # The rate is set before every step; it only must not be AdamW's own default.
    return torch.optim.AdamW(settings, lr=0.0, betas=plan.betas, weight_decay=0.0, foreach=not fused, fused=fused)


def fused(wish: Literal["auto", "foreach", "fused"], device: torch.device) -> bool:
    """Whether one kernel updates everything of a parameter: what is asked for, else what is faster on that device."""
    return wish == "fused" or (wish == "auto" and device.type in {"cpu", "cuda"})


def set_rates(optimizer: torch.optim.Optimizer, at: Scheduled, *, factor: float = 1.0) -> None:
    """Give every group its learning rate, times ``factor``, and its weight decay of this step."""
    for group in optimizer.param_groups:
        factors: Multipliers = group["multipliers"]
        rate = at.last_layer_rate if factors.last_layer else at.learning_rate
        group["lr"] = rate * factors.rate * factor if at.step >= share(factors.opens, at.steps) else 0.0
        group["weight_decay"] = at.weight_decay * factors.decay


def update(optimizer: torch.optim.Optimizer, *, unless: Tensor) -> None:
    """One step of the optimiser, unless that number is 1: then weights and moments stay as they are.

    The fused kernel reads it on the device. Otherwise the host does, and waits for it.
    """
    if optimizer.defaults["fused"]:
        optimizer.found_inf = unless  # type: ignore[attr-defined]  # what a gradient scaler would set
        optimizer.step()
    elif not unless:
        optimizer.step()


def clip(student: nn.Module, largest: float) -> dict[str, Tensor]:
    """Clip the gradients of each sub-module to norm ``largest`` on its own; the norms before, on the device."""
    return {
        name: dist.whole(nn.utils.clip_grad_norm_(module.parameters(), largest, foreach=True))
        for name, module in student.named_children()
    }


def named_state(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's tensors as (``parameter/kind``, tensor): names survive a change of the groups, numbers do not."""
    for name, parameter in parameters:
        for kind, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{kind}", value


def load_named_state(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]], state: dict[str, Tensor]
) -> None:
    """Put back what ``named_state`` gave; ``state`` is left with what no parameter wanted.

    The moments go to their parameter's device. The number of steps stays on the CPU, where AdamW keeps it unless it is
    capturable or fused: on a GPU its value would have to be waited for, parameter by parameter.
    """
    on_device = {
        id(parameter): group.get("capturable") or group.get("fused")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in parameters:
        kinds = [key for key in state if key.rpartition("/")[0] == name]
        if kinds:
            found = {key.rpartition("/")[2]: state.pop(key) for key in kinds}
            optimizer.state[parameter] = {
                kind: value.to("cpu" if kind == "step" and not on_device.get(id(parameter)) else parameter.device)
                for kind, value in found.items()
            }
