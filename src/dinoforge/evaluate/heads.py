"""Many linear heads on the same frozen features, trained side by side: those of one input are one matrix product.

Axes: N images, B images of a batch, T tokens (class tokens of the last blocks, then the mean patch of the last), D channels,
F channels of an input, R learning rates, C classes, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinoforge.base.random import torch_generator
from dinoforge.evaluate.metrics import ranks

_MOMENTUM = 0.9
_STD = 0.01


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a head sees: class tokens of the last blocks, one after the other, and perhaps the mean patch of the last."""

    layers: int
    pool: bool

    def of(self, blocks: Float[Tensor, "N T D"]) -> Float[Tensor, "N F"]:
        """From features of the kind ``blocks``; a view of them."""
        last = blocks.shape[1] - 1
        return blocks[:, last - self.layers : last + self.pool].flatten(1)


@dataclass(frozen=True, slots=True)
class _Group:
    """The heads of one input, and the momentum of each."""

    inputs: Inputs
    weight: Float[Tensor, "R C F"]
    bias: Float[Tensor, "R C"]
    speed: Float[Tensor, "R C F"]
    bias_speed: Float[Tensor, "R C"]


class HeadGrid:
    """A head for every input and learning rate: SGD with momentum 0.9 and no weight decay, on each one's own cross-entropy.

    Weights begin as N(0, 0.01), biases as 0. Heads that differ in the learning rate alone begin alike, so that nothing of a
    head depends on which others there are.

    Args:
        channels: Of a block.
        rates: Learning rates, before the schedule.
        seed: Of the first weights.
    """

    def __init__(
        self,
        inputs: Sequence[Inputs],
        *,
        channels: int,
        classes: int,
        rates: Sequence[float],
        seed: int,
        device: torch.device,
    ) -> None:
        self.rates = torch.tensor(rates, device=device).view(-1, 1, 1)
        self.groups = list[_Group]()
        for one in inputs:
            drawn = torch_generator(seed, "linear head", one.layers, one.pool)
            first = torch.randn(classes, channels * (one.layers + one.pool), generator=drawn) * _STD
            weight = first.to(device).repeat(len(rates), 1, 1)
            bias = torch.zeros(len(rates), classes, device=device)
            self.groups.append(_Group(one, weight, bias, torch.zeros_like(weight), torch.zeros_like(bias)))

    def scores(self, group: _Group, blocks: Float[Tensor, "N T D"]) -> Float[Tensor, "N R C"]:
        """What the heads of one input say."""
        flat = group.weight.flatten(0, 1)
        return torch.addmm(group.bias.flatten(), group.inputs.of(blocks), flat.T).view(-1, *group.bias.shape)

    def step(self, blocks: Float[Tensor, "B T D"], labels: Int[Tensor, " B"], *, factor: float) -> None:
        """One update of every head on the mean cross-entropy of a batch.

        Args:
            factor: What the schedule makes of every learning rate now.
        """
        rows = torch.arange(len(labels), device=labels.device)
        for group in self.groups:
            # The gradient of the mean cross-entropy by the scores, written where these were.
            slope = self.scores(group, blocks).softmax(-1)
            slope[rows, :, labels] -= 1
            slope = slope.div_(len(labels)).flatten(1)
            group.speed.flatten(0, 1).addmm_(slope.T, group.inputs.of(blocks), beta=_MOMENTUM)
            group.bias_speed.mul_(_MOMENTUM).add_(slope.sum(0).view_as(group.bias_speed))
            group.weight.addcmul_(self.rates, group.speed, value=-factor)
            group.bias.addcmul_(self.rates[..., 0], group.bias_speed, value=-factor)

    def ranks(self, blocks: Float[Tensor, "N T D"], labels: Int[Tensor, " N"]) -> Int[Tensor, "H N"]:
        """Where every head puts the right class (``metrics.ranks``); all learning rates of the first input come first."""
        return torch.cat([ranks(self.scores(group, blocks).transpose(0, 1), labels) for group in self.groups])

    def head(self, number: int) -> tuple[Inputs, float, Float[Tensor, "C F"], Float[Tensor, " C"]]:
        """Input, learning rate, weight and bias of a head, counted as in ``ranks``."""
        place, rate = divmod(number, len(self.rates))
        group = self.groups[place]
        return group.inputs, self.rates[rate].item(), group.weight[rate].clone(), group.bias[rate].clone()
