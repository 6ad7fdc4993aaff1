"""Prototype scores that are computed when they are needed, some rows at a time, and what is made of them.

With 65,536 prototypes a row of scores is a quarter of a megabyte, and a step has thousands of rows, each of which
Sinkhorn-Knopp and the cross-entropy touch a dozen times. So rows are multiplied with the prototypes block by block, and what
follows is done piece by piece, in pieces that a processor's cache holds.

Axes: N rows, S student and T teacher views of the same N, E channels of the bottleneck, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK_BYTES = 256 * 2**20
"""Scores of one block, in the precision that they are computed in."""
KEPT_BYTES = 512 * 2**20
"""Scores of the teacher that are kept while they are asked for several times; more than that is computed again each time."""
PIECE_BYTES = {"cpu": 4 * 2**20}
"""Scores of one piece, in float32; on devices not named here a whole block is one piece, for every piece costs a launch."""


@dataclass(frozen=True, slots=True)
class Scores:
    """``vectors @ prototypes.T``, not yet computed; both in the precision that it is to be computed in."""

    vectors: Float[Tensor, "*views N E"]
    """Of length 1; the scores themselves where there are no prototypes."""
    prototypes: Float[Tensor, "K E"] | None = None

    @property
    def count(self) -> int:
        """Number of prototypes."""
        return len(self.prototypes) if self.prototypes is not None else self.vectors.shape[-1]

    def rows(self, part: slice = slice(None)) -> Float[Tensor, "*views n K"]:
        """Some of the N rows of every view."""
        vectors = self.vectors[..., part, :]
        return vectors if self.prototypes is None else F.linear(vectors, self.prototypes)

    def blocks(self) -> Iterator[slice]:
        """Rows that are multiplied at once."""
        return _slices(self.vectors.shape, BLOCK_BYTES // (self.count * self.vectors.itemsize))

    def part(self, rows: slice) -> Scores:
        """These rows alone."""
        return replace(self, vectors=self.vectors[..., rows, :])

    def unflatten(self, views: int) -> Scores:
        """Rows that lie view after view, with an axis for the views."""
        return replace(self, vectors=self.vectors.unflatten(-2, (views, -1)))

    def over(self, temperature: float) -> Scores:
        """Divided by the temperature, without gradient, computed now if they take little memory."""
        vectors = (self.vectors.detach() / temperature).to(self.vectors.dtype)
        if self.prototypes is None:
            return replace(self, vectors=vectors)
        prototypes = self.prototypes.detach()
        if vectors.numel() // vectors.shape[-1] * self.count * vectors.itemsize > KEPT_BYTES:
            return Scores(vectors, prototypes)
        return Scores(F.linear(vectors, prototypes))


def pieces(block: Float[Tensor, "*views n K"]) -> Iterator[slice]:
    """Rows of a block that are worked on at once."""
    bytes_at_once = PIECE_BYTES.get(block.device.type, BLOCK_BYTES * 2)
    return _slices(block.shape, bytes_at_once // (4 * block.shape[-1]))


def _slices(shape: torch.Size, rows: int) -> Iterator[slice]:
    """Of the last axis but one, so that all views together have about so many rows."""
    size = max(rows // max(shape[:-2].numel(), 1), 1)
    return (slice(first, min(first + size, shape[-2])) for first in range(0, shape[-2], size))


@dataclass(frozen=True, slots=True)
class Assignment:
    """Probabilities ``softmax(scores - column)``, not yet computed; no gradient."""

    scores: Scores
    """Divided by the temperature."""
    column: Float[Tensor, " K"]

    def rows(self, part: slice = slice(None)) -> Float[Tensor, "*views n K"]:
        """Probabilities of some rows, float32."""
        return (self.scores.rows(part) - self.column).softmax(-1)

    def block(self, part: slice) -> Assignment:
        """These rows alone, their scores computed."""
        return replace(self, scores=Scores(self.scores.rows(part)))

    def part(self, rows: slice) -> Assignment:
        """These rows alone, still not computed."""
        return replace(self, scores=self.scores.part(rows))

    def unflatten(self, views: int) -> Assignment:
        """Rows that lie view after view, with an axis for the views."""
        return replace(self, scores=self.scores.unflatten(views))


def cross_entropy(
    student: Scores,
    target: Assignment,
    *,
    temperature: float,
    pairs: Float[Tensor, "terms S T"],
    weight: Float[Tensor, " N"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """Weighed cross-entropies of views of the same rows.

    Spelled out, with ``p = softmax(student / temperature)``, in float32::

        terms[i] = sum(pairs[i, s, t] weight[n] H(target[t, n], p[s, n]) for s, t, n)

    The gradient is computed together with the loss and takes the place of the scores, which are computed once.

    Args:
        student: Scores of S views of N rows.
        target: Probabilities of T views of the same rows.

    Returns:
        Sum of the terms, which has a gradient, and the terms, which have none; in nats.
    """
    total, terms = _CrossEntropy.apply(student.vectors, student.prototypes, target, temperature, pairs, weight)
    return total, terms


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, prototypes: Tensor | None, target: Assignment, temperature: float, pairs: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        wanted = any(ctx.needs_input_grad[:2])
        student = Scores((vectors / temperature).to(vectors.dtype), prototypes)
        terms = pairs.new_zeros(len(pairs))
        towards_vectors = torch.empty_like(vectors) if ctx.needs_input_grad[0] else None
        towards_prototypes: Tensor | None = None
        for rows in student.blocks():
            # The block is our own: slopes are written over its scores.
            block, aim = student.rows(rows), target.block(rows)
            for part in pieces(block):
                loss, slope = _entropies(block[:, part], aim.rows(part), pairs, weight[rows][part], slope=wanted)
                terms += loss
                if slope is not None:
                    block[:, part] = slope
            if towards_vectors is not None:
                towards_vectors[:, rows] = block if prototypes is None else block @ prototypes
            if prototypes is not None and ctx.needs_input_grad[1]:
                share = block.flatten(0, -2).T @ student.vectors[:, rows].flatten(0, -2)
                # Several blocks are summed up in float32: in bf16 small shares would be lost.
                towards_prototypes = share if towards_prototypes is None else towards_prototypes.float() + share
        if towards_vectors is not None:
            towards_vectors /= temperature
        if prototypes is not None and towards_prototypes is None and ctx.needs_input_grad[1]:
            towards_prototypes = torch.zeros_like(prototypes)
        ctx.save_for_backward(towards_vectors, towards_prototypes)
        ctx.mark_non_differentiable(terms)
        return terms.sum(), terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, _terms: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for nobody else has them, and a second way back would be refused. With an axis the scale keeps its float32:
        # a third, rounded to bf16, would be 0.2 % more.
        found = (None if slope is None else slope.mul_(scale.view(1)) for slope in ctx.saved_tensors)
        return (*found, None, None, None, None)


def _entropies(
    score: Float[Tensor, "S n K"], wanted: Float[Tensor, "T n K"], pairs: Float[Tensor, "terms S T"],
    weight: Float[Tensor, " n"], *, slope: bool,
) -> tuple[Float[Tensor, " terms"], Float[Tensor, "S n K"] | None]:  # fmt: skip
    """Terms of some rows, and their slope towards the scores divided by the temperature; ``wanted`` is used up."""
    log_p = score.float().log_softmax(-1)
    terms = -torch.einsum("ist,stn,n->i", pairs, torch.einsum("snk,tnk->stn", log_p, wanted), weight)
    if not slope:
        return terms, None
    share = pairs.sum(0)
    # share[s, t] weight[n] (p[s, n, k] - wanted[t, n, k]), summed over t
    p = log_p.exp_().mul_((share.sum(1, keepdim=True) * weight).unsqueeze(-1))
    p.flatten(1).addmm_(share, wanted.mul_(weight.unsqueeze(-1)).flatten(1), alpha=-1)
    return terms, p
