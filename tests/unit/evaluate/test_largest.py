"""The largest numbers of a row, ties and all, against a stable sort of the whole row."""

import pytest
import torch

from dinoforge.evaluate.largest import largest


@pytest.mark.parametrize("different", [1, 2, 5, 40, 10**6])
@pytest.mark.parametrize("count", [1, 3, 20, 299, 300, 500])
def test_equals_a_stable_sort(different, count):
    values = torch.randint(-different, different, (30, 300), generator=torch.Generator().manual_seed(count)).float()
    given = values.clone()
    found, place = largest(values, count=count)
    want, order = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found, want[:, :count])
    assert torch.equal(place, order[:, :count])
    assert torch.equal(values, given)


def test_rows_with_and_without_ties_side_by_side():
    """By hand: a tie that is cut, one that is kept whole, one below what is kept, none."""
    values = torch.tensor([[1.0, 3, 1, 1], [2, 0, 2, 1], [0, 5, 0, 4], [0.5, 0.1, 0.2, 0.3]])
    found, place = largest(values, count=2)
    assert found.tolist() == [[3, 1], [2, 2], [5, 4], [0.5, pytest.approx(0.3)]]
    assert place.tolist() == [[1, 0], [0, 2], [1, 3], [0, 3]]


def test_no_rows():
    found, place = largest(torch.ones(0, 5), count=2)
    assert (found.shape, place.shape) == ((0, 2), (0, 2))
