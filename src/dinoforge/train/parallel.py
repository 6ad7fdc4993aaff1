"""What makes a step fast without being part of its mathematics: applied to finished networks, from outside, in this order.

1. memory that is freed is kept for the next tensor (on a processor);
2. how attention is computed (``model.attention``);
3. activation checkpointing of the student's blocks, so that compiling sees what is computed again;
4. compiling of every block of both networks: blocks are alike, so one of them is compiled for all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dinoforge.base.allocator import keep_freed_memory
from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError
from dinoforge.model.attention import Way
from dinoforge.model.layers import Attention
from dinoforge.train.step import Pretrain

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""What selective checkpointing keeps: it is dear to compute. The rest (norms, GELU, scores' softmax) is cheap, and large."""


class StepSpeed(Config):
    """How a step is computed; no field may change a result beyond rounding."""

    attention: Way = "auto"
    """How attention is computed: by torch's fused kernel, written out, or what is faster here for so many tokens."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again rather than kept: none, all but matrix products (selective), all (full)."""
    compile: bool = False
    """Compile every block of the backbone (torch.compile): the first step takes a minute or more, the others less."""
    optimizer: Literal["auto", "foreach", "fused"] = "auto"
    """How AdamW updates: kernel by kernel for all parameters, in one kernel, or what is faster here."""


def quicken(step: Pretrain, speed: StepSpeed, device: torch.device) -> None:
    """Apply what was asked for to the networks of a step.

    Raises:
        ConfigError: Asked for what this backbone or this machine does not have.
    """
    if device.type == "cpu":
        keep_freed_memory()
    for module in step.modules():
        if isinstance(module, Attention):
            module.way = speed.attention
    student, teacher = (_blocks(role.backbone) for role in (step.student, step.teacher))
    for setting, asked in (("checkpointing", speed.checkpointing != "none"), ("compile", speed.compile)):
        if asked and not student:
            raise ConfigError(f"speed.{setting} works on blocks, which this backbone does not have; leave it out.")
    if speed.checkpointing != "none":
        for block in student:
            _checkpoint(block, selective=speed.checkpointing == "selective")
    if speed.compile:
        check_compiler(device)
        for block in (*student, *teacher):
            block.compile()


def check_compiler(device: torch.device) -> None:
    """Refuse to compile for a processor where the compiler of C++ is missing that torch calls.

    Raises:
        ConfigError: There is none.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ConfigError("speed.compile=true needs a C++ compiler, and neither g++ nor clang++ is found; install one.")


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    return list(getattr(backbone, "blocks", []))


def _checkpoint(block: nn.Module, *, selective: bool) -> None:
    """Keep of a block's activations the input alone, or besides it its products, and compute the rest again."""
    contexts: dict[str, Any] = {}
    if selective:
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    forward: Callable[..., Any] = block.forward

    def again(*args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **contexts)

    block.forward = again


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
