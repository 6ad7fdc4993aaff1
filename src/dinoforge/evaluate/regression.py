"""Multinomial logistic regression with a squared penalty on all weights but the biases.

SciPy's L-BFGS minimises what torch computes, on the processor or an accelerator.

Axes: N images, D channels, C classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from dinoforge.base.config import Config, Count
from dinoforge.evaluate.lists import listed, rising

HELD_OUT = 0.1
"""Share of the images on which the penalty is chosen."""
_SEARCHED = 50
"""Most evaluations of one line search."""


Strengths = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(listed), AfterValidator(rising)
]


class LogisticConfig(Config):
    """The penalty, and how long is searched for the minimum."""

    c: Strengths | None = None
    """Weights of the images against the penalty: C sum(cross-entropy) + |W|**2 / 2; null: 45 from 1e-6 to 1e5. Of several the
    best on the held-out tenth is taken, of equal ones the smallest."""
    select: Literal["accuracy", "mean_class_accuracy"] = "accuracy"
    """What is best there, where an image has one class; the second for sets that report it (FGVC-Aircraft, Pets, Caltech-101,
    Flowers-102)."""
    iterations: Count = Field(default=1000, gt=0)
    """Most steps of L-BFGS for one C, each beginning where that of the next smaller C ended."""
    tolerance: float = Field(default=1e-12, gt=0)
    """The search ends when a step lowers the mean loss by less."""
    seed: int = Field(default=0, ge=0)
    """Of the tenth that is held out."""

    @model_validator(mode="after")
    def _has_effect(self) -> LogisticConfig:
        if self.select != "accuracy" and self.c is not None and len(self.c) == 1:
            raise ValueError(f"select={self.select} has no effect: there is one c, {self.c[0]:g}; give several.")
        return self


def strengths(config: LogisticConfig) -> tuple[float, ...]:
    """Every C that is tried, rising."""
    return tuple((10.0 ** np.linspace(-6, 5, 45)).tolist()) if config.c is None else config.c


class Logistic:
    """A logistic regression on given images, for one penalty after the other.

    Args:
        features: Any scale; computed with in float64 on their device.
        labels: Classes from 0.
    """

    def __init__(
        self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], *, classes: int, config: LogisticConfig
    ) -> None:
        # Biases are not penalised, so features about their mean have the same minimum, and it is found in fewer steps.
        self._mean = features.double().mean(0)
        self._x, self._labels, self._config = features.double() - self._mean, labels.to(features.device), config
        self._rows = torch.arange(len(labels), device=features.device)
        self.weight = self._x.new_zeros(classes, features.shape[1] + 1)
        """``[C D+1]``, the bias last: of the last fit, where the next one begins; for features about their mean."""

    def fit(self, c: float) -> None:
        """Minimise for one C."""
        from scipy.optimize import minimize

        # Two classes share one vector of weights in the usual form: w and -w of half its length, whose squares add up to half.
        penalty = (2 if len(self.weight) == 2 else 1) / (c * len(self._x))
        options = {"maxiter": self._config.iterations, "maxls": _SEARCHED, "ftol": self._config.tolerance, "gtol": 0.0,
                   "maxfun": self._config.iterations * _SEARCHED}  # fmt: skip
        start = self.weight.flatten().cpu().numpy()
        found = minimize(self._loss, start, args=(penalty,), jac=True, method="L-BFGS-B", options=options)
        self.weight = torch.from_numpy(found.x).to(self._x.device).view_as(self.weight)

    def _loss(self, flat: Float[np.ndarray, " P"], penalty: float) -> tuple[float, Float[np.ndarray, " P"]]:
        """Mean cross-entropy and penalty, and their gradient."""
        weight = torch.from_numpy(flat).to(self._x.device).view_as(self.weight)
        logs = torch.addmm(weight[:, -1], self._x, weight[:, :-1].T).log_softmax(-1)
        loss = -logs[self._rows, self._labels].mean() + penalty / 2 * weight[:, :-1].square().sum()
        slope = logs.exp_()
        slope[self._rows, self._labels] -= 1
        slope /= len(slope)
        gradient = torch.cat([slope.T @ self._x + penalty * weight[:, :-1], slope.sum(0)[:, None]], dim=1)
        return loss.item(), gradient.flatten().cpu().numpy()

    def scores(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Of every class, by the last fit; their softmax is its probability."""
        return torch.addmm(self.weight[:, -1], features.to(self._x.device).double() - self._mean, self.weight[:, :-1].T)
