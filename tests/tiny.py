"""A step of a tiny transformer and batches for it."""

import torch

from dinoforge.data.batch import Batch, masked_positions
from dinoforge.model.heads import HeadConfig
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.train.assembly import assembled, frozen_of, student_of
from dinoforge.train.plan import Scheduled
from dinoforge.train.step import ObjectiveConfig, teacher_of

AT = Scheduled(1e-3, 1e-3, 0.04, 0.99, 0.05)
VIT = VitConfig(width=16, depth=2, heads=2, patch=4, pixels=16, layerscale=None)
SMALL = HeadConfig(prototypes=24, hidden=16, bottleneck=8)


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pretrain(drop=0.0, backbone=None, anchor=None, distilled=None, **objective):
    """A student and its teacher, and a Gram teacher of an architecture of its own; or a frozen teacher that is wider."""
    config = ObjectiveConfig(**{"group": 4, "head": SMALL, **objective})
    backbone = backbone or VIT.model_copy(update={"drop_path": drop})
    student = student_of(build(backbone, seed=0), config, seed=0, how=distilled, width=24)
    gram = None if anchor is None else build(anchor, seed=3)
    frozen = None
    if distilled is not None:
        wide = backbone.model_copy(update={"width": 24, "drop_path": 0.0})
        frozen = frozen_of(build(wide, seed=5), config, how=distilled)
    return assembled(student, teacher_of(student), config, seed=0, gram=gram, teacher=frozen, how=distilled)


def batch(images=8, local=3, seed=0):
    """Noise, with a third of the patches masked."""
    masks = torch.rand(2, images, 16, generator=torch.Generator().manual_seed(seed)) < 0.3
    index, weight = masked_positions(masks)
    return Batch(made(2, images, 3, 16, 16, seed=seed), made(local, images, 3, 8, 8, seed=seed + 1), masks, index, weight,
                 tuple(range(images // 4)))  # fmt: skip
