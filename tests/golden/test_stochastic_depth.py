"""09_stochastic_depth: blocks with given subsets of samples, and the tables of rates and counts."""

import json
import re

import pytest
import torch
from recorded import files, items, needs_recordings, reading, relative_error

from dinoforge.model.features import Subset
from dinoforge.model.layers import Attention, Block, Mlp, SwiGlu, drop_rates, split, subset_rows
from dinoforge.model.weights import load_into

pytestmark = needs_recordings
FORWARD = 2e-5
GRADIENT = 1e-5


def block_of(case, about) -> Block:
    """The recorded block; sizes that its settings do not tell are those of its tensors."""
    state, width = case.under("state"), about["dim"]
    swiglu = "mlp.w3.weight" in state
    assert swiglu == ("SwiGLU" in about.get("ffn", "Mlp"))
    hidden = state["mlp.w3.weight" if swiglu else "mlp.fc2.weight"].shape[1]
    block = Block(
        width,
        Attention(width, about["heads"], qkv_bias="attn.qkv.bias" in state, proj_bias="attn.proj.bias" in state),
        (SwiGlu if swiglu else Mlp)(width, hidden, bias=True),
        layerscale=1.0 if about.get("layerscale", "ls1.gamma" in state) else None,
    )
    load_into(block, state, name=case.prefix)
    return block


def subset(case, about, name, part, number):
    """Which samples get a branch: recorded as indices, or as a gate a sample."""
    if "keep_attn" in "".join(case.names):
        keep = case[f"in/keep_{name}"]
        return Subset(keep.flatten().nonzero().flatten(), 1 / (1 - about["ratio"]))
    rows = about["shapes"][number][0] if part else about["batch"]
    kept = subset_rows(rows, about["ratio"])
    index = case[f"in/idx_{name}{part}"]
    assert len(index) == kept == (about["kept"][number] if part else about["kept"])
    scale = rows / kept
    assert scale == pytest.approx(about["scales"][number] if part else about["scale"], rel=1e-12)
    return Subset(index, scale)


@pytest.mark.parametrize(
    ("path", "prefix"), items("09_stochastic_depth/*.safetensors", lambda cases, _names: [f"{name}/" for name in cases])
)
def test_block(path, prefix):
    with reading(path, prefix) as case:
        about = case.config[prefix[:-1]]
        block = block_of(case, about)
        # A list of two tensors of different length is one packed call.
        parts = [str(n) for n in range(len(about["shapes"]))] if "shapes" in about else [""]
        inputs = [case[f"in/x{part}"].requires_grad_() for part in parts]
        shapes = [x.shape[:2] for x in inputs]
        drop = [
            (subset(case, about, "attn", part, number), subset(case, about, "ffn", part, number))
            for number, part in enumerate(parts)
        ]
        x = torch.cat([x.flatten(0, 1) for x in inputs])
        total = torch.zeros(())
        for part, y, whole in zip(
            parts, split(block(x, shapes, drop), shapes), split(block(x, shapes), shapes), strict=True
        ):
            assert (y - case[f"out/y{part}"].flatten(0, 1)).abs().max().item() <= FORWARD
            if f"out/y{part}_eval" in case:
                assert (whole - case[f"out/y{part}_eval"].flatten(0, 1)).abs().max().item() <= FORWARD
            total = total + (y * case[f"grad/cotangent{part}"].flatten(0, 1)).sum()
        total.backward()
        for x, part in zip(inputs, parts, strict=True):
            assert relative_error(x.grad, case[f"grad/x{part}"]) <= GRADIENT
        for name, want in case.under("grad/param").items():
            mine = dict(block.named_parameters())[name].grad
            if name == "attn.qkv.bias":  # the key third has no gradient but rounding noise
                mine, want = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (mine, want))
            assert relative_error(mine, want) <= GRADIENT, name


def tables(kind):
    return [
        pytest.param(entry, id=f"{kind}{number}")
        for path in files("09_stochastic_depth/*.json")
        for number, entry in enumerate(
            json.loads(path.read_text())[kind].items()
            if kind == "per_block_rate"
            else json.loads(path.read_text())[kind]
        )
    ]


@pytest.mark.parametrize("entry", tables("per_block_rate"))
def test_rates(entry):
    name, want = entry
    depth, rate, uniform = re.fullmatch(r"depth(\d+)_rate([\d.]+)_uniform(True|False)", name).groups()
    assert drop_rates(int(depth), float(rate), uniform=uniform == "True") == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("entry", tables("subset"))
def test_counts(entry):
    kept = subset_rows(entry["batch"], entry["ratio"])
    assert kept == entry["kept"]
    assert entry["batch"] / kept == pytest.approx(entry["scale"], rel=1e-12)


@pytest.mark.parametrize("path", files("09_stochastic_depth/*.json"), ids=lambda path: path.stem)
def test_tables_hold_nothing_else(path):
    assert set(json.loads(path.read_text())) == {"per_block_rate", "subset"}
