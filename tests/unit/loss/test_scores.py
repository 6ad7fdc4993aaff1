"""Scores by blocks and pieces: the same numbers as at once and as by definition, in less memory."""

import pytest
import torch
from torch import Tensor

import plain
from dinoforge.loss import scores
from dinoforge.loss.scores import Assignment, Scores, cross_entropy
from dinoforge.loss.targets import Centring, sinkhorn
from dinoforge.train.forecast import Live

ROWS, WIDTH, PROTOTYPES = 7, 6, 13
SIZES = [(1, 1, 1), (5, 2, 2), (3, 3, 1), (2, 1, 3)]
"""Student views, teacher views, terms."""


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(*shape, seed=0):
    return torch.nn.functional.normalize(made(*shape, seed=seed), dim=-1)


def by_rows(patch, block, piece, *, views=1, count=PROTOTYPES, kept=0):
    """Blocks and pieces of so many rows of every view; what exceeds ``kept`` bytes is computed again each time."""
    patch.setattr(scores, "BLOCK_BYTES", 4 * count * views * block)
    patch.setattr(scores, "PIECE_BYTES", {"cpu": 4 * count * views * piece})
    patch.setattr(scores, "KEPT_BYTES", kept)


def case(students, teachers, terms, *, rows=ROWS):
    """Vectors, prototypes, probabilities, weights of pairs and of rows."""
    pairs = made(terms, students, teachers, seed=3).abs()
    pairs[:, 0, -1] = 0
    pairs[0, -1, 0] = 0.7
    return (
        directions(students, rows, WIDTH), directions(PROTOTYPES, WIDTH, seed=1),
        (4 * made(teachers, rows, PROTOTYPES, seed=2)).softmax(-1), pairs, made(rows, seed=4).abs(),
    )  # fmt: skip


def slow(values, target, *, temperature, pairs, weight):
    """The definition, pair by pair and row by row, in the precision that comes in."""
    found = []
    for term in pairs:
        total = values.new_zeros(())
        for s in range(len(values)):
            for t in range(len(target)):
                for n in range(len(weight)):
                    p = (values[s, n] / temperature).softmax(0)
                    total = total - term[s, t] * weight[n] * (target[t, n] * p.log()).sum()
        found.append(total)
    return torch.stack(found)


def entropy(vectors, prototypes, target, *, pairs, weight, temperature=0.2, scale=1.0):
    """Loss, terms and gradients."""
    vectors = vectors.detach().requires_grad_()
    prototypes = None if prototypes is None else prototypes.detach().requires_grad_()
    total, terms = cross_entropy(
        Scores(vectors, prototypes), target, temperature=temperature, pairs=pairs, weight=weight
    )
    (scale * total).backward()
    return total.detach(), terms, vectors.grad, None if prototypes is None else prototypes.grad


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("sizes", SIZES)
def test_cross_entropy_equals_its_definition(sizes, temperature):
    """Values, and gradients by the formula's own autograd in float64; a factor on the loss is one on its gradients."""
    vectors, prototypes, target, pairs, weight = case(*sizes)
    exact = [part.double().requires_grad_() for part in (vectors, prototypes)]
    numbers = [part.double() for part in (target, pairs, weight)]
    want = slow(exact[0] @ exact[1].T, numbers[0], temperature=temperature, pairs=numbers[1], weight=numbers[2])
    (0.3 * want.sum()).backward()
    total, terms, *gradients = entropy(
        vectors, prototypes, plain.given(target), pairs=pairs, weight=weight, temperature=temperature, scale=0.3
    )
    assert not terms.requires_grad
    torch.testing.assert_close(terms.double(), want.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, terms.sum())
    for mine, theirs in zip(gradients, exact, strict=True):
        torch.testing.assert_close(mine.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_scores_without_prototypes_have_the_gradient_themselves():
    vectors, prototypes, target, pairs, weight = case(5, 2, 2)
    values = (vectors @ prototypes.T).double().requires_grad_()
    want = slow(values, target.double(), temperature=0.2, pairs=pairs.double(), weight=weight.double())
    want.sum().backward()
    _, _, mine, _ = entropy(vectors @ prototypes.T, None, plain.given(target), pairs=pairs, weight=weight)
    torch.testing.assert_close(mine.double(), values.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_prototypes", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("block", "piece"), [(7, 2), (3, 3), (3, 2), (1, 1), (0, 0)])
def test_cross_entropy_by_blocks_is_that_at_once(monkeypatch, sizes, block, piece, with_prototypes):
    vectors, prototypes, _, pairs, weight = case(*sizes)
    if not with_prototypes:
        vectors, prototypes = vectors @ prototypes.T, None
    aim = Scores(directions(sizes[1], ROWS, WIDTH, seed=5), directions(PROTOTYPES, WIDTH, seed=6))
    column = made(PROTOTYPES, seed=7)
    want = entropy(vectors, prototypes, Assignment(aim.over(0.1), column), pairs=pairs, weight=weight)
    by_rows(monkeypatch, block, piece, views=sizes[0])
    blocks = list(Scores(vectors, prototypes).blocks())
    assert len(blocks) == -(-ROWS // max(block, 1))
    first = Scores(vectors, prototypes).rows(blocks[0])
    assert len(list(scores.pieces(first))) == -(-first.shape[1] // max(piece, 1))
    again = aim.over(0.1)
    assert again.prototypes is not None
    got = entropy(vectors, prototypes, Assignment(again, column), pairs=pairs, weight=weight)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_weight_that_bf16_does_not_hold_is_not_rounded():
    """A third: rounded, every entry would be 0.2 % larger."""
    vectors, prototypes, target, pairs, weight = case(3, 2, 1, rows=64)
    rough = vectors.bfloat16(), prototypes.bfloat16()
    (one, also), (third, less) = (
        (found.double() for found in entropy(*rough, plain.given(target), pairs=pairs, weight=weight, scale=scale)[2:])
        for scale in (1.0, 1 / 3)
    )
    for whole, part in ((one, third), (also, less)):
        assert ((part * whole).sum() / whole.square().sum()).item() == pytest.approx(1 / 3, rel=5e-4)


def test_only_what_asks_for_a_gradient_gets_one():
    vectors, prototypes, target, pairs, weight = case(3, 2, 1)
    _, _, *want = entropy(vectors, prototypes, plain.given(target), pairs=pairs, weight=weight)
    for asking in ((True, False), (False, True), (False, False)):
        parts = [part.clone().requires_grad_(asks) for part, asks in zip((vectors, prototypes), asking, strict=True)]
        total, _ = cross_entropy(Scores(*parts), plain.given(target), temperature=0.2, pairs=pairs, weight=weight)
        assert total.requires_grad == any(asking)
        if any(asking):
            total.backward()
        for part, asks, gradient in zip(parts, asking, want, strict=True):
            assert (part.grad is not None) == asks
            if asks:
                torch.testing.assert_close(part.grad, gradient)


@pytest.mark.parametrize("with_prototypes", [True, False])
def test_no_row_costs_nothing(with_prototypes):
    vectors, prototypes, target, pairs, weight = case(4, 2, 2, rows=0)
    if not with_prototypes:
        vectors, prototypes = vectors @ prototypes.T, None
    total, terms, *gradients = entropy(vectors, prototypes, plain.given(target), pairs=pairs, weight=weight)
    assert total == 0
    assert torch.equal(terms, torch.zeros(2))
    assert gradients[0].shape == vectors.shape
    if with_prototypes:
        assert torch.equal(gradients[1], torch.zeros_like(prototypes))


def test_bf16_stays_near():
    """Within bf16's rounding of the answer in float64 to the same numbers."""
    vectors, prototypes, target, pairs, weight = case(5, 2, 2)
    rough = [part.bfloat16() for part in (vectors, prototypes)]
    exact = [part.double().requires_grad_() for part in rough]
    numbers = [part.double() for part in (target, pairs, weight)]
    want = slow(exact[0] @ exact[1].T, numbers[0], temperature=0.2, pairs=numbers[1], weight=numbers[2])
    want.sum().backward()
    _, terms, *gradients = entropy(*rough, plain.given(target), pairs=pairs, weight=weight)
    assert terms.dtype == torch.float32
    torch.testing.assert_close(terms.double(), want.detach(), rtol=0.01, atol=0)
    for mine, theirs in zip(gradients, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs.grad).norm() <= 0.02 * theirs.grad.norm()


@pytest.mark.parametrize("kept", [0, 2**20])
@pytest.mark.parametrize("with_prototypes", [True, False])
def test_nothing_that_comes_in_is_changed(monkeypatch, kept, with_prototypes):
    vectors, prototypes, _, pairs, weight = case(3, 2, 1)
    aim = Scores(directions(2, ROWS, WIDTH, seed=5), directions(PROTOTYPES, WIDTH, seed=6))
    if not with_prototypes:
        vectors, prototypes = vectors @ prototypes.T, None
        aim = Scores(aim.rows())
    by_rows(monkeypatch, 3, 2, views=3, kept=kept)
    target = Assignment(aim.over(0.1), made(PROTOTYPES, seed=7))
    given = [vectors, prototypes, aim.vectors, aim.prototypes, target.scores.vectors, target.scores.prototypes,
             target.column, pairs, weight]  # fmt: skip
    given = [part for part in given if part is not None]
    before = [part.clone() for part in given]
    first = entropy(vectors, prototypes, target, pairs=pairs, weight=weight)
    second = entropy(vectors, prototypes, target, pairs=pairs, weight=weight)
    for mine, theirs in zip((*given, *first), (*before, *second), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


def centred(given, **how):
    """Targets by a centre that has moved already, and where it goes next."""
    centring = Centring(given.count, momentum=0.9)
    centring.centre.copy_(made(given.count, seed=8))
    found = centring.targets(given, group=torch.arange(len(given.vectors)) % 3, groups=4, **how)
    return found, centring.centre


@pytest.mark.parametrize("make", [lambda given, **how: (sinkhorn(given, **how), torch.zeros(0)), centred])
@pytest.mark.parametrize("with_prototypes", [True, False])
@pytest.mark.parametrize("kept", [0, 2**20])
def test_targets_by_blocks_are_those_at_once(monkeypatch, make, with_prototypes, kept):
    vectors, prototypes = directions(ROWS, WIDTH), directions(PROTOTYPES, WIDTH, seed=1)
    given = Scores(vectors, prototypes) if with_prototypes else Scores(vectors @ prototypes.T)
    before = given.rows().clone()
    want, moved = make(given, temperature=0.1)
    assert want.scores.prototypes is None
    for block, piece in ((3, 2), (7, 3), (0, 0)):
        by_rows(monkeypatch, block, piece, kept=kept)
        got, centre = make(given, temperature=0.1)
        assert (got.scores.prototypes is None) == (kept > 0 or not with_prototypes)
        torch.testing.assert_close(got.rows(), want.rows())
        torch.testing.assert_close(got.rows(slice(2, 5)), want.rows()[2:5])
        torch.testing.assert_close(got.block(slice(2, 5)).rows(slice(1, 2)), want.rows()[3:4])
        torch.testing.assert_close(centre, moved)
    assert torch.equal(given.rows(), before)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_no_column_vanishes_at_a_low_temperature(rounds):
    """Scores from -1 to 1 at 0.005 lie 400 nats apart: an unloved column is nothing in float32, but gets its share."""
    values = made(24, 8).clamp(-1, 1)
    values[:, 3], values[:, 5] = -1, 1
    values[0, 3] = -0.999
    found = sinkhorn(Scores(values), temperature=0.005, rounds=rounds).rows()
    q = values.double() / 0.005
    for _ in range(rounds):
        q = q - q.logsumexp(0)
        q = q.log_softmax(1)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(24))
    torch.testing.assert_close(found.double(), q.exp(), rtol=1e-3, atol=1e-4)
    assert found[:, 3].sum() > 0.5


def plain_entropy(vectors: Tensor, prototypes: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """As it is written down: all scores at once."""
    log_p = (vectors @ prototypes.T / 0.1).log_softmax(-1)
    return -torch.einsum("snk,tnk,n->", log_p, target, weight)


def test_no_tensor_of_all_rows_and_prototypes_is_alive(monkeypatch):
    """Of targets and loss together, forward and backward; the formula as it is written down needs several."""
    views, rows, count = 2, 1024, 2048
    whole = 4 * views * rows * count
    vectors, prototypes = directions(views, rows, 8).requires_grad_(), directions(count, 8, seed=1).requires_grad_()
    teacher, weight = directions(views * rows, 8, seed=2), torch.full((rows,), 1 / rows)
    by_rows(monkeypatch, 32, 8, views=views, count=count)
    with Live() as live:
        target = sinkhorn(Scores(teacher, prototypes), temperature=0.05)
        total, _ = cross_entropy(
            Scores(vectors, prototypes), target.unflatten(views), temperature=0.1, weight=weight,
            pairs=torch.ones(1, views, views),
        )  # fmt: skip
        total.backward()
    assert live.peak < whole / 4
    with Live() as live:
        wanted = plain_entropy(vectors, prototypes, target.unflatten(views).rows(), weight)
        wanted.backward()
    assert live.peak > 2 * whole
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)
