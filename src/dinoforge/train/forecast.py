"""What a run will need before it is started: memory counted on shapes alone, seconds by a few real steps.

The loop itself runs once on tensors without values; every storage that comes to life is counted until it is gone, so the
peak of any recipe is known without having its memory.

Axes: G global and L local views, B images, C channels, Y by X and y by x pixels, N patches, M masked patches.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from dinoforge.base import dist
from dinoforge.base.hardware import Precision, compute_context, wait_for
from dinoforge.base.memory import resident_bytes
from dinoforge.data.augment import GLOBAL_VIEWS, PARAMETERS, AugmentConfig
from dinoforge.data.batch import Batch
from dinoforge.data.masks import MaskConfig
from dinoforge.data.photometric import recolour_floats
from dinoforge.loss import scores
from dinoforge.model.table import BACKBONES, BackboneConfig, build
from dinoforge.model.vit import VitConfig
from dinoforge.train.assembly import assembled, frozen_of, student_of
from dinoforge.train.distil import Design, DistilConfig
from dinoforge.train.loop import Done, fit
from dinoforge.train.optim import fused, optimizer
from dinoforge.train.parallel import StepSpeed, quicken
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import Networks, ObjectiveConfig, teacher_of

PINNED = 2**26
"""What the C library's allocator holds on a CPU beside tensors and what was there before: small objects of Python and of torch,
and the memory around them."""
BANKS = 3
"""How often the features of a probe are there: as the ranks send them, one after the other, and in order."""
VOTES = 256, 65_536
"""Images of the probe that are compared with others at once, and with how many (``evaluate.knn``)."""
HOLES = 0.36
"""What it holds besides, as a share of the activations: holes that they leave and small objects keep apart. Both measured
on runs of vit_micro.toy (at once, in parts of 16), vit_tiny.small_images at 128 images and ViT-S/14 at 16, fp32 and bf16, freed
memory kept (glibc 2.36, AMD EPYC with AVX512-BF16, one thread, 2026-11-30): shares of 0.1 to 0.6, whole runs within 8 %."""

CONTEXT = 2**30 // 2
"""What CUDA and its libraries hold of a GPU beside torch's own count; an assumption."""
FRAGMENTED = 0.05
"""Share of a GPU's live memory that its allocator holds besides, in pieces that nothing fits into; an assumption."""

_ATEN = torch.ops.aten
FORMULAS = flop_registry | {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""Operations of a kernel by its shapes; torch leaves out its fused attention on a processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that the cost of a step depends on."""

    backbone: BackboneConfig
    objective: ObjectiveConfig
    plan: PlanConfig
    augment: AugmentConfig
    masks: MaskConfig
    device: torch.device
    precision: Precision
    speed: StepSpeed = field(default_factory=StepSpeed)
    probe_rows: int = 0
    """Images whose features the quality probe takes in one forward pass."""
    probe_bank: int = 0
    """Images whose features it holds at once, to compare others with."""
    micro_batch: int | None = None
    """Images computed at once, of which a rank's share holds several; null: the share."""
    ranks: int = 1
    """Processes that the batch and the state are divided among."""
    elsewhere: bool = False
    """For a GPU that is not here: counted on shapes of this processor (``device``), without what only processors need."""
    gram: BackboneConfig | None = None
    """Of a Gram teacher that is read from elsewhere; null: as the backbone."""
    teacher: Design | None = None
    """Of a frozen teacher; null: a copy of the student."""
    distil: DistilConfig | None = None
    """How such a teacher is learnt from."""

    @property
    def images(self) -> int:
        """Computed at once."""
        return self.micro_batch or self.plan.batch // self.ranks

    @property
    def anchor(self) -> BackboneConfig | None:
        """Of the Gram teacher, where there is one."""
        return None if self.objective.gram is None else self.gram or self.backbone

    @property
    def on_cpu(self) -> bool:
        """Whether a processor computes it."""
        return self.device.type == "cpu" and not self.elsewhere

    @property
    def parts(self) -> int:
        """Of a rank's share."""
        return self.plan.batch // self.ranks // self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the moment of the run's peak, by part; worker processes are not in it."""

    runtime: int
    """Python, torch and what they load: the resident size of this process after one tiny step; of a GPU elsewhere, CUDA."""
    weights: int
    teacher: int
    """With the Gram teacher, and the student's moving average beside a frozen teacher, where there are such."""
    gradients: int
    optimizer: int
    """Moments of AdamW."""
    activations: int
    """All else that is alive at the peak: activations, prototype scores, targets, casts of weights."""
    data: int
    """The batch, and the bytes it was made from."""
    allocator: int
    """Held by the allocator beyond what is alive."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one step needs."""

    memory: Memory
    flops: float
    """Floating-point operations of the matrix products of a step, on all ranks together."""


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that come to life inside it, and the operations of matrix products.

    It also answers for numbers read from tensors without values: 1, or false. (AdamW reads its own step count.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.flops = 0.0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], torch._subclasses.FakeTensor):
            return False if args[0].dtype is torch.bool else 1.0
        out = func(*args, **(kwargs or {}))
        count = FORMULAS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self._change(size)
        weakref.finalize(storage, self._change, -size)

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def forecast(job: Job) -> Forecast:
    """Memory and operations of a step, without having the memory.

    The runtime's part is what this very process holds after a tiny real step, so the figure is for a run in a process like
    this one. On a GPU it is the device's memory, as torch counts it, and has no runtime part; for one that is not here, stated
    allowances for CUDA and for fragments come on top.
    """
    with dist.apart():
        return _forecast(job)


def _forecast(job: Job) -> Forecast:
    runtime = CONTEXT if job.elsewhere else _runtime(job) if job.on_cpu else 0
    parts = min(job.parts, 2)  # the second is as every further one
    with _few_pieces(job), FakeTensorMode(), Live() as live:
        with torch.device(job.device):
            student = _student(job, BACKBONES[job.backbone.kind][1](job.backbone))
            weights = live.now
            frozen = (
                None
                if job.teacher is None
                else _frozen(job, BACKBONES[job.teacher.backbone.kind][1](job.teacher.backbone))
            )
            gram = None if job.anchor is None else BACKBONES[job.anchor.kind][1](job.anchor)
            average = _student(job, BACKBONES[job.backbone.kind][1](job.backbone)).requires_grad_(False).eval()
            both = live.now
            batches = [_batch(job, job.images) for _ in range(parts)]
            data = live.now - both
        step = assembled(
            student, average, _anchored(job.objective), seed=0, teacher=frozen, how=job.distil, gram=gram
        )  # fmt: skip
        quicken(step, _speed(job), job.device)
        adamw = optimizer(student, job.plan, fused=fused(job.speed.optimizer, job.device))
        before_update: list[int] = []
        adamw.register_step_pre_hook(lambda *_: before_update.append(live.peak))
        fit(
            step, adamw, batches, plan=job.plan, steps=1, parts=parts,
            compute=compute_context(job.precision, job.device),
        )  # fmt: skip
        updating, flops = live.peak, live.flops
        live.peak = alive = live.now
        _look(average.backbone, job)
        looking = live.peak - alive
    moments = 2 * sum(p.nbytes for p in student.parameters() if p.requires_grad)
    more = data // parts * (job.parts - parts)
    data += data // 4  # the bytes that it was made from, which the loader holds until the next batch
    steady = both + moments + data
    extra = {
        # AdamW's moments are made in the first update; from the second step on they are there all the time.
        "step": max(before_update[0] + moments, updating) - steady + data // 5,
        "data": data + _colouring(job),
        "probe": looking,
    }
    busiest = max(extra, key=lambda name: extra[name])
    moving = extra[busiest]
    gradients = min(weights, moving) if busiest == "step" else 0
    data += more + more // 4
    # Between forward and backward every rank has the student's weights whole, or one block's; blocks travel in bf16.
    gathered = 0 if job.ranks == 1 or job.speed.sharding == "all" else weights // (2 if job.precision == "bf16" else 1)
    # Large blocks of their own, which the activations' holes are too small for.
    compared = 4 * (job.probe_bank * BANKS * student.backbone.width + VOTES[0] * min(job.probe_bank, VOTES[1]))
    memory = Memory(
        runtime=runtime,
        weights=weights // job.ranks,
        teacher=(both - weights) // job.ranks,
        gradients=gradients // job.ranks,
        optimizer=moments // job.ranks,
        activations=moving - gradients + gathered,
        data=data,
        allocator=PINNED + int(HOLES * moving) + compared if job.on_cpu else 0,
    )
    if job.elsewhere:
        memory = replace(memory, allocator=int(FRAGMENTED * (memory.total - runtime)))
    return Forecast(memory=memory, flops=flops / parts * job.parts * job.ranks)


def _speed(job: Job) -> StepSpeed:
    """There is nothing to compile for; on a GPU attention is torch's kernel."""
    fused = {"attention": "fused"} if job.elsewhere and job.speed.attention == "auto" else {}
    return job.speed.model_copy(update={"compile": False, **fused})


@contextmanager
def _few_pieces(job: Job) -> Iterator[None]:
    """Count the scores of large batches in some blocks and pieces of a hundredth: by the thousands they would take minutes."""
    rows = round(GLOBAL_VIEWS * job.plan.batch * _masked_patches(job)) + GLOBAL_VIEWS * job.plan.batch
    share = rows * job.objective.head.prototypes * 4 // 100
    block, piece = scores.BLOCK_BYTES, scores.PIECE_BYTES
    scores.BLOCK_BYTES = max(block, share)
    scores.PIECE_BYTES = {} if job.elsewhere else {device: max(size, share) for device, size in piece.items()}
    try:
        yield
    finally:
        scores.BLOCK_BYTES, scores.PIECE_BYTES = block, piece


def _masked_patches(job: Job) -> float:
    """Of a global view, on average; those that the patch loss is about, masked or not."""
    patches = (job.augment.global_pixels // job.backbone.patch) ** 2
    if job.distil is not None and job.distil.patches == "all":
        return patches
    return job.masks.probability * patches * sum(job.masks.ratio) / 2


def _student(job: Job, backbone: nn.Module) -> Networks:
    """With what the job has on top of it; in a mode of tensors without values nothing is drawn."""
    width = None if job.teacher is None else job.teacher.backbone.width
    return student_of(backbone, job.objective, seed=0, how=job.distil, width=width)


def _frozen(job: Job, backbone: nn.Module) -> Networks:
    """The same of the job's frozen teacher."""
    assert job.teacher is not None
    return frozen_of(backbone, job.teacher.objective, how=job.distil)


def _anchored(objective: ObjectiveConfig) -> ObjectiveConfig:
    """The same from its dearest moment on: with Gram anchoring in every step."""
    gram = objective.gram and objective.gram.model_copy(update={"start": 0.0})
    return objective.model_copy(update={"gram": gram})


def _batch(job: Job, count: int) -> Batch:
    """A batch of noise, with as many masked patches as a batch has on average and one group for all draws."""
    side, near = job.augment.global_pixels, job.augment.local_pixels
    channels, patches = getattr(job.backbone, "channels", 3), (side // job.backbone.patch) ** 2
    masked = round(GLOBAL_VIEWS * count * _masked_patches(job))
    masks = torch.zeros(GLOBAL_VIEWS * count * patches, dtype=torch.bool)
    return Batch(
        globals=torch.randn(GLOBAL_VIEWS, count, channels, side, side),
        locals=torch.randn(job.augment.local_views, count, channels, near, near),
        masks=masks.unflatten(0, (GLOBAL_VIEWS, count, patches)),
        masked_index=torch.arange(masked),
        mask_weight=torch.ones(masked),
        groups=(0,),
    )


def _look(backbone: nn.Module, job: Job) -> None:
    """What the quality probe does with its pictures."""
    side, channels = job.augment.global_pixels, getattr(job.backbone, "channels", 3)
    if not job.probe_rows:
        return
    with torch.device(job.device):
        pictures = torch.empty(job.probe_rows, channels, side, side, dtype=torch.uint8)
        images = (pictures.float() / 255 - torch.zeros(channels, 1, 1)) / torch.ones(channels, 1, 1)
    with torch.no_grad(), compute_context(job.precision, job.device):
        backbone(images)


def _colouring(job: Job) -> int:
    """Bytes that colouring a batch takes beyond its result, counted on four views in which everything changes."""
    if job.on_cpu:
        return 0  # some bytes of one view at a time
    views, side, few = GLOBAL_VIEWS * job.images, job.augment.global_pixels, 4
    channels = job.backbone.channels
    pixels = torch.zeros(few, channels, side, side, dtype=torch.uint8)
    change = dict.fromkeys(PARAMETERS, 1.0) | ({} if channels == 3 else {"hue": 0.0})
    colours = torch.tensor([[change[name] for name in PARAMETERS]]).expand(few, -1)
    with Live() as live:
        recolour_floats(pixels, colours, job.augment.colour)
    return max(live.peak - 4 * pixels.numel(), 0) * views // few


def _runtime(job: Job) -> int:
    """Resident bytes of this process once everything that a step needs is loaded."""
    tiny = job.backbone if job.backbone.kind == "toy" else VitConfig(width=32, depth=1, heads=1, patch=8, pixels=16)
    head = job.objective.head.model_copy(update={"prototypes": 16, "hidden": 16, "bottleneck": 8})
    objective = job.objective.model_copy(update={"group": 4, "head": head, "patch_head": None})
    augment = job.augment.model_copy(update={"global_pixels": 2 * tiny.patch, "local_pixels": tiny.patch})
    plan = job.plan.model_copy(update={"batch": 4})
    small = Job(
        backbone=tiny, objective=objective, plan=plan, augment=augment, masks=job.masks, device=job.device,
        precision=job.precision, speed=job.speed.model_copy(update={"compile": False, "checkpointing": "none"}),
    )  # fmt: skip
    pace(small, images=4, steps=2)
    return resident_bytes()


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one step."""

    networks: float
    """Forward and backward, for each image."""
    update: float
    """Optimiser and teacher, whatever the batch."""

    def seconds(self, images: int) -> float:
        """Of a step of so many images."""
        return self.networks * images + self.update


def pace(job: Job, *, images: int, steps: int = 3) -> Pace:
    """Measured on noise in so many steps of ``images`` images on this rank alone, the first of which does not count."""
    with dist.apart():
        return _pace(job, images, steps)


def _pace(job: Job, images: int, steps: int) -> Pace:
    student = _student(job, build(job.backbone, seed=0))
    gram = None if job.anchor is None else build(job.anchor, seed=0)
    made, objective = job.teacher, _anchored(job.objective)
    frozen = None if made is None else _frozen(job, build(made.backbone, seed=0))
    step = assembled(
        student, teacher_of(student), objective, seed=0, teacher=frozen, how=job.distil, gram=gram
    ).to(job.device)  # fmt: skip
    quicken(step, job.speed, job.device)
    adamw = optimizer(step.student, job.plan, fused=fused(job.speed.optimizer, job.device))
    marks: list[float] = []

    def mark(done: Done | None = None) -> None:
        wait_for(job.device)
        marks.append(time.perf_counter())

    adamw.register_step_pre_hook(lambda *_: mark())
    mark()
    fit(
        step, adamw, [_batch(job, images).to(job.device)] * steps, plan=job.plan, steps=steps,
        compute=compute_context(job.precision, job.device), observers=[mark],
    )  # fmt: skip
    begun, updating, ended = marks[2:-1:2], marks[3::2], marks[4::2]
    return Pace(
        networks=min(u - b for b, u in zip(begun, updating, strict=True)) / images,
        update=min(e - u for u, e in zip(updating, ended, strict=True)),
    )
