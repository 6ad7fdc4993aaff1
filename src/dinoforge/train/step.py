"""The mathematics of one step: DINO + iBOT + KoLeo between a student and its teacher (DINOv2, sec. 4), and Gram anchoring.

Axes: G global and L local views, V = G + L, B images, N patches, M masked patches, D channels, K and P prototypes
of the two heads.
Knows nothing of devices, ranks, files or logs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.base.random import torch_generator
from dinoforge.data.batch import Batch
from dinoforge.loss.copies import CopyConfig, copy_loss
from dinoforge.loss.dino import DinoConfig, dino_loss
from dinoforge.loss.gram import gram_loss
from dinoforge.loss.ibot import IbotConfig, ibot_loss
from dinoforge.loss.koleo import koleo_loss
from dinoforge.loss.scores import Assignment, Scores
from dinoforge.loss.targets import Centring, Targets, sinkhorn
from dinoforge.model.features import Inputs
from dinoforge.model.heads import Head, HeadConfig
from dinoforge.train.draws import draw_rescale, draw_subsets
from dinoforge.train.gram import GramConfig, GramTeacher
from dinoforge.train.plan import Scheduled
from dinoforge.train.vitals import of_targets

Compute = AbstractContextManager[Any]
PLAIN: Compute = nullcontext()
"""The precision of the tensors that come in."""


class SinkhornConfig(Config):
    """Targets that use every prototype about equally (SwAV, Caron et al. 2020; all large DINOv2 runs)."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    """Which targets."""
    rounds: int = Field(default=3, ge=1)
    """Alternating normalisations."""


class CentringConfig(Config):
    """Targets by a softmax of centred scores (DINO, sec. 3.1; DINOv2's default configuration)."""

    kind: Literal["centring"] = "centring"
    """Which targets."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the old centre in its moving average."""


class ObjectiveConfig(Config):
    """What is learnt."""

    later: ClassVar[frozenset[str]] = frozenset({"copies"})

    group: int = Field(default=16, ge=1)
    """Images that share random draws and KoLeo's neighbours; results never depend on how groups lie on devices."""
    dino: DinoConfig = DinoConfig()
    """Loss on class tokens."""
    dino_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on class tokens."""
    ibot: IbotConfig = IbotConfig()
    """Loss on masked patches."""
    ibot_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on masked patches."""
    koleo_weight: float = Field(default=0.1, ge=0)
    """Weight of KoLeo, summed over the global views as in the released code."""
    gram: GramConfig | None = None
    """Gram anchoring of patches to an earlier teacher, as {from_share: 0.2, start: 0.5}; null leaves it out."""
    copies: CopyConfig | None = None
    """Global views of an image against those of the others of its group, for a descriptor of copies; null leaves it out."""
    targets: Annotated[SinkhornConfig | CentringConfig, Field(discriminator="kind")] = SinkhornConfig()
    """How the teacher's scores become targets."""
    head: HeadConfig = HeadConfig()
    """Head on class tokens, and on patches too unless ``patch_head`` is given."""
    patch_head: HeadConfig | None = None
    """A head of their own for patches; null shares ``head``."""


class Networks(nn.Module):
    """A backbone with its heads; student and teacher are one each."""

    backbone: Any

    def __init__(self, backbone: nn.Module, head: Head, patch_head: Head | None) -> None:
        super().__init__()
        # The names are those of official training exports.
        self.backbone, self.dino_head, self.ibot_head = backbone, head, patch_head

    @property
    def patch_head(self) -> Head:
        """The head for patches, which may be the one for class tokens."""
        return self.dino_head if self.ibot_head is None else self.ibot_head

    @property
    def tops(self) -> list[nn.Module]:
        """All but the backbone, in units each of which has its gradient at once, inner ones first."""
        # Prototypes on their own, for their gradient is complete only when both losses have had their say.
        return [unit for head in dict.fromkeys((self.dino_head, self.patch_head)) for unit in (head.last_layer, head)]

    def scores(self, image: Float[Tensor, "views D"], patches: Float[Tensor, "M D"]) -> tuple[Scores, Scores]:
        """Of class tokens ``[views, K]`` and of patches ``[M, P]``, in the precision of the context that this is called in."""
        kind = image.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if self.ibot_head is None:
            vectors, prototypes = (part.to(dtype) for part in self.dino_head(torch.cat([image, patches])))
            return Scores(vectors[: len(image)], prototypes), Scores(vectors[len(image) :], prototypes)
        first, second = (
            Scores(*(part.to(dtype) for part in head(tokens)))
            for head, tokens in ((self.dino_head, image), (self.ibot_head, patches))
        )
        return first, second


def networks(backbone: Any, config: ObjectiveConfig, *, seed: int) -> Networks:
    """A backbone with freshly drawn heads."""
    head = Head(backbone.width, config.head)
    patch_head = None if config.patch_head is None else Head(backbone.width, config.patch_head)
    for number, module in enumerate((head, patch_head)):
        if module is not None:
            module.init_weights(torch_generator(seed, "head", number))
    return Networks(backbone, head, patch_head)


def teacher_of(student: Networks) -> Networks:
    """A copy that never receives gradients."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss to descend and its parts, all still on the device."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class Pretrain(nn.Module):
    """Student and frozen teacher in, losses out.

    Args:
        gram: Backbone of the Gram teacher, where the objective has one; null copies the teacher's.
    """

    def __init__(
        self, student: Networks, teacher: Networks, config: ObjectiveConfig, *, seed: int, gram: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.config, self.seed = student, teacher, config, seed
        self.centres = nn.ModuleDict()
        if isinstance(config.targets, CentringConfig):
            for name, head in (("images", student.dino_head), ("patches", student.patch_head)):
                self.centres[name] = Centring(head.config.prototypes, momentum=config.targets.momentum)
        self.gram: GramTeacher | None = None
        if config.gram is not None:
            assert gram is not None or config.gram.backbone is None
            self.gram = GramTeacher(copy.deepcopy(teacher.backbone) if gram is None else gram, config.gram)

    @property
    def average(self) -> Networks:
        """The moving average of the student: what is probed, kept and handed on."""
        return self.teacher

    def predicted(self, batch: Batch) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
        """The patches of all global views that the patch loss is about, ascending, and what each of them weighs."""
        return batch.masked_index, batch.mask_weight

    def hidden(self, batch: Batch) -> Bool[Tensor, "G B N"] | None:
        """The patches of the global views in whose place the student sees the mask token."""
        return batch.masks

    def fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the same networks for another image size, made to fit these: every backbone its own way."""
        found = dict(state)
        for name, role in self.named_children():
            start = f"{name}.backbone."
            mine = {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
            if mine:
                backbone: Any = role.backbone
                found |= {start + key: tensor for key, tensor in backbone.fitted(mine).items()}
        return found

    def forward(self, batch: Batch, at: Scheduled, compute: Compute = PLAIN) -> Losses:
        """Losses of one logical batch. ``compute`` is the precision's context for everything but the losses."""
        return self.losses(batch, self.targets([batch], at, compute)[0], compute, at.gram_weight)

    @torch.no_grad()
    def targets(self, parts: Sequence[Batch], at: Scheduled, compute: Compute = PLAIN) -> list[Targets]:
        """The teacher's view of every unmasked global view, centred and sharpened over the whole logical batch.

        Args:
            parts: This rank's share of the batch, in parts of equally many groups.
        """
        views, images = parts[0].globals.shape[:2]
        seen = [self._seen(part, compute) for part in parts]
        # Prototypes are the same for all parts; of a part only its bottleneck vectors are kept.
        scores, patch_scores = (
            Scores(torch.cat([score.vectors for score in found]), found[0].prototypes)
            for found in zip(*seen, strict=True)
        )
        device, share = scores.vectors.device, images * len(parts)
        group = (
            torch.arange(share, device=device).view(len(parts), 1, images).expand(-1, views, -1) // self.config.group
        )
        # Position of a predicted patch -> its image in the part -> that image's group.
        index = [self.predicted(part)[0] for part in parts]
        patch_group = torch.cat(
            [
                (found // part.masks.shape[-1] % images + images * number) // self.config.group
                for number, (part, found) in enumerate(zip(parts, index, strict=True))
            ]
        )
        whole = self._assign("images", scores, group.flatten(), share, at)
        patches = self._assign("patches", patch_scores, patch_group, share, at)
        ends = [0, *accumulate(map(len, index))]
        return [
            Targets(
                images=whole.part(slice(number * views * images, (number + 1) * views * images)).unflatten(views),
                patches=patches.part(slice(*ends[number : number + 2])),
            )
            for number in range(len(parts))
        ]

    def vitals(self, share: Sequence[Batch], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Signs of life of the targets of this rank's parts of a batch."""
        return of_targets(share, targets, group=self.config.group)

    def _seen(self, batch: Batch, compute: Compute) -> tuple[Scores, Scores]:
        """The teacher's scores of the global views and of their patches to predict."""
        with compute:
            seen = self.teacher.backbone(batch.globals.flatten(0, 1))
            return self.teacher.scores(seen.image, seen.patches.flatten(0, 2)[self.predicted(batch)[0]])

    def _assign(self, name: str, scores: Scores, group: Tensor, images: int, at: Scheduled) -> Assignment:
        """Scores to probabilities, by the configured rule."""
        if isinstance(self.config.targets, SinkhornConfig):
            return sinkhorn(scores, temperature=at.teacher_temperature, rounds=self.config.targets.rounds)
        centre = self.centres[name]
        assert isinstance(centre, Centring)
        return centre.targets(
            scores, temperature=at.teacher_temperature, group=group, groups=images // self.config.group
        )

    def losses(self, batch: Batch, targets: Targets, compute: Compute = PLAIN, gram_weight: float = 0.0) -> Losses:
        """The student's part, for all of a logical batch or for some of its groups: of a batch the mean over equal parts."""
        views, images = batch.globals.shape[:2]
        anchors = self._anchors(batch, compute) if gram_weight else None
        index, weight = self.predicted(batch)
        with compute:
            inputs = [self._inputs(batch, "global")]
            if len(batch.locals):
                inputs.append(self._inputs(batch, "local"))
            wide, *near = self.student.backbone(inputs)
            image = torch.cat([wide.image, *(part.image for part in near)])
            scores, patch_scores = self.student.scores(image, wide.patches.flatten(0, 2)[index])

        config = self.config
        # The patches first: they have the most scores, and the prototypes' gradient of one loss waits beside those of the next.
        ibot = ibot_loss(patch_scores, targets.patches, weight, views=views * images, config=config.ibot)
        dino = dino_loss(scores.unflatten(len(image) // images), targets.images, config=config.dino)
        each = wide.image.unflatten(0, (views, images)) if config.group > 1 else ()  # alone, nobody has a neighbour
        koleo = sum((koleo_loss(view, group=config.group) for view in each), dino.total.new_zeros(()))
        total = config.dino_weight * dino.total + config.ibot_weight * ibot + config.koleo_weight * koleo
        terms = {"dino_local": dino.local, "dino_global": dino.wide, "ibot": ibot, "koleo": koleo}
        if config.copies is not None:
            found = copy_loss(wide.image.unflatten(0, (views, images)), group=config.group, config=config.copies)
            total = total + found.contrast + config.copies.entropy * found.entropy
            terms |= {"contrast": found.contrast, "entropy": found.entropy}
        if self.gram is not None:
            gram = total.new_zeros(()) if anchors is None else gram_loss(wide.patches.flatten(1, 2), anchors)
            total, terms["gram"] = total + gram_weight * gram, gram
        return Losses(total=total, terms={name: term.detach() for name, term in (terms | {"total": total}).items()})

    def _anchors(self, batch: Batch, compute: Compute) -> Tensor | None:
        """The Gram teacher's patches of every unmasked global view; first of all, while no activations are alive."""
        with compute:
            return None if self.gram is None else self.gram(batch.globals.flatten(0, 1))

    def _inputs(self, batch: Batch, kind: Literal["global", "local"]) -> Inputs:
        """The student's views of one size, with what is drawn for them per group so that no split of the batch matters."""
        images, masks = (batch.globals, self.hidden(batch)) if kind == "global" else (batch.locals, None)
        rates = cast(Sequence[float], self.student.backbone.drop_rates)
        largest = cast(float | None, self.student.backbone.rescale)
        device, size = images.device, {"views": len(images), "images": images.shape[1]}
        drop = rescale = None
        if any(rates):
            subsets = draw_subsets(self._generators(batch, f"drop {kind}"), rates=rates, **size)
            drop = [(attn.to(device), mlp.to(device)) for attn, mlp in subsets]
        if largest is not None and largest > 1:
            factors = draw_rescale(self._generators(batch, f"rescale {kind}"), largest=largest, **size)
            rescale = factors.to(device, non_blocking=True)
        masks = None if masks is None else masks.flatten(0, 1)
        return Inputs(images.flatten(0, 1), masks, drop, rescale, local=kind == "local")

    def _generators(self, batch: Batch, purpose: str) -> list[torch.Generator]:
        """One for each group of the batch."""
        return [torch_generator(self.seed, purpose, number) for number in batch.groups]
