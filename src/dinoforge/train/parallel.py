"""What makes a step fast without being part of its mathematics: applied to finished networks, from outside, in this order.

1. memory that is freed is kept for the next tensor (on a processor);
2. how attention is computed (``model.attention``);
3. activation checkpointing of the student's blocks, so that compiling sees what is computed again;
4. compiling of every block of all networks: blocks are alike, so one of them is compiled for all;
5. sharding over the ranks, last: it takes a block's parameters away between uses, and what computes the block again or was
   compiled from it must find them there.

Optimiser and moving average come after it: they are made of the shards, so each rank updates its own part alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dinoforge.base import dist
from dinoforge.base.allocator import keep_freed_memory
from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Precision
from dinoforge.model.attention import Way
from dinoforge.model.layers import Attention
from dinoforge.train.step import Pretrain

# Features are views of a backbone's last tokens, and nothing is ever written into them.
warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(\w+\) returned a view tensor")

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
    sharding: Literal["state", "all"] = "state"
    """What several ranks divide among them: gradients, moments and the weights between steps (state), or the weights between
    uses too (all): less memory, and the student's weights travel twice a step (FSDP; ZeRO stages 2 and 3)."""
    reduce: Literal["fp32", "bf16"] = "fp32"
    """In which precision ranks add up the blocks' gradients; heads, tokens and norms always in fp32."""


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
    anchor = [] if step.gram is None else _blocks(step.gram.backbone)
    for setting, asked in (("checkpointing", speed.checkpointing != "none"), ("compile", speed.compile)):
        if asked and not student:
            raise ConfigError(f"speed.{setting} works on blocks, which this backbone does not have; leave it out.")
    if speed.checkpointing != "none":
        for block in student:
            _checkpoint(block, selective=speed.checkpointing == "selective")
    if speed.compile:
        check_compiler(device)
        for block in (*student, *teacher, *anchor):
            block.compile()


def shard(step: Pretrain, speed: StepSpeed, device: torch.device, precision: Precision) -> None:
    """Spread student and teachers over all ranks, alike (FSDP2; Zhao et al. 2023); on one process nothing happens.

    A unit is what is gathered at once: each block, the tokens around them, the layers of a head, its prototypes. In bf16
    blocks travel in bf16; what stands outside of them stays in fp32, as on one process, and so does the residual stream.
    Gradients are averaged over the ranks.
    """
    if not dist.active():
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = dist.mesh(device.type)
    half = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.bfloat16 if speed.reduce == "bf16" else torch.float32,
        cast_forward_inputs=False,
    )
    roles = dict.fromkeys((step.student, step.teacher, step.average))
    networks: list[tuple[Any, list[nn.Module]]] = [(role.backbone, role.tops) for role in roles]
    if step.gram is not None:
        networks.append((step.gram.backbone, []))
    for backbone, tops in networks:
        again = speed.sharding == "all" or backbone is not step.student.backbone
        how: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": again}
        for block in _blocks(backbone):
            fully_shard(block, mp_policy=half if precision == "bf16" else MixedPrecisionPolicy(), **how)
        fully_shard(backbone, **how)
        for top in tops:
            fully_shard(top, **how)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Have all of a sharded module's weights on every rank, so that a rank may use it without the others.

    All ranks enter and leave together. A module that is not sharded is left as it is.
    """
    units: list[Any] = [unit for unit in module.modules() if hasattr(unit, "unshard")]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


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
