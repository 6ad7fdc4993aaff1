"""Projection heads: the prototypes' length and direction, against torch's own weight normalisation and finite differences."""

import torch
from torch.nn.utils.parametrizations import weight_norm

from dinoforge.model.heads import Prototypes


def test_prototypes_and_their_gradients_are_those_of_torch():
    torch.manual_seed(0)
    mine, plain = Prototypes(5, 7), torch.nn.Linear(5, 7, bias=False)
    torch.nn.init.normal_(mine.weight_v)
    torch.nn.init.uniform_(mine.weight_g, 0.5, 2)
    theirs = weight_norm(plain, dim=0)
    length, direction = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    with torch.no_grad():
        length.copy_(mine.weight_g)
        direction.copy_(mine.weight_v)
    towards = torch.randn(7, 5)
    (mine() * towards).sum().backward()
    (theirs.weight * towards).sum().backward()
    torch.testing.assert_close(mine(), theirs.weight)
    torch.testing.assert_close(mine.weight_g.grad, length.grad)
    torch.testing.assert_close(mine.weight_v.grad, direction.grad)


def test_the_way_back_is_the_slope():
    torch.manual_seed(0)
    head = Prototypes(3, 4).double()
    torch.nn.init.normal_(head.weight_v)
    inputs = (head.weight_v, head.weight_g)
    assert torch.autograd.gradcheck(lambda *_: head(), inputs)
