"""02_head: scores, bottleneck and gradients of the projection head."""

import pytest
import torch
from recorded import items, needs_recordings, reading, relative_error

from dinoforge.model.heads import Head, HeadConfig
from dinoforge.model.weights import load_into

pytestmark = needs_recordings
TIGHT = 1e-5


@pytest.mark.parametrize(
    ("path", "prefix"), items("02_head/*.safetensors", lambda heads, _names: [f"{head}/" for head in heads])
)
def test_head(path, prefix):
    with reading(path, prefix) as case:
        sizes = case.config[prefix[:-1]]
        head = Head(
            sizes["in_dim"],
            HeadConfig(prototypes=sizes["out_dim"], hidden=sizes["hidden_dim"], bottleneck=sizes["bottleneck_dim"],
                       layers=sizes["nlayers"]),
        )  # fmt: skip
        load_into(head, case.under("state"), name=prefix)
        x = case["in/x"].requires_grad_()
        vectors, prototypes = head(x)
        scores = vectors @ prototypes.T
        assert relative_error(scores.detach(), case["out/logits"]) <= TIGHT
        assert relative_error(head.mlp(x).detach(), case["out/bottleneck_before_l2"]) <= TIGHT
        if "in/x3d" in case:
            assert relative_error((head(case["in/x3d"])[0] @ prototypes.T).detach(), case["out/logits3d"]) <= TIGHT

        wanted = case.under("grad")
        (scores * wanted.pop("cotangent")).sum().backward()
        found = {"x": x.grad, **{name: parameter.grad for name, parameter in head.named_parameters()}}
        for name, want in wanted.items():
            assert relative_error(found[name.removeprefix("param/")], want) <= TIGHT, name
        assert torch.isfinite(x.grad).all()  # also of the row of zeros
