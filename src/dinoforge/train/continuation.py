"""Going on from a trained backbone on other images: what learns when, and what watches that old skill stays.

Fresh heads send a backbone gradients that mean nothing; so they and the mask token learn first, on a backbone that stands
still. Then its blocks follow from the last one down, for what lies low is the most general (gradual unfreezing, ULMFiT, Howard
& Ruder 2018, sec. 3.3). What stands still has a learning rate of 0; AdamW's moments are kept of it all the same, so that its
first step is no larger than its later ones.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from dinoforge.base.config import Config, Count


class RetentionConfig(Config):
    """Images of the old kind, on which the backbone is compared with the one that the run began from, and what is done where it
    has lost more than is allowed. In this order: slow down, blend back, stop; each time one of them."""

    not_science: ClassVar[frozenset[str]] = frozenset({"source"})

    source: str
    """Images of the old kind, with labels or without (their rows count, not where they lie)."""
    every: float = Field(default=0.05, gt=0, le=1)
    """Share of the plan from one look to the next; there is one at the end too, none while the backbone stands still."""
    points: float | None = Field(default=3.0, ge=0)
    """Percentage points of k-NN accuracy that may be lost, where there are labels; null: any."""
    drift: float | None = Field(default=None, ge=0, le=1)
    """How far features may drift, as one less their linear CKA with those of the start (0: the same up to rotation and scale);
    null: any. Needed where there are no labels."""
    train_rows: Count = Field(default=10_000, gt=0)
    """First so many labelled rows of the train split that vote."""
    test_rows: Count = Field(default=2_000, gt=1)
    """First so many rows that are asked, and whose features are compared."""
    neighbours: int = Field(default=10, gt=0)
    """Neighbours that vote."""
    slowdowns: int = Field(default=2, ge=0)
    """Times that the learning rate may be lowered."""
    rate_factor: float = Field(default=0.5, gt=0, lt=1)
    """Factor on the learning rate each time."""
    blends: int = Field(default=4, ge=0)
    """Times that the weights of the backbone may be moved towards those that the run began from."""
    blend: float = Field(default=0.5, gt=0, le=1)
    """Weight of the start each time, at most: weights become ``(1 - w) * weights + w * start`` (WiSE-FT, Wortsman et al. 2022,
    sec. 3) with the first w of an eighth, a quarter, half and all of it that will do."""
    stop: bool = True
    """Whether the run stops where all that is spent; false goes on with a warning."""

    @model_validator(mode="after")
    def _has_effect(self) -> RetentionConfig:
        name, default = "continuation.retention", {key: field.default for key, field in type(self).model_fields.items()}
        needs = [("slowdowns", "rate_factor"), ("blends", "blend")]
        for budget, factor in needs:
            if getattr(self, budget) == 0 and getattr(self, factor) != default[factor]:
                raise ValueError(
                    f"{name}.{factor}={getattr(self, factor)} has no effect with {name}.{budget}=0; leave it out."
                )
        if self.points is None and self.drift is None:
            for key in ("slowdowns", "rate_factor", "blends", "blend", "stop"):
                if getattr(self, key) != default[key]:
                    raise ValueError(
                        f"{name}.{key}={getattr(self, key)} has no effect without {name}.points or {name}.drift; leave it out."
                    )
        return self


class ContinueConfig(Config):
    """How a run goes on from ``init``. Lengths are shares of the plan."""

    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share in which heads and mask token learn alone. 1: no more than that; the backbone stays what it is, and gets heads that
    fit it, with which it can be a teacher."""
    unfreeze: float = Field(default=0.3, ge=0, lt=1)
    """Share after it over which the backbone follows: the last block with the last norm at its begin, every block below it one
    equal part later, patch embedding, tokens and positions at its end; 0: all at once."""
    backbone_rate: float = Field(default=0.1, gt=0, le=1)
    """Factor on the backbone's learning rate, beside ``plan.layer_decay``; heads and mask token have the whole of it."""
    retention: RetentionConfig | None = None
    """What watches that old skill stays, as {source: IMAGES}; null: nothing does."""

    @model_validator(mode="after")
    def _all_learns(self) -> ContinueConfig:
        if self.warmup == 1:
            for name, field in type(self).model_fields.items():
                wanted = 0 if name == "unfreeze" else field.default
                if name != "warmup" and getattr(self, name) != wanted:
                    raise ValueError(
                        f"continuation.{name} has no effect with continuation.warmup=1, which leaves the backbone as it is; "
                        f"set it to {'null' if wanted is None else wanted}."
                    )
        elif self.warmup + self.unfreeze >= 1:
            raise ValueError(
                f"continuation.warmup + continuation.unfreeze must be below 1, else the lowest layers never learn; got "
                f"{self.warmup:g} + {self.unfreeze:g}."
            )
        return self

    def opens(self, layers_above: int, *, blocks: int) -> float:
        """Share of the plan from which parameters of the backbone learn that have so many blocks and norms above them.

        Of n blocks the last (1) opens with ``warmup``, the one i blocks below it ``i / n`` of ``unfreeze`` later, patch
        embedding, tokens and positions (n + 1) at its end.
        """
        return self.warmup + self.unfreeze * max(layers_above - 1, 0) / max(blocks, 1)
