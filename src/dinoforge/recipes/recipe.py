"""All settings of a run in one value: Science (what may change results) and Speed (what may not)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from dinoforge.base.config import Config, Count, Ranges
from dinoforge.data.augment import GLOBAL_VIEWS, AugmentConfig
from dinoforge.data.decode import MAX_PIXELS, Reading
from dinoforge.data.masks import MaskConfig, masked_views
from dinoforge.data.order import SamplingConfig
from dinoforge.model.table import BackboneConfig
from dinoforge.model.vit import VitConfig
from dinoforge.recipes.phase import HighResolution, near
from dinoforge.train.continuation import ContinueConfig
from dinoforge.train.distil import DistilConfig
from dinoforge.train.parallel import StepSpeed
from dinoforge.train.plan import PlanConfig
from dinoforge.train.sentinel import SentinelConfig
from dinoforge.train.step import ObjectiveConfig
from dinoforge.train.trackers.table import known_trackers


class DataConfig(Config):
    """What is learnt from, and how it is shown."""

    not_science: ClassVar[frozenset[str]] = frozenset({"source"})  # its rows count, not where they lie

    source: str | None = None
    """Address of the images: a folder, a Parquet file, toy://…"""
    augment: AugmentConfig = AugmentConfig()
    """Views of an image."""
    masks: MaskConfig = MaskConfig()
    """Patches hidden from the student."""
    sampling: SamplingConfig = SamplingConfig()
    """How often each image is seen."""
    resize: int | None = Field(default=None, gt=0)
    """Short side before the centre crop when features are taken, in pixels; null: 256/224 of the global view."""

    range: Ranges | None = None
    """Numbers in the files that become 0 and 1, one pair or one a channel; null: 0 and the type's highest, which only 8
    and 16 bits have. Cut into 256 levels after that. `dinoforge stats` prints a fitting one."""
    max_pixels: Count = Field(default=MAX_PIXELS, gt=0)
    """Larger images are set aside as decompression bombs; channels beyond four count too."""

    @property
    def short_side(self) -> int:
        """The short side that images are resized to before the centre crop."""
        return self.resize or round(self.augment.global_pixels * 256 / 224)


class ProbeConfig(Config):
    """The quality probe during a run: k-NN on a labelled source, label-free scores always."""

    source: str | None = None
    """Labelled images with splits train (val joins it) and test, or train and val; null measures only what needs no labels."""
    train_rows: Count = Field(default=20_000, gt=0)
    """First so many of the rows that vote."""
    test_rows: Count = Field(default=2_000, gt=0)
    """First so many of the rows that are asked."""
    neighbours: int = Field(default=10, gt=0)
    """Neighbours that vote."""
    rank_rows: Count = Field(default=1_024, gt=1)
    """Training images whose features are judged where no labelled source is given."""


class Speed(StepSpeed):
    """How fast, never what: no field may change a result beyond rounding."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks; losses and master weights are always fp32. ``auto``: what this device is fast in, printed."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Images that a device computes at once; a larger share of the batch comes in parts, with the same result. ``auto``: as
    many as fit."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory that each rank may take, in GiB, for ``micro_batch=auto``; null: most of what its device has."""
    checkpoints: Literal["auto", "background", "at_once"] = "auto"
    """Whether training goes on while a checkpoint is written, from a copy in main memory; ``auto``: on a GPU, where the state
    must be copied anyway."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode and crop, on each rank; 0 does it in the main one."""
    stall_seconds: float = Field(default=120.0, gt=0)
    """How long one group of images may take before its worker is given up and the image tried once more."""
    trackers: Annotated[tuple[str, ...], BeforeValidator(known_trackers)] = ()
    """Where metrics go besides metrics.jsonl: any of tensorboard, wandb, mlflow, separated by commas."""


class Recipe(Config):
    """A run."""

    not_science: ClassVar[frozenset[str]] = frozenset({"recipe", "probe", "speed", "init", "sentinel"})
    later: ClassVar[frozenset[str]] = frozenset({"high_resolution", "distil", "continuation"})

    recipe: str = ""
    """Name of the recipe this came from."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of every random choice."""
    init: str | None = None
    """Backbone to start from (its fingerprint counts, not its path); null: fresh weights."""
    backbone: BackboneConfig = VitConfig()
    """What is trained."""
    data: DataConfig = DataConfig()
    """What it is trained on."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What it is trained for."""
    distil: DistilConfig | None = None
    """A frozen teacher that it is trained by, as {teacher: RUN}; null: its own moving average is the teacher."""
    continuation: ContinueConfig | None = None
    """How it goes on from ``init`` without losing what that one could do, as {retention: {source: IMAGES}}; null: all of it
    learns at once, and nothing is watched."""
    plan: PlanConfig
    """For how long, how fast, in which steps."""
    high_resolution: HighResolution | None = None
    """A last part at larger views, on top of the plan, as {images: 1M, global_pixels: 518}; null leaves it out."""
    probe: ProbeConfig = ProbeConfig()
    """How its quality is watched."""
    sentinel: SentinelConfig = SentinelConfig()
    """What is done where it is not healthy; a healthy run is never touched."""
    speed: Speed = Speed()
    """How fast it runs."""

    @property
    def reading(self) -> Reading:
        """How pictures are read."""
        return Reading(self.backbone.channels, self.data.range, self.data.max_pixels)

    @model_validator(mode="after")
    def _channels_fit(self) -> Recipe:
        channels, colour = self.backbone.channels, self.data.augment.colour
        counts = {"data.augment.colour.mean": colour.mean, "data.augment.colour.std": colour.std}
        for name, values in (counts | {"data.range": self.data.range or (None,)}).items():
            if len(values) not in {1, channels}:
                raise ValueError(
                    f"{name} is for {len(values)} channels, backbone.channels={channels}; "
                    "`dinoforge stats` prints one that fits."
                )
        of_rgb = {name: getattr(colour, name) for name in ("saturation", "hue", "grey")}
        if channels != 3 and any(of_rgb.values()):
            given = ", ".join(f"{name}={value:g}" for name, value in of_rgb.items() if value)
            raise ValueError(
                f"data.augment.colour has {given}, which only RGB has; with backbone.channels={channels} set them to 0."
            )
        return self

    @model_validator(mode="after")
    def _patches_to_predict(self) -> Recipe:
        weight, drawn = self.objective.ibot_weight, self.distil is None or self.distil.patches == "drawn"
        views, masks = GLOBAL_VIEWS * self.objective.group, self.data.masks
        if weight and drawn and not masked_views(views, masks):
            raise ValueError(
                f"objective.ibot_weight={weight:g} has no effect with data.masks.probability={masks.probability:g}, which "
                f"hides no patch in the {views} global views of objective.group={self.objective.group} images; set "
                f"data.masks.probability=0.5 (1/{views} at least), or objective.ibot_weight=0."
            )
        patches = (self.data.augment.global_pixels // self.backbone.patch) ** 2
        if weight and drawn and patches * masks.ratio[1] < 1:
            raise ValueError(
                f"objective.ibot_weight={weight:g} has no effect with data.masks.ratio={list(masks.ratio)}, which hides none "
                f"of the {patches} patches of a view; set data.masks.ratio=[0.1,0.5] ({1 / patches:.2g} at least), or "
                "objective.ibot_weight=0."
            )
        return self

    @model_validator(mode="after")
    def _continues_alone(self) -> Recipe:
        other = "distil" if self.distil is not None else "high_resolution" if self.high_resolution is not None else None
        if self.continuation is not None and other is not None:
            raise ValueError(
                f"continuation and {other} exclude each other; make two runs of them, one after the other."
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> Recipe:
        if self.distil is None:
            return self
        drop = getattr(self.backbone, "drop_path", 0.0)
        if drop:
            raise ValueError(f"backbone.drop_path={drop:g}: a student that is distilled drops nothing; set it to 0.")
        if self.distil.patches == "all" and self.data.masks.probability and self.data.masks != MaskConfig():
            raise ValueError(
                "data.masks has no effect with distil.patches=all, the student sees every patch; leave it out, or set "
                "distil.patches=drawn."
            )
        if self.distil.matching is not None:
            self._matches_alone(self.distil)
        gram = self.objective.gram
        if gram is not None and gram.from_share is not None:
            raise ValueError(
                f"objective.gram.from_share={gram.from_share:g} copies a teacher that learns, and the one of a distillation "
                "is frozen; give objective.gram.backbone, or leave it out."
            )
        return self

    def _matches_alone(self, distil: DistilConfig) -> None:
        """Refuse what has no effect where features are matched."""
        mine, usual = self.objective, ObjectiveConfig(group=self.objective.group)
        odd = [f"objective.{name}" for name in type(mine).model_fields if getattr(mine, name) != getattr(usual, name)]
        odd += ["distil.patches"] * (distil.patches != DistilConfig().patches)
        for name in ("teacher_temperature", "last_layer_frozen"):
            odd += [f"plan.{name}"] * (getattr(self.plan, name) != type(self.plan).model_fields[name].default)
        if odd:
            raise ValueError(f"{odd[0]} has no effect with distil.matching, which knows no heads; leave it out.")
        if self.data.augment.local_views:
            raise ValueError(
                f"data.augment.local_views={self.data.augment.local_views} are of no use to distil.matching, whose student "
                "sees what its teacher sees; set it to 0."
            )

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        patch, augment, group = self.backbone.patch, self.data.augment, self.objective.group
        sizes = {"data.augment.global_pixels": augment.global_pixels}
        if augment.local_views:
            sizes["data.augment.local_pixels"] = augment.local_pixels
        for name, pixels in sizes.items():
            if pixels % patch:
                raise ValueError(
                    f"{name}={pixels} is no multiple of backbone.patch={patch}; {near(pixels, patch)} would be."
                )
        if self.data.resize and self.data.resize < augment.global_pixels:
            raise ValueError(
                f"data.resize={self.data.resize} is smaller than the square that is cut out, data.augment.global_pixels="
                f"{augment.global_pixels}; take at least that, or null for 256/224 of it."
            )
        if getattr(self.backbone, "untie_local_norm", False) and not augment.local_views:
            raise ValueError(
                "backbone.untie_local_norm=true has no effect with data.augment.local_views=0; leave it out."
            )
        if self.plan.batch % group:
            raise ValueError(
                f"plan.batch={self.plan.batch} is no multiple of objective.group={group}; "
                f"{near(self.plan.batch, group)} would be."
            )
        matched = self.distil is not None and self.distil.matching is not None
        if self.objective.koleo_weight and group < 2 and not matched:
            raise ValueError(
                f"objective.group={group} leaves KoLeo without a neighbour; take at least 2, or objective.koleo_weight=0."
            )
        if self.objective.copies is not None and group < 2:
            raise ValueError(
                f"objective.group={group} leaves no other image to tell a copy from; take at least 2, or leave out "
                "objective.copies."
            )
        if self.high_resolution is not None:
            self.high_resolution.check(augment, patch=patch, group=group)
        return self
