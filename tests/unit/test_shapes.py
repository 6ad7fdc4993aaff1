"""Signatures are executed in these tests: of arguments and of answers, of the product's functions as of any."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from dinoforge.loss.koleo import koleo_loss

shapes = pytest.importorskip("shapes", reason="no beartype")
WRONG = (pytest.importorskip("beartype").roar.BeartypeCallHintViolation, TypeCheckError)


@shapes.checked
def scaled(x: Float[Tensor, "N D"], by: Float[Tensor, " N"], *, turn: bool = False) -> Float[Tensor, "N D"]:
    found = x * by[:, None]
    return found.T if turn else found


@shapes.checked
def cut(x: Float[Tensor, "N D"], rows: int) -> Float[Tensor, "{rows} D"]:
    return x[:3]


@shapes.checked
def counted(rows: "list[int]") -> int:
    return rows[0] if rows[0] else "none"


@shapes.checked
def each(x: Float[Tensor, "N D"]) -> Iterator[float]:
    yield from x.sum(1).tolist()


@shapes.checked
@dataclass
class Pair:
    one: Float[Tensor, " D"]
    other: Float[Tensor, " D"]


X, BY = torch.ones(3, 2), torch.ones(3)


def test_what_fits_passes():
    assert scaled(X, BY).shape == (3, 2)
    assert scaled(torch.ones(2, 2), torch.ones(2), turn=True).shape == (2, 2)
    assert cut(X, 3).shape == (3, 2)
    assert counted([4]) == 4
    assert [*each(X)] == [2, 2, 2]
    assert Pair(BY, BY).one is BY


@pytest.mark.parametrize(
    "call",
    [
        lambda: scaled(X, torch.ones(2)),  # an axis of two lengths
        lambda: scaled(BY, BY),
        lambda: scaled(X.int(), BY),
        lambda: scaled(X, BY, turn=1),
        lambda: scaled(X, BY, turn=True),  # an answer of two times three
        lambda: cut(X, 2),
        lambda: counted("4"),
        lambda: counted([0]),
        lambda: each(BY),
        lambda: Pair(BY, torch.ones(2)),
        lambda: koleo_loss(BY, group=3),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(WRONG):
        call()


def test_unless_asked_not_to(unchecked):
    assert scaled(X, BY, turn=True).shape == (2, 3)
    assert cut(X, 2).shape == (3, 2)
    assert counted([0]) == "none"
