"""01_vit: the whole network with recorded weights, its gradients, resized positions, and how it is initialised."""

import functools
import json
import re

import pytest
import torch
from recorded import ROOT, Case, config, files, items, names, needs_recordings, reading, relative_error

from dinoforge.model.heads import Head, HeadConfig
from dinoforge.model.layers import resize_positions
from dinoforge.model.official import unchunked
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.model.weights import load_into

pytestmark = needs_recordings

FORWARD = 2e-5
GRADIENT = 1e-5
MODELS = "01_vit/[!p]*.safetensors"
OUTPUTS = {
    "x_norm_clstoken": lambda features: features.image,
    "x_norm_regtokens": lambda features: features.registers,
    "x_norm_patchtokens": lambda features: features.patches.flatten(1, 2),
}


def vit_config(recorded: dict) -> VitConfig:
    """Our settings from the official ones that a file was recorded with."""
    return VitConfig(
        width=recorded["embed_dim"], depth=recorded["depth"], heads=recorded["num_heads"],
        patch=recorded["patch_size"], pixels=recorded["img_size"], channels=recorded.get("in_chans", 3),
        registers=recorded["num_register_tokens"], ffn="swiglu" if "swiglu" in recorded["ffn_layer"] else "mlp",
        ffn_ratio=recorded["mlp_ratio"], layerscale=recorded["init_values"],
        qkv_bias=recorded.get("qkv_bias", True), proj_bias=recorded.get("proj_bias", True),
        ffn_bias=recorded.get("ffn_bias", True), position_offset=recorded["interpolate_offset"],
        position_antialias=recorded["interpolate_antialias"],
    )  # fmt: skip


@functools.cache
def loaded(path) -> Vit:
    """The recorded network."""
    vit = Vit(vit_config(config(path)))
    state = {unchunked(name): value for name, value in Case(path).under("state").items()}
    assert load_into(vit, state, name=path.name) == f"{len(state)}/{len(state)} tensors"
    return vit.eval()


def prefixes(_config, every):
    """``state/``, and for every input its tensors, its outputs, its gradients and each request for inner layers."""
    found = {re.match(r"state/|[^/]+/inter/[^/]+/|[^/]+/[^/]+/", name).group() for name in every}
    return sorted(found)


def inputs(path, tag):
    case = Case(path, f"{tag}/in/")
    return case["image"], (case["masks"] if "masks" in case else None)


@pytest.mark.parametrize(("path", "prefix"), items(MODELS, prefixes))
def test_network(path, prefix):
    with reading(path, prefix) as case:
        tag, _, kind = prefix.rstrip("/").partition("/")
        if tag == "state":
            assert set(case.names) == set(Case(path).under("state"))
            assert loaded(path) is not None
            case.read.update(case.names)
        elif kind == "in":
            outputs = {name.split("/")[1] for name in names(path) if name.startswith(tag + "/")}
            assert "nomask" in outputs
            assert ("masks" in case) == ("mask" in outputs)
            assert case["image"].shape[-2] == config(path)["layout"][tag]["H"]
            case.read.update(case.names)
            assert set(case.names) <= {"image", "masks"}
        elif kind in {"nomask", "mask"}:
            compare_forward(case, loaded(path), *inputs(path, tag), masked=kind == "mask")
        elif kind == "grad":
            compare_gradients(case, loaded(path), *inputs(path, tag))
        else:
            compare_inner(case, loaded(path), inputs(path, tag)[0], kind.removeprefix("inter/"))


@torch.no_grad()
def compare_forward(case, vit, image, masks, *, masked):
    masks = masks if masked else None
    features = vit(image, masks)
    tokens = vit.embed(image, masks)
    for block in vit.blocks:
        tokens = block(tokens.flatten(0, 1), [tokens.shape[:2]]).view_as(tokens)
    for name in case.names:
        mine = tokens if name == "x_prenorm" else OUTPUTS[name](features)
        assert (mine - case[name]).abs().max().item() <= FORWARD, name


def compare_gradients(case, vit, image, masks):
    """The recorded scalar: features times cotangents, summed."""
    image = image.requires_grad_()
    features = vit(image, masks)
    total = (features.image * case["cotangent_cls"]).sum()
    total = total + (features.patches.flatten(1, 2) * case["cotangent_patch"]).sum()
    parameters = dict(vit.named_parameters())
    wanted = case.under("param")
    found = torch.autograd.grad(total, [image, *(parameters[unchunked(name)] for name in wanted)])
    assert relative_error(found[0], case["image"]) <= GRADIENT
    for (name, want), mine in zip(wanted.items(), found[1:], strict=True):
        if name.endswith("attn.qkv.bias"):  # the key third has no gradient but rounding noise
            mine, want = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (mine, want))
        assert relative_error(mine, want) <= GRADIENT, name


@torch.no_grad()
def compare_inner(case, vit, image, request):
    layers = [int(n) for n in request[2:].split("_")] if request.startswith("nL") else int(request[1:])
    normed, raw = vit.intermediate(image, layers), vit.intermediate(image, layers, norm=False)
    for name in case.names:
        kind, number = name.split("/")
        mine = {
            "cls": lambda n: normed[n].image,
            "reshaped_patch": lambda n: normed[n].patches.permute(0, 3, 1, 2),
            "patch_nonorm": lambda n: raw[n].patches.flatten(1, 2),
        }[kind](int(number))
        assert (mine - case[name]).abs().max().item() <= FORWARD, name


@pytest.mark.parametrize(("path", "prefix"), items("01_vit/pos_embed_*.safetensors", lambda _c, every: list(every)))
def test_resized_positions(path, prefix):
    case = Case(path)
    parts = prefix.split("/")
    if parts[0] == "pos_embed":
        assert any(name.startswith(f"out/{parts[1]}/") for name in names(path)), "a table that no result belongs to"
        return
    _, table, grid, how = parts
    rows, columns = (int(n) for n in grid.split("x"))
    offset, antialias = re.fullmatch(r"off([\d.]+)_aa([01])", how).groups()
    mine = resize_positions(
        case[f"pos_embed/{table}"], grid=(rows, columns), offset=float(offset), antialias=antialias == "1"
    )
    assert (mine - case[prefix]).abs().max().item() <= FORWARD


def statistics():
    return [
        pytest.param(path, model, name, id=f"{model}:{name}")
        for path in files("01_vit/init_stats*.json")
        for model, tensors in json.loads(path.read_text()).items()
        for name in tensors
    ]


@functools.cache
def fresh(path, model):
    """Our initialisation of the recorded architecture, whose sizes are those of its recorded tensors."""
    shapes = {name: about["shape"] for name, about in json.loads(path.read_text())[model].items()}
    generator = torch.Generator().manual_seed(0)
    if "cls_token" in shapes:
        width, patch = shapes["cls_token"][-1], shapes["patch_embed.proj.weight"][-1]
        depth = 1 + max(int(re.match(r"blocks\.(\d+)", name).group(1)) for name in shapes if name.startswith("blocks"))
        registers = shapes["register_tokens"][1] if "register_tokens" in shapes else 0
        side = round((shapes["pos_embed"][1] - 1) ** 0.5)
        module = Vit(VitConfig(width=width, depth=depth, heads=width // 64 or 1, patch=patch, pixels=side * patch,
                               registers=registers, layerscale=1e-5))  # fmt: skip
    else:
        linears = sorted(name for name in shapes if name.startswith("mlp") and name.endswith("weight"))
        prototypes, bottleneck = shapes["last_layer.weight_v"]
        module = Head(shapes[linears[0]][1], HeadConfig(prototypes=prototypes, bottleneck=bottleneck,
                                                       hidden=shapes[linears[0]][0], layers=len(linears)))  # fmt: skip
    module.init_weights(generator)
    return dict(module.named_parameters())


@pytest.mark.parametrize(("path", "model", "name"), statistics())
def test_initialisation(path, model, name):
    want = json.loads(path.read_text())[model][name]
    mine = fresh(path, model)[name].detach().double()
    assert list(mine.shape) == want["shape"]
    count, spread = mine.numel(), want["std"]
    if spread <= 1e-7 * abs(want["mean"]):  # a constant
        assert (mine - want["mean"]).abs().max().item() <= 1e-6 * abs(want["mean"])
        return
    # Two samples of one distribution: means differ by sampling, widths by less than five standard errors.
    error = spread / count**0.5
    assert abs(mine.mean().item() - want["mean"]) <= 5 * 2**0.5 * error
    assert mine.std().item() == pytest.approx(spread, rel=5 / count**0.5 + 1e-3)
    for mine_end, end in ((mine.min().item(), want["min"]), (mine.max().item(), want["max"])):
        assert abs(mine_end) == pytest.approx(abs(end), rel=0.35 if count < 10_000 else 0.25)


@pytest.mark.parametrize("path", files("01_vit/noise*.json"), ids=lambda path: path.stem)
def test_tolerance_leaves_room_for_rounding(path):
    recorded = {f"{p.stem}/{name}" for p in files(MODELS) for name in names(p)}
    for name, error in json.loads(path.read_text()).items():
        assert name in recorded, f"{name} is recorded nowhere"
        assert error <= FORWARD, name


def test_every_model_is_found():
    assert files(MODELS) or not (ROOT / "01_vit").exists()
