"""What a curation of a pool of any size would cost, stage by stage: worked out from measured rates, not run.

The model, for n images that a stage begins with, D channels, C cells, rates r (``recipes/curation_rates.py``) in seconds of a
core and GPUs that reach a share of their peak (``recipes/hardware.py``)::

    read        n * megapixels * r.read                                         # and its network: n * bytes of an image
    descriptors n * 2 * 6.8e9 / (peak * REACHED)                                # SSCD's ResNet-50 at 288 pixels, on GPUs
    pairs       train 128 C * 10 * C * D * r.multiply
                add   n * ((C + D) * D * r.multiply + D * r.encode)
                ask   n * ((C + D) * D * r.multiply + r.ask)
                scan  n * n * SEARCHED / C * UNEVEN * D * r.scan
                exact n * COMPARED * D * r.compare
    leaks       the same, but that only evaluation images ask
    components  n * PAIRS * r.join, twice: with and without those of evaluation images; in the memory of one process*
    embeddings  n * 2 * operations of a ViT-H/16 / (peak * REACHED)
    clusters    256 K * 50 * K * E + n * K * E multiplications on a GPU*, in fp32  # K clusters of E channels; FAISS's GPU build
    retrieval   seeds against the same index as pairs, with E channels; in one process*

* These go by numbers of all images at once, in the process that was started: on one machine's cores, or on one GPU, while
  other machines wait.
* Without GPUs, what GPUs do is done by cores at r.multiply, which is as slow as it sounds.
* Between stages shrink: 1.3 to 1.1 to 0.744 billion in DINOv2, app. A, as shares.
* Images are read twice over the network, once to describe them and once to embed those that are left; vectors and codes lie on
  disks that all machines share. A task of the search reads the codes of all shards.
* Decoding for the networks, safety filters, the balance of clusters, and writing the chosen images are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from dinoforge.base.config import Config, Count
from dinoforge.base.hardware import Precision
from dinoforge.features.compressed import cells_for
from dinoforge.features.kmeans import KmeansConfig
from dinoforge.features.search import SearchConfig
from dinoforge.features.sharded import ShardedConfig
from dinoforge.recipes.curation_rates import RATES, Rates
from dinoforge.recipes.hardware import FLOWING, HARDWARE, REACHED, Hardware, named

TRAINING, ROUNDS = 128, 10
"""Vectors a cell that an index is trained on, and rounds of FAISS's k-means."""
SEARCHED = 64
"""Cells that a query looks into above ten million vectors; an assumption between the 32 and 128 that are advised for such
indexes. bench/curate.py needed 8 of 512 for 100,000."""
UNEVEN = 2.0
"""By how much more vectors the cells hold that queries look into than cells hold on average; an assumption."""
COMPARED = 40
"""Vectors that are compared exactly with a query; an assumption. bench/curate.py needed 11 among 100,000."""
PAIRS = 1.0
"""Of an image, as far as they are above the threshold; an assumption (bench/curate.py: 0.94)."""
JOINING = 120
"""Bytes of a pair while components are found."""
UNIQUE, APART = 1.1 / 1.3, 0.744 / 1.3
"""Shares of the pool that are left without near copies, and without copies of evaluation images (DINOv2, app. A)."""
DESCRIBED, EMBEDDED = 6.8e9, 167e9
"""Multiplications of an image: SSCD's ResNet-50 at 288 pixels, ViT-H/16 at 224."""
LEARNED = 256
"""Vectors a cluster that k-means learns from."""
PAPER = {"machines": 20, "gpus": 160, "gpu": "V100-32GB", "hours": 48, "gpu_hours": 7680}
"""DINOv2, app. A: "less than two days" of 20 nodes of 8 GPUs for the entire processing of 1.3 billion images."""


def _number(value: object) -> object:
    """``1.2e9`` -> 1200000000; anything else is left for ``Count``."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return value
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else value


Size = Annotated[Count, BeforeValidator(_number)]
"""A count that may be written 1.2e9 too."""


class CurationPlanConfig(Config):
    """What is to be curated, and on what."""

    pool_size: Size = Field(ge=1)
    """Images of the pool: 1.2e9, 10M."""
    keep_out_size: Size = Field(default=1_000_000, ge=0)
    """Evaluation images of which no copy is to stay."""
    seeds: Size = Field(default=1_000_000, ge=0)
    """Seed images that ask for their nearest."""
    clusters: Size = Field(default=100_000, ge=0)
    """Clusters of the pool for the retrieval of small seed sets (DINOv2: 100,000); 0 leaves them out."""
    image_bytes: Size = Field(default=100_000, ge=1)
    """Of an image file on average."""
    megapixels: float = Field(default=0.25, gt=0)
    """Of an image on average."""
    width: int = Field(default=512, ge=2, multiple_of=2)
    """Channels of a descriptor (SSCD: 512)."""
    embedding: int = Field(default=1280, ge=2, multiple_of=2)
    """Channels of an embedding (ViT-H: 1280)."""
    machines: int = Field(default=20, ge=1)
    """That share the work."""
    cores: int = Field(default=40, ge=1)
    """Of a machine."""
    hardware: str | None = "a100-40"
    """GPUs by name, as in plan hardware=, as many as such a machine has; null computes everything on cores."""
    task_queries: Size = Field(default=ShardedConfig().queries, ge=1)
    """Vectors whose neighbours one task seeks; each task reads the codes of all."""
    network: float = Field(default=1.25e9, gt=0)
    """Bytes a second that a machine receives: 1.25e9 is Ethernet of 10 Gbit/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage takes."""

    stage: str
    images: int
    """That it begins with."""
    core_hours: float = 0.0
    gpu_hours: float = 0.0
    memory_bytes: int = 0
    """Of a task, at most."""
    disk_bytes: int = 0
    """That are written and stay."""
    network_bytes: int = 0
    """That machines receive, all together."""
    alone: bool = False
    """Whether it runs in the one process that was started, on one machine's cores and one GPU, and others wait."""
    hours: float = 0.0
    """On the machines that take part, the slowest of cores, GPUs and network."""
    bound: str = "cores"
    """Which of the three that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCuration:
    """What a curation would cost."""

    pool_size: int
    stages: list[StageCost]
    core_hours: float
    gpu_hours: float
    seconds: float
    """One stage after the other, those that take part busy throughout."""
    images_per_second: float
    memory_bytes: int
    """The most that a task takes."""
    disk_bytes: int
    network_bytes: int
    machines: int
    cores: int
    gpus: int
    """Of all machines."""
    gpu: str | None
    paper: dict[str, Any] = field(default_factory=lambda: dict(PAPER))
    """What DINOv2 reports of its own."""
    measured: str = f"{RATES.command}, {RATES.date}, {RATES.machine}"
    """Where the rates come from."""
    warnings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a person."""
        lines = [f"{'stage':12}{'images':>15}{'core-hours':>12}{'GPU-hours':>11}{'GiB a task':>12}{'disk, GB':>11}"
                 f"{'network, GB':>13}{'hours':>9}  bound by"]  # fmt: skip
        whole = StageCost(
            stage="all", images=self.pool_size, core_hours=self.core_hours, gpu_hours=self.gpu_hours, hours=self.seconds / 3600,
            memory_bytes=self.memory_bytes, disk_bytes=self.disk_bytes, network_bytes=self.network_bytes, bound="",
        )  # fmt: skip
        for one in [*self.stages, whole]:
            lines.append(
                f"{one.stage:12}{one.images:>15,}{one.core_hours:>12,.1f}{one.gpu_hours:>11,.1f}"
                f"{one.memory_bytes / 2**30:>12,.2f}{one.disk_bytes / 1e9:>11,.1f}{one.network_bytes / 1e9:>13,.1f}"
                f"{one.hours:>9,.2f}  {one.bound}".rstrip()
            )
        gpus = f" and {self.gpus:,} GPUs ({self.gpu})" if self.gpu else ", no GPU"
        lines += [
            f"{self.machines:,} machines of {self.cores:,} cores{gpus}. Worked out, not run; rates: {self.measured}.",
            "DINOv2, app. A: 20 machines of 8 V100-32GB, less than 48 hours, at most 7,680 GPU-hours, for 1.3 billion images.",
            *self.warnings,
        ]
        return "\n".join(lines)


def planned_curation(config: CurationPlanConfig, rates: Rates = RATES) -> PlannedCuration:
    """The plan, see the head of this module.

    Raises:
        ConfigError: No GPUs of that name.
    """
    device = None if config.hardware is None else named(config.hardware)
    stages = [_timed(one, config, device) for one in _stages(config, rates, device)]
    hours = sum(one.hours for one in stages)
    return PlannedCuration(
        pool_size=config.pool_size,
        stages=stages,
        core_hours=sum(one.core_hours for one in stages),
        gpu_hours=sum(one.gpu_hours for one in stages),
        seconds=3600 * hours,
        images_per_second=config.pool_size / (3600 * hours),
        memory_bytes=max(one.memory_bytes for one in stages),
        disk_bytes=sum(one.disk_bytes for one in stages),
        network_bytes=sum(one.network_bytes for one in stages),
        machines=config.machines,
        cores=config.cores,
        gpus=config.machines * device.devices if device else 0,
        gpu=device.name if device else None,
        warnings=list(_doubts(config, stages)),
    )


def _stages(config: CurationPlanConfig, rates: Rates, device: Hardware | None) -> Iterator[StageCost]:
    pool, unique, apart = (round(config.pool_size * share) for share in (1, UNIQUE, APART))
    width = config.width
    yield StageCost(
        stage="read", images=pool, core_hours=pool * config.megapixels * rates.read / 3600,
        disk_bytes=2 * pool * 3_300,  # shards, and the columns of all of them
        network_bytes=pool * config.image_bytes, memory_bytes=2**30,
    )  # fmt: skip
    yield _computed(
        "descriptors", pool, pool * DESCRIBED, rates, device, disk=2 * width * pool, network=pool * config.image_bytes
    )
    yield _searched("pairs", pool, pool, width, rates, each=config.task_queries)
    edges = round(pool * PAIRS)
    yield StageCost(
        stage="components",
        images=pool,
        core_hours=2 * edges * rates.join / 3600,
        disk_bytes=20 * edges,
        network_bytes=20 * edges,
        memory_bytes=JOINING * edges,
        alone=True,
    )
    if config.keep_out_size:
        yield _searched("leaks", unique, config.keep_out_size, width, rates, each=config.task_queries)
    channels = config.embedding
    yield _computed(
        "embeddings",
        apart,
        apart * EMBEDDED,
        rates,
        device,
        disk=2 * channels * apart,
        network=apart * config.image_bytes,
    )
    if config.clusters:
        clusters = min(config.clusters, apart)
        learned = min(LEARNED * clusters, apart)
        products = (KmeansConfig().rounds * learned + apart) * clusters * channels
        yield _computed("clusters", apart, products, rates, device, disk=12 * apart, network=2 * channels * apart,
                        memory=4 * channels * (clusters + learned), precision="fp32", alone=True)  # fmt: skip
    if config.seeds:
        yield replace(
            _searched("retrieval", apart, config.seeds, channels, rates, each=config.task_queries), alone=True
        )


def _computed(
    stage: str, images: int, products: float, rates: Rates, device: Hardware | None, *, disk: int, network: int,
    memory: int = 2 * 2**30, precision: Precision = "bf16", alone: bool = False,
) -> StageCost:  # fmt: skip
    """What GPUs do, or cores where there are none."""
    gpu = 2 * products / (device.peak(precision) * REACHED) / 3600 if device else 0.0
    core = 0.0 if device else products * rates.multiply / 3600
    return StageCost(
        stage=stage, images=images, core_hours=core, gpu_hours=gpu, disk_bytes=disk, network_bytes=network,
        memory_bytes=memory, alone=alone,
    )  # fmt: skip


def _searched(stage: str, rows: int, queries: int, width: int, rates: Rates, *, each: int) -> StageCost:
    """An index of so many rows, made and asked; where these are few, all are compared.

    Args:
        each: Queries of a task.
    """
    cells, answers = cells_for(rows), queries * 64 * 12
    if rows < SearchConfig().exact_below:
        return StageCost(
            stage=stage, images=rows, core_hours=rows * queries * width * rates.multiply / 3600, disk_bytes=answers,
            network_bytes=2 * width * (rows + queries), memory_bytes=4 * width * rows,
        )  # fmt: skip
    turned = (cells + width) * width * rates.multiply
    training = TRAINING * cells * ROUNDS * cells * width * rates.multiply
    adding = rows * (turned + width * rates.encode)
    scanned = min(1.0, SEARCHED * UNEVEN / cells) * rows
    asking = queries * (turned + rates.ask + scanned * width * rates.scan + COMPARED * width * rates.compare)
    codes = rows * (width // 4 + 8)
    tasks = -(-queries // each)
    return StageCost(
        stage=stage, images=rows, core_hours=(training + adding + asking) / 3600,
        disk_bytes=codes + answers,
        network_bytes=2 * width * (rows + queries) + tasks * codes + queries * COMPARED * 2 * width,
        memory_bytes=codes * min(1_000_000, rows) // rows + 4 * width * (max(TRAINING * cells, 2 * each)),
    )  # fmt: skip


def _timed(one: StageCost, config: CurationPlanConfig, device: Hardware | None) -> StageCost:
    """The same with its hours, were all that take part busy throughout."""
    machines, gpus = (1, 1) if one.alone else (config.machines, config.machines * device.devices if device else 0)
    times = {
        "cores": one.core_hours / (machines * config.cores),
        "GPUs": one.gpu_hours / gpus if device else 0.0,
        "network": one.network_bytes / (machines * config.network * FLOWING) / 3600,
    }
    bound = max(times, key=lambda name: times[name])
    return replace(one, hours=times[bound], bound=bound)


def _doubts(config: CurationPlanConfig, stages: list[StageCost]) -> Iterator[str]:
    """What is odd about the plan."""
    slow = [one for one in stages if one.bound == "network" and one.hours > 1]
    if slow:
        yield (
            f"The network bounds {', '.join(one.stage for one in slow)}; keep images and codes on the machines' own disks, or "
            "raise network=."
        )
    if config.hardware is None:
        hours = sum(one.core_hours for one in stages if one.stage in {"descriptors", "embeddings", "clusters"})
        yield f"Without GPUs, networks and clusters take {hours:,.0f} core-hours; hardware= takes one of {', '.join(HARDWARE)}."
