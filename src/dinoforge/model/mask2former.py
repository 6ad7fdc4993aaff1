"""Segmentation by masks on a frozen backbone: our adapter, then both decoders of Mask2Former (Cheng et al. 2022).

The decoders are those of ``transformers`` (extra ``interop``), built from a config with fresh weights: nothing is downloaded,
and neither timm nor torchvision is needed. Their multi-scale deformable attention is the plain torch form.

Axes: B images, C channels of an image, Y by X pixels, H by W patches, F channels of a patch, Q queries, K classes and N = K + 1
with "no object" last, S by T places at a quarter of the picture, P by R places that are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError
from dinoforge.model.adapter import STRIDES, Adapter
from dinoforge.model.features import Features

_LIBRARY = "transformers.models.mask2former.modeling_mask2former"
_GROUPS = 32
"""Groups of the norms in the library's pixel decoder."""


class Mask2FormerConfig(Config):
    """Adapter and decoders. The defaults train in minutes on a processor; Mask2Former's own values, and those of DINOv2 on
    ADE20k with ViT-g, stand in each docstring."""

    width: int = Field(default=64, ge=_GROUPS)
    """Channels of maps and queries, a multiple of 32 and of ``heads``; 256 in Mask2Former, 1,536 in DINOv2."""
    heads: int = Field(default=4, gt=0)
    """Attention heads in both decoders; 8 in Mask2Former, 32 in DINOv2."""
    hidden: int = Field(default=128, gt=0)
    """Width of feed-forward layers; 1,024 (pixel decoder) and 2,048 (transformer decoder) in Mask2Former, 6,144 in DINOv2."""
    queries: int = Field(default=16, gt=0)
    """Masks that an image can have; 100 in both."""
    pixel_layers: int = Field(default=1, gt=0)
    """Layers of deformable attention in the pixel decoder; 6 in both."""
    decoder_layers: int = Field(default=3, gt=0)
    """Layers of the transformer decoder, each of which looks at one scale, coarsest first; 9 in both."""

    @model_validator(mode="after")
    def _divides(self) -> Mask2FormerConfig:
        for name, divisor in (("32", _GROUPS), (f"mask2former.heads={self.heads}", self.heads)):
            if self.width % divisor:
                raise ValueError(f"mask2former.width={self.width} is no multiple of {name}.")
        return self


@dataclass(frozen=True, slots=True)
class Masks:
    """What a layer of the decoder says of images: a mask a query, and what it shows; before their sigmoid and softmax."""

    classes: Float[Tensor, "B Q N"]
    masks: Float[Tensor, "B Q S T"]


class Mask2Former(nn.Module):
    """Normalised images and the frozen patch tokens of some blocks in, masks out.

    Args:
        channels: Of an image.
        features: Channels of a patch token, of all blocks taken together.
        classes: Without "no object".
        seed: Of the first weights.

    Raises:
        ConfigError: The extra is not installed.
    """

    def __init__(self, config: Mask2FormerConfig, *, channels: int, features: int, classes: int, seed: int) -> None:
        super().__init__()
        library = _installed()
        theirs = _theirs(config)
        with torch.random.fork_rng(devices=[]):  # the library draws from the global generator
            torch.default_generator.manual_seed(seed)
            self.adapter = Adapter(channels=channels, features=features, width=config.width)
            self.pixels = library.Mask2FormerPixelDecoder(theirs, [config.width] * len(STRIDES))
            self.decoder = library.Mask2FormerTransformerModule(config.width, theirs)
            start = library.Mask2FormerPreTrainedModel(theirs)
            for module in (self.pixels, self.decoder):
                module.apply(start._init_weights)
            self.classes = nn.Linear(config.width, classes + 1)

    def forward(self, layers: Sequence[Features]) -> Float[Tensor, "B K Y X"]:
        """How much each class is seen at every pixel, see ``semantic``.

        Args:
            layers: The normalised images (``as_features``), then the blocks.
        """
        _, height, width, _ = layers[0].patches.shape
        return semantic(self.said(layers)[-1], (height, width))

    def said(self, layers: Sequence[Features]) -> list[Masks]:
        """What every layer of the decoder says, the queries' own first guess first, in float32; the last one counts.

        Raises:
            ConfigError: Images of no more than 32 pixels a side: a norm over the coarsest map would have one place.
        """
        images = layers[0].patches.movedim(-1, 1)
        tokens = torch.cat([layer.patches for layer in layers[1:]], dim=-1)
        if max(images.shape[-2:]) <= STRIDES[-1]:
            height, width = images.shape[-2:]
            raise ConfigError(
                f"head=mask2former takes images of more than {STRIDES[-1]} pixels a side; got {height}x{width}."
            )
        found = self.pixels(self.adapter(images, tokens))
        said = self.decoder(found.multi_scale_features, found.mask_features)
        return [
            Masks(self.classes(state.transpose(0, 1)).float(), masks.float())
            for state, masks in zip(said.intermediate_hidden_states, said.masks_queries_logits, strict=True)
        ]


def mask2former_of(features: int, classes: int, *, channels: int, **settings: Any) -> Mask2Former:
    """One whose weights are about to be read, from settings as they were put down."""
    config: Mask2FormerConfig = Mask2FormerConfig.build(settings)
    return Mask2Former(config, channels=channels, features=features, classes=classes, seed=0)


def semantic(found: Masks, size: tuple[int, int]) -> Float[Tensor, "B K P R"]:
    """How much each class is seen at every place: ``sum over queries of p(class) * sigmoid(mask)``, "no object" left out
    (Cheng et al. 2021, sec. 3.4); masks are brought to the asked size first. Scores from 0 to the number of queries, no
    probabilities: they do not sum to 1."""
    masks = F.interpolate(found.masks, size=size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqk,bqyx->bkyx", found.classes.softmax(-1)[..., :-1], masks)


def _installed() -> Any:
    """The module of ``transformers`` with the parts of Mask2Former.

    Raises:
        ConfigError: It is absent.
    """
    try:
        return importlib.import_module(_LIBRARY)
    except ImportError as error:
        raise ConfigError(
            'head=mask2former needs transformers, which is not installed: pip install "dinoforge[interop]" '
            f"({' '.join(str(error).split())})."
        ) from None


def _theirs(config: Mask2FormerConfig) -> Any:
    """The same in the library's words; its count of decoder layers takes in the first guess."""
    return _installed().Mask2FormerConfig(
        feature_size=config.width, mask_feature_size=config.width, hidden_dim=config.width, num_attention_heads=config.heads,
        encoder_feedforward_dim=config.hidden, dim_feedforward=config.hidden, encoder_layers=config.pixel_layers,
        decoder_layers=config.decoder_layers + 1, num_queries=config.queries, feature_strides=list(STRIDES),
        common_stride=STRIDES[0], dropout=0.0,
    )  # fmt: skip
