"""Devices that need not be here, and how long a step takes on so many of them: worked out, not measured.

The model, for W ranks with one device each and a step whose share of a rank comes in P parts (``speed.micro_batch``)::

    compute  = operations / (W * peak * REACHED)
    update   = 52 bytes * parameters / W / (bandwidth * FLOWING)        # AdamW, clipping, the moving average
    sent     = P * (W - 1) / W * (G * student + teacher + gram teacher + gradients)  # bytes of a rank, and as many received
    exchange = sent / (link * FLOWING)
    launch   = P * (LAUNCHES + BLOCK_LAUNCHES * blocks) * LAUNCH_SECONDS              # of kernels, by the host
    step     = max(compute + update, launch) + max(exchange * (1 - HIDDEN), exchange - compute)

For the device that is here, compute and update are those of a few real steps (``train.forecast.pace``) divided by W, which
launching is part of.

* Operations are those of ``train.forecast``: matrix products, with what is computed again and without what is dropped.
* ``train.parallel.shard`` gathers and reduces once a part: the student's weights G = 1 time with ``speed.sharding=state`` and 2
  times with ``all``, the teacher's once, gradients once. In bf16 the blocks' weights travel in 2 bytes, their gradients in
  ``speed.reduce``; everything outside of blocks in 4.
* Ranks send in rings. A ring crosses from machine to machine once, and there are as many rings as a machine has ports, so the
  link is the slower one of what a device has to its neighbours and what all ports of a machine have together.
* Reading, checkpoints, probes, and sums over ranks inside the losses (vectors as long as there are prototypes) are left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from dinoforge.base.errors import ConfigError, unknown
from dinoforge.base.hardware import Precision, matmul_rate, wait_for
from dinoforge.base.log import clock
from dinoforge.base.memory import memory_bytes
from dinoforge.model.heads import Head
from dinoforge.model.table import BACKBONES, BackboneConfig
from dinoforge.train.distil import Design
from dinoforge.train.forecast import Job, Pace

REACHED = 0.4
"""Share of the peak rate that steps reach. DINOv2's ViT-g took 22,016 hours of an A100 (Oquab et al. 2023, table of the carbon
footprint); by the operations that ``train.forecast`` counts for vit_giant.lvd142m, that is 0.385."""
FLOWING = 0.8
"""Share of the stated bandwidth that long copies and collectives reach; an assumption."""
HIDDEN = 0.8
"""Share of the exchange that runs beside the computing, block by block, where that lasts so long; an assumption."""
LAUNCH_SECONDS = 5e-6
"""From one kernel to the next, where the host is slower than the device; an assumption."""
LAUNCHES = {"fp32": 360, "bf16": 410}
"""Kernels of a part of a step outside of blocks. These and the next are counted on steps of vit_micro.toy with 4, 8 and 16
blocks, two groups a part, 2026-11-30; views do not count, and the blocks of a frozen teacher are left out."""
BLOCK_LAUNCHES = {"fp32": 47, "bf16": 79}
"""For each block, forth and back and in the teacher; what is dropped or computed again makes them more. None where blocks are
compiled: how many are left is not known."""
UPDATE_BYTES = 4 * 13
"""Moved in memory for each parameter: AdamW reads 4 numbers and writes 3, the moving average 2 and 1, clipping 2 and 1."""
UNKNOWN_LINK = 1.25e9
"""Bytes a second between devices of which only one is known, the one that is here: Ethernet of 10 Gbit/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device and the machine it comes in. Rates are a second, links one way and for each device."""

    name: str
    memory_gib: float
    """What torch sees of it."""
    bf16: float
    """Peak operations of dense matrix products in bf16, summed in fp32."""
    fp32: float
    """Peak operations in fp32, not TF32: torch takes that only when told to, and nothing here tells it."""
    bandwidth: float
    """Bytes of its memory."""
    near: float
    """Bytes to another device in the same machine."""
    far: float
    """Bytes to another machine."""
    devices: int
    """In a machine."""

    def peak(self, precision: Precision) -> float:
        """Operations a second at best."""
        return self.bf16 if precision == "bf16" else self.fp32

    def link(self, ranks: int) -> float:
        """Bytes a second that each of so many ranks sends to the next: the slowest hop of the rings."""
        return self.near if ranks <= self.devices else min(self.near, self.far * self.devices)


HARDWARE = {
    device.name: device
    for device in (
        # NVIDIA H100 Tensor Core GPU datasheet, SXM (80 GB, NVLink 900 GB/s both ways); DGX H100: 8 ports of 400 Gbit/s.
        Hardware(name="h100", memory_gib=79, bf16=989e12, fp32=67e12, bandwidth=3.35e12, near=450e9, far=50e9, devices=8),
        # NVIDIA H200 Tensor Core GPU datasheet, SXM (141 GB); DGX H200, ports and NVLink as DGX H100.
        Hardware(name="h200", memory_gib=139, bf16=989e12, fp32=67e12, bandwidth=4.8e12, near=450e9, far=50e9, devices=8),
        # NVIDIA A100 Tensor Core GPU datasheet, SXM (NVLink 600 GB/s both ways); DGX A100: 8 ports of 200 Gbit/s.
        Hardware(name="a100-40", memory_gib=39, bf16=312e12, fp32=19.5e12, bandwidth=1.56e12, near=300e9, far=25e9, devices=8),
        Hardware(name="a100-80", memory_gib=79, bf16=312e12, fp32=19.5e12, bandwidth=2.04e12, near=300e9, far=25e9, devices=8),
        # NVIDIA L40S datasheet (48 GB, PCIe 4.0 x16, no NVLink). No machine is standard: 8 devices of 100 Gbit/s assumed.
        Hardware(name="l40s", memory_gib=44, bf16=362e12, fp32=91.6e12, bandwidth=864e9, near=32e9, far=12.5e9, devices=8),
    )
}  # fmt: skip
"""By name. A new one is a line."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many ranks, each with one such device."""

    hardware: Hardware
    ranks: int
    here: bool = False
    """Whether the device is this machine's."""

    def __str__(self) -> str:
        return f"{self.ranks} x {self.hardware.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step takes, worked out."""

    hardware: str
    flops: float
    """Floating-point operations of the matrix products, on all ranks together."""
    sent_bytes: int
    """That each rank sends; it receives as many."""
    compute_seconds: float
    update_seconds: float
    launch_seconds: float
    """Of launching kernels, by the host: a step takes no less. 0 for the device that is here, whose steps have it in them."""
    exchange_seconds: float
    """Of sending and receiving, hidden or not."""
    seconds: float
    """From step to step."""
    hours: float
    """Of the whole plan."""
    device_hours: float
    measured: bool = False
    """Whether computing and updating were measured, on the device that is here."""

    @property
    def waiting_seconds(self) -> float:
        """Of the exchange that nothing is computed beside."""
        return _waiting(self.exchange_seconds, self.compute_seconds)

    @property
    def bound(self) -> str:
        """Which of the four takes most of a step."""
        parts = {"compute": self.compute_seconds, "update": self.update_seconds, "exchange": self.waiting_seconds}
        if self.launch_seconds > self.compute_seconds + self.update_seconds:
            parts = {"launch": self.launch_seconds, "exchange": self.waiting_seconds}
        return max(parts, key=lambda name: parts[name])

    def line(self) -> str:
        """The step in one line."""
        launching = f"; {self.launch_seconds:,.3g} at least, for launching kernels" if self.launch_seconds else ""
        known = (
            "Computing and updating are measured, the rest is worked out"
            if self.measured
            else "Worked out, not measured"
        )
        hours = f"{self.device_hours:,.1f}" if self.device_hours >= 1 else f"{self.device_hours:.2g}"
        return (
            f"{self.hardware}: {self.seconds:,.3g} s a step ({self.compute_seconds:,.3g} computing, "
            f"{self.update_seconds:,.3g} updating, {self.waiting_seconds:,.3g} waiting for others{launching}), "
            f"{self.flops / 1e12:,.4g} TFLOP, {self.sent_bytes / 1e9:,.3g} GB sent by each rank; "
            f"{clock(self.hours * 3600)} in all, {hours} device-hours. {known}."
        )


def named(name: str) -> Hardware:
    """A device of the table.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in HARDWARE:
        raise unknown("hardware", name, HARDWARE)
    return HARDWARE[name]


def this_device(where: torch.device, precision: Precision) -> Hardware:
    """The one that is here; nothing is known of a link to others like it, so Ethernet is taken.

    Its rate is that of one matrix product, for steps that cannot be tried: smaller ones are much slower.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # REACHED is for stated peaks; what is measured on one product is what steps reach at best.
    peak = matmul_rate(dtype, side=2048 if where.type == "cuda" else 512, device=where) / REACHED
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"this {where.type}"
    devices = torch.cuda.device_count() if where.type == "cuda" else 1
    return Hardware(
        name=name, memory_gib=memory_bytes(where) / 2**30, bf16=peak, fp32=peak, bandwidth=_copy_rate(where),
        near=UNKNOWN_LINK, far=UNKNOWN_LINK, devices=devices,
    )  # fmt: skip


def _copy_rate(where: torch.device) -> float:
    """Bytes a second that are read and written, best of three copies."""
    source = torch.ones(2**24, device=where)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(4):
        began = time.perf_counter()
        target.copy_(source)
        wait_for(where)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def ranks_of(wish: object) -> int:
    """A number of ranks, from what was typed.

    Raises:
        ConfigError: It is none.
    """
    text = str(wish)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"ranks={text} is no number of devices; 1 and above are.")
    return int(text)


def sent_bytes(job: Job) -> int:
    """Bytes that each rank sends in a step, and receives, for the weights and gradients of ``train.parallel.shard``."""
    blocks, heads = _sizes(job.backbone), _heads(job)
    half = job.precision == "bf16"
    block_weight = 2 if half else 4
    block_gradient = 2 if half and job.speed.reduce == "bf16" else 4

    def weights(backbone: tuple[int, int], more: int = 0) -> int:
        inside, outside = backbone
        return block_weight * inside + 4 * (outside + more)

    student = weights(blocks, heads)
    made = job.teacher
    teacher = student if made is None else weights(_sizes(made.backbone), 0 if _maps(job) else _heads(made))
    total = (2 if job.speed.sharding == "all" else 1) * student + teacher
    total += block_gradient * blocks[0] + 4 * (blocks[1] + heads)
    if job.anchor is not None:
        total += weights(_sizes(job.anchor))
    return job.parts * total * (job.ranks - 1) // job.ranks


def step_of(job: Job, flops: float, cluster: Cluster, *, steps: int, measured: Pace | None = None) -> Step:
    """What a step takes by the model at the head of this module.

    Args:
        job: With the cluster's number of ranks.
        flops: Operations of a step, on all ranks together.
        steps: Of the whole plan.
        measured: Steps of one such device alone, where it is here.
    """
    device, ranks = cluster.hardware, cluster.ranks
    sent = sent_bytes(job)
    if measured is None:
        compute = flops / (ranks * device.peak(job.precision) * REACHED)
        parameters = sum(_sizes(job.backbone)) + _heads(job)
        update = UPDATE_BYTES * parameters / ranks / (device.bandwidth * FLOWING)
    else:
        compute, update = measured.networks * job.plan.batch / ranks, measured.update / ranks
    launch = 0.0 if cluster.here else launches(job) * LAUNCH_SECONDS
    exchange = sent / (device.link(ranks) * FLOWING)
    seconds = max(compute + update, launch) + _waiting(exchange, compute)
    return Step(
        hardware=str(cluster), flops=flops, sent_bytes=sent, compute_seconds=compute, update_seconds=update,
        launch_seconds=launch, exchange_seconds=exchange, seconds=seconds, hours=seconds * steps / 3600,
        device_hours=seconds * steps / 3600 * ranks, measured=measured is not None,
    )  # fmt: skip


def launches(job: Job) -> int:
    """Kernels that a rank launches in a step, about."""
    blocks = 0 if job.speed.compile else len(_blocks(_empty(job.backbone)))
    return job.parts * (LAUNCHES[job.precision] + BLOCK_LAUNCHES[job.precision] * blocks)


def _waiting(exchange: float, compute: float) -> float:
    return max(exchange * (1 - HIDDEN), exchange - compute)


def _empty(config: BackboneConfig) -> nn.Module:
    """A backbone without values."""
    with torch.device("meta"):
        backbone: nn.Module = BACKBONES[config.kind][1](config)
    return backbone


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    return list(getattr(backbone, "blocks", []))


def _sizes(config: BackboneConfig) -> tuple[int, int]:
    """Parameters inside and outside of a backbone's blocks."""
    backbone = _empty(config)
    inside = sum(p.numel() for block in _blocks(backbone) for p in block.parameters())
    return inside, sum(p.numel() for p in backbone.parameters()) - inside


def _maps(job: Job) -> bool:
    """Whether the student has maps to its teacher's features in place of heads, and the teacher nothing."""
    return job.distil is not None and job.distil.matching is not None


def _heads(design: Job | Design) -> int:
    """Parameters of the heads, or of the maps."""
    if isinstance(design, Job) and design.teacher is not None and _maps(design):
        return 2 * (design.backbone.width + 1) * int(design.teacher.backbone.width)
    heads = (design.objective.head, design.objective.patch_head)
    with torch.device("meta"):
        made = [Head(design.backbone.width, head) for head in heads if head is not None]
    return sum(p.numel() for head in made for p in head.parameters())
