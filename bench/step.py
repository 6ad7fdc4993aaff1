"""Images a second of a training step, beside a plain step with the same weights; one JSON line.

``python bench/step.py [CASE] [PRECISION] [ROUNDS] [SETTING=VALUE …]``: CASE is vit_small, small_views, vit_base or vit_large;
PRECISION fp32 or bf16; settings are those of ``speed`` (attention, checkpointing, compile, optimizer) and ``drop_path``, the
drop rate of the backbone, for our step alone, and ``batch`` for both. With a drop rate the first losses differ, and
``backbone_tflops`` counts what was skipped as if it had been computed.

The plain step is what one writes first: global and local views in passes of their own, torch's own attention, autocast, all
scores at once, Sinkhorn-Knopp on them, log-softmax, clipping per network, AdamW, and the moving average. Both steps begin with
equal weights and must agree on the first loss. Each kind lives in a process of its own, so that peak memory is that of one
kind alone, and so that on a processor the plain step has the C library's memory as it comes, ours as the product sets it
(``base.allocator.keep_freed_memory``). ``plain_kept`` is the plain step with that setting. On a processor they take turns, for
its speed drifts; on a GPU one comes after the other, for each may need most of its memory.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoforge.base.allocator import keep_freed_memory
from dinoforge.base.hardware import Precision, compute_context, cores, matmul_rate, processor, versions
from dinoforge.base.memory import peak_bytes
from dinoforge.base.schedule import Cosine, Ramp
from dinoforge.data.batch import Batch, masked_positions
from dinoforge.data.masks import MaskConfig, draw_masks
from dinoforge.loss.koleo import koleo_loss
from dinoforge.model.heads import HeadConfig
from dinoforge.model.table import build
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.train.loop import fit
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import StepSpeed, quicken
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import Networks, ObjectiveConfig, Pretrain, networks, teacher_of


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained on what."""

    backbone: VitConfig
    batch: int
    globals: int
    locals: int
    local_views: int = 8
    prototypes: int = 65_536


CASES = {
    "vit_small": Case(VitConfig(), 4, 224, 98),
    "small_views": Case(VitConfig(width=192, heads=3, patch=8, pixels=64), 32, 64, 32, prototypes=4096),
    "vit_base": Case(VitConfig(width=768, heads=12), 64, 224, 98),
    "vit_large": Case(VitConfig(width=1024, depth=24, heads=16), 32, 224, 98, prototypes=131_072),
}


def chosen(name: str, settings: dict[str, str]) -> tuple[Case, float, StepSpeed]:
    """What is trained, the drop rate of our backbone, and how our step is computed."""
    speed = dict(settings)
    batch, drop_path = int(speed.pop("batch", CASES[name].batch)), float(speed.pop("drop_path", 0))
    return replace(CASES[name], batch=batch), drop_path, StepSpeed.build(speed)


WARM_UP = 4
"""Steps that do not count: the first update makes AdamW's moments, and memory settles after a few."""
TEMPERATURE, RATE, DECAY, MOMENTUM = 0.05, 1e-4, 0.04, 0.996


def made(case: Case, drop_path: float = 0.0) -> tuple[Pretrain, Batch, PlanConfig]:
    """Networks, a batch of noise with real masks, and a plan whose schedules stand still."""
    backbone = case.backbone.model_copy(update={"drop_path": drop_path})
    head = HeadConfig(prototypes=case.prototypes)
    config = ObjectiveConfig(group=case.batch, head=head)
    student = networks(build(backbone, seed=0), config, seed=0)
    grid = case.globals // case.backbone.patch
    masks = draw_masks(random.Random(0), views=2 * case.batch, grid=(grid, grid), config=MaskConfig())
    masks = masks.unflatten(0, (2, case.batch))
    index, weight = masked_positions(masks)
    torch.manual_seed(0)
    batch = Batch(
        torch.randn(2, case.batch, 3, case.globals, case.globals),
        torch.randn(case.local_views, case.batch, 3, case.locals, case.locals),
        masks, index, weight, (0,),
    )  # fmt: skip
    return Pretrain(student, teacher_of(student), config, seed=0), batch, still()


def still() -> PlanConfig:
    """Rates and temperatures that are the same at every step."""
    return PlanConfig(
        images=10**6, batch=4, rate_scaling="none", layer_decay=1.0, patch_rate=1.0, last_layer_frozen=0.0,
        learning_rate=Cosine(peak=RATE, end=RATE), weight_decay=Cosine(peak=DECAY, end=DECAY),
        teacher_momentum=Cosine(peak=MOMENTUM, end=MOMENTUM), teacher_temperature=Ramp(start=TEMPERATURE, end=TEMPERATURE),
    )  # fmt: skip


def ours(
    case: Case, precision: Precision, device: torch.device, *, drop_path: float, speed: StepSpeed
) -> Callable[[], float]:
    """A step of the product: what ``dinoforge pretrain`` does between two batches."""
    step, batch, plan = made(case, drop_path)
    step, batch = step.to(device), batch.to(device)
    quicken(step, speed, device)
    adamw = optimizer(step.student, plan, fused=fused(speed.optimizer, device))
    losses: list[Tensor] = []

    def once() -> float:
        compute = compute_context(precision, device)
        fit(
            step,
            adamw,
            [batch],
            plan=plan,
            steps=10**6,
            compute=compute,
            observers=[lambda done: losses.append(done.losses["total"])],
        )
        return losses.pop().item()

    return once


def plain(case: Case, precision: Precision, device: torch.device) -> Callable[[], float]:
    """A step as it is first written."""
    step, batch, _ = made(case)
    student, teacher, batch = step.student.to(device).train(), step.teacher.to(device), batch.to(device)
    adamw = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=DECAY)
    views, images = batch.globals.shape[:2]
    wide, near = batch.globals.flatten(0, 1), batch.locals.flatten(0, 1)
    masks = batch.masks.flatten(0, 1)

    def once() -> float:
        adamw.zero_grad(set_to_none=True)
        with compute_context(precision, device):
            with torch.no_grad():
                image, patches = plain_backbone(teacher.backbone, wide, None)
                wanted, wanted_patches = (
                    plain_sinkhorn(part)
                    for part in plain_head(teacher, torch.cat([image, patches[batch.masked_index]])).split(
                        [len(image), len(batch.masked_index)]
                    )
                )
            image, patches = plain_backbone(student.backbone, wide, masks)
            local, _ = plain_backbone(student.backbone, near, None)
            tokens = [torch.cat([image, local]), patches[batch.masked_index]]
            scores, patch_scores = plain_head(student, torch.cat(tokens)).split([len(part) for part in tokens])
        scores, patch_scores = (part.float() / 0.1 for part in (scores, patch_scores))
        log_p = scores.log_softmax(-1).split(images)
        targets = wanted.split(images)
        pairs = views * (len(log_p) - 1)
        dino = sum(
            -(targets[t] * one).sum(-1).mean()
            for t in range(views) for s, one in enumerate(log_p) if s != t
        ) / pairs  # fmt: skip
        ibot = -(wanted_patches * patch_scores.log_softmax(-1)).sum(-1)
        ibot = (ibot * batch.mask_weight).sum() / len(wide)
        koleo = sum(koleo_loss(view, group=images) for view in image.split(images))
        loss = dino + ibot + 0.1 * koleo
        loss.backward()
        for network in student.children():
            nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        adamw.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)
        return float(loss.item())

    return once


def plain_backbone(vit: Vit, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Class tokens, and all patches one behind the other."""
    x = vit.embed(images, masks)
    for block in vit.blocks:
        rows, tokens, width = x.shape
        qkv = block.attn.qkv(block.norm1(x)).view(rows, tokens, 3, block.attn.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(rows, tokens, width)
        x = x + block.ls1.gamma * block.attn.proj(mixed)
        x = x + block.ls2.gamma * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    x = vit.norm(x)
    return x[:, 0], x[:, 1:].flatten(0, 1)


def plain_head(role: Networks, tokens: Tensor) -> Tensor:
    """Scores of all prototypes."""
    head = role.dino_head
    last = head.last_layer
    weight = last.weight_v * (last.weight_g / last.weight_v.norm(dim=1, keepdim=True))
    return F.linear(F.normalize(head.mlp(tokens).float(), dim=-1), weight)


def plain_sinkhorn(scores: Tensor) -> Tensor:
    """Three rounds on the scores' exponentials, rows and columns in turn."""
    q = (scores.float() / TEMPERATURE).exp().T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= len(q)
        q /= q.sum(0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).T


def flops(case: Case) -> float:
    """Operations of an image's matrix products in both passes through the backbones, heads left out (2 a multiply-add).

    Of a block on T tokens of D channels: 24 T D^2 for the linear layers, 4 T^2 D for attention. The student's backward pass
    costs twice its forward pass; the teacher has none and sees global views only.
    """
    vit = case.backbone

    def view(side: int) -> float:
        tokens = (side // vit.patch) ** 2 + 1
        return vit.depth * (24 * tokens * vit.width**2 + 4 * tokens**2 * vit.width)

    return 3 * (2 * view(case.globals) + case.local_views * view(case.locals)) + 2 * view(case.globals)


class Child:
    """One kind of step in a process of its own, which takes a step whenever it is told to."""

    def __init__(self, kind: str, case: str, precision: str, device: str, settings: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--serve", kind, case, precision, device, json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> tuple[float, float, int]:
        """Seconds, loss, and the most bytes held until now."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(1)  # it has said why
        seconds, loss, held = json.loads(answer)
        return seconds, loss, held


def serve(kind: str, name: str, precision: Precision, device: str, settings: str) -> None:
    """What a child does."""
    where = torch.device(device)
    case, drop_path, speed = chosen(name, json.loads(settings))
    if kind == "plain_kept":
        keep_freed_memory()
    mine = kind == "ours"
    once = ours(case, precision, where, drop_path=drop_path, speed=speed) if mine else plain(case, precision, where)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = once()  # read from the device, so it has been waited for
        print(json.dumps([time.perf_counter() - began, loss, peak_bytes(where)]), flush=True)


def measured(children: dict[str, Child], rounds: int) -> dict[str, list[tuple[float, float, int]]]:
    """Of every kind its first step and then so many steps, taken in turns; what comes between them does not count."""
    steps = {kind: [child.step()] for kind, child in children.items()}
    for child in children.values():
        for _ in range(WARM_UP):
            child.step()
    for _ in range(rounds):
        for kind, child in children.items():
            steps[kind].append(child.step())
    for child in children.values():
        child.process.communicate()
    return steps


def agree(first: dict[str, float], precision: Precision) -> bool:
    """Whether all kinds of step begin at one loss, as far as their precision lets them."""
    near = 1e-3 if precision == "fp32" else 2e-2
    return all(
        math.isclose(loss, first["ours"], rel_tol=near) for loss in first.values()
    )  # false where one is no number


def main(name: str, precision: Precision, rounds: int, settings: dict[str, str]) -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case, _, _ = chosen(name, settings)
    rate = matmul_rate(torch.float32, side=2048, device=device)
    kinds = ("ours", "plain", "plain_kept") if device.type == "cpu" else ("ours", "plain")
    steps: dict[str, list[tuple[float, float, int]]] = {}
    for together in [kinds] if device.type == "cpu" else [(kind,) for kind in kinds]:
        steps |= measured({kind: Child(kind, name, precision, str(device), settings) for kind in together}, rounds)
    taken = {kind: [seconds for seconds, _, _ in found[1:]] for kind, found in steps.items()}
    first = {kind: loss for kind, ((_, loss, _), *_) in steps.items()}
    held = {kind: most for kind, (*_, (_, _, most)) in steps.items()}
    images = {kind: case.batch / median(found) for kind, found in taken.items()}
    if not agree(first, precision) and "drop_path" not in " ".join(settings):
        sys.exit(f"step: the first losses are not the same number: {first}.")
    print(
        json.dumps(
            {
                "bench": "step", "case": name, "precision": precision, "settings": settings, "rounds": rounds,
                "batch": case.batch,
                "images_per_second": {kind: round(value, 3) for kind, value in images.items()},
                "ours_over": {
                    kind: round(median(b / a for a, b in zip(taken["ours"], taken[kind], strict=True)), 3)
                    for kind in kinds[1:]
                },
                "first_loss": {kind: round(loss, 4) for kind, loss in first.items()}, "peak_bytes": held,
                "backbone_tflops": {kind: round(value * flops(case) / 1e12, 3) for kind, value in images.items()},
                "fp32_product_gflops": round(rate / 1e9), "threads": torch.get_num_threads(), "cores": cores(),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(), **versions(),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])  # type: ignore[arg-type]
    else:
        words = [word for word in sys.argv[1:] if "=" not in word]
        given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
        case_name, wish, count = [*words, *["vit_small", "bf16", "5"][len(words) :]]
        main(case_name, "fp32" if wish == "fp32" else "bf16", int(count), given)
