"""Released heads: their names and sizes as published, and what they compute next to a slow definition."""

import pytest
import torch
import torch.nn.functional as F

from dinoforge.base.errors import WeightsError
from dinoforge.model.features import Features
from dinoforge.model.released_heads import DptDepth, LinearClassifier, LinearDepth, LinearSegmentation, read_head

WIDTH = 16


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def layers(count, grid=(3, 4), width=WIDTH):
    return [
        Features(
            random(2, width, seed=n) * 5, random(2, 4, width, seed=n + 10), random(2, *grid, width, seed=n + 20) * 5
        )
        for n in range(count)
    ]


def dpt_shapes(d):
    """Names and shapes as published (checkpoints of DINOv2, depth heads)."""
    wide = [d // 8, d // 4, d // 2, d]
    found = {}
    for i, channels in enumerate(wide):
        found[f"reassemble_blocks.projects.{i}.conv.weight"] = (channels, d, 1, 1)
        found[f"reassemble_blocks.projects.{i}.conv.bias"] = (channels,)
        found[f"reassemble_blocks.readout_projects.{i}.0.weight"] = (d, 2 * d)
        found[f"reassemble_blocks.readout_projects.{i}.0.bias"] = (d,)
        found[f"convs.{i}.conv.weight"] = (256, channels, 3, 3)
        found[f"fusion_blocks.{i}.project.conv.weight"] = (256, 256, 1, 1)
        found[f"fusion_blocks.{i}.project.conv.bias"] = (256,)
        for unit in (1, 2) if i else (2,):
            for conv in (1, 2):
                found[f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.weight"] = (256, 256, 3, 3)
    for i, kernel in ((0, 4), (1, 2), (3, 3)):
        found[f"reassemble_blocks.resize_layers.{i}.weight"] = (wide[i], wide[i], kernel, kernel)
        found[f"reassemble_blocks.resize_layers.{i}.bias"] = (wide[i],)
    found |= {"project.conv.weight": (256, 256, 3, 3), "project.conv.bias": (256,)}
    for i, outside, inside, kernel in ((0, 128, 256, 3), (2, 32, 128, 3), (4, 1, 32, 1)):
        found[f"conv_depth.head.{i}.weight"] = (outside, inside, kernel, kernel)
        found[f"conv_depth.head.{i}.bias"] = (outside,)
    return found


def drawn(shapes, prefix=""):
    return {prefix + name: random(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}


def depth_file(path, shapes):
    torch.save({"state_dict": drawn(shapes, "decode_head."), "optimizer": {"lr": 1.0}, "meta": {"epoch": 3}}, path)


@pytest.mark.parametrize("count", [1, 4])
def test_classifier(count, tmp_path):
    state = drawn({"weight": (7, (1 + count) * WIDTH), "bias": (7,)})
    torch.save(state, tmp_path / "h.pth")
    head = read_head(tmp_path / "h.pth", width=WIDTH)
    assert isinstance(head, LinearClassifier)
    assert head.layers == count
    given = layers(count)
    for image in range(2):
        tokens = [features.image[image] for features in given]
        mean = sum(given[-1].patches[image, y, x] for y in range(3) for x in range(4)) / 12
        want = [state["weight"][k] @ torch.cat([*tokens, mean]) + state["bias"][k] for k in range(7)]
        torch.testing.assert_close(head(given)[image], torch.stack(want))


def test_sizes_are_those_of_the_published_files():
    """The head of one block for S: 1000 x 768 and 1000 numbers, 3,077,159 bytes of file; the DPT head of S: 13,961,377 values."""
    assert 4 * sum(p.numel() for p in LinearClassifier(384, 1, 1000).parameters()) == pytest.approx(3_077_159, rel=1e-3)
    with torch.device("meta"):
        head = DptDepth(384)
    assert sum(parameter.numel() for parameter in head.parameters()) == 13_961_377
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == dpt_shapes(384)


@pytest.mark.parametrize("count", [1, 4])
def test_linear_depth(count, tmp_path):
    depth_file(tmp_path / "h.pth", {"conv_depth.weight": (256, 2 * WIDTH * count, 1, 1), "conv_depth.bias": (256,)})
    head = read_head(tmp_path / "h.pth", width=WIDTH)
    assert isinstance(head, LinearDepth)
    assert head.layers == count
    given = layers(count)
    got = head(given, nearest=0.5, farthest=8.0)
    assert got.shape == (2, 1, 12, 16)
    # a map of every channel, resized by itself; then cell by cell
    channels = []
    for features in given:
        channels += list(features.patches.unbind(-1))
        channels += [features.image[:, c, None, None].expand(2, 3, 4) for c in range(WIDTH)]
    maps = [F.interpolate(one[:, None], size=(12, 16), mode="bilinear", align_corners=False)[:, 0] for one in channels]
    weight, bias = head.conv_depth.weight[:, :, 0, 0].double(), head.conv_depth.bias.double()
    for place in ((0, 0, 0), (1, 5, 9), (0, 11, 15)):
        x = torch.stack([one[place] for one in maps]).double()
        share = (weight @ x + bias).clamp(min=0) + 0.1
        want = sum(share[k] / share.sum() * (0.5 + 7.5 * k / 255) for k in range(256))
        assert got[place[0], 0, place[1], place[2]].item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 4])
def test_segmentation(count, tmp_path):
    wide = WIDTH * count
    state = drawn(
        {"conv_seg.weight": (5, wide, 1, 1), "conv_seg.bias": (5,), "bn.weight": (wide,), "bn.bias": (wide,),
         "bn.running_mean": (wide,)}, "decode_head.",
    )  # fmt: skip
    state["decode_head.bn.running_var"] = random(wide, seed=9).abs() + 0.5
    state["decode_head.bn.num_batches_tracked"] = torch.tensor(3)
    torch.save({"state_dict": state}, tmp_path / "h.pth")
    head = read_head(tmp_path / "h.pth", width=WIDTH)
    assert isinstance(head, LinearSegmentation)
    given = layers(count)
    s = {name.removeprefix("decode_head."): value.double() for name, value in state.items()}
    for image, row, column in ((0, 0, 0), (1, 2, 3)):
        x = torch.cat([features.patches[image, row, column] for features in given]).double()
        x = (x - s["bn.running_mean"]) / (s["bn.running_var"] + 1e-5).sqrt() * s["bn.weight"] + s["bn.bias"]
        want = s["conv_seg.weight"][:, :, 0, 0] @ x + s["conv_seg.bias"]
        torch.testing.assert_close(head(given)[image, :, row, column].double(), want, rtol=1e-4, atol=1e-5)


def slow_dpt(s, given):
    """The published description, by functions on the tensors of the file."""

    def conv(x, name, **more):
        weight = s[f"{name}.weight"]
        return F.conv2d(x, weight, s.get(f"{name}.bias"), padding=weight.shape[-1] // 2, **more)

    def doubled(x):
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def unit(x, name):
        return x + conv(F.relu(conv(F.relu(x), f"{name}.conv1.conv")), f"{name}.conv2.conv")

    levels = []
    for i, features in enumerate(given):
        images, height, width, d = features.patches.shape
        name, rows = "reassemble_blocks", features.patches.reshape(images, height * width, d)
        both = torch.cat([rows, features.image[:, None].repeat(1, height * width, 1)], dim=2)
        linear = both @ s[f"{name}.readout_projects.{i}.0.weight"].T + s[f"{name}.readout_projects.{i}.0.bias"]
        x = F.gelu(linear).transpose(1, 2).reshape(images, d, height, width)
        x = conv(x, f"{name}.projects.{i}.conv")
        resize = f"{name}.resize_layers.{i}"
        if i < 2:
            x = F.conv_transpose2d(x, s[f"{resize}.weight"], s[f"{resize}.bias"], stride=(4, 2)[i])
        elif i == 3:
            x = conv(x, resize, stride=2)
        levels.append(conv(x, f"convs.{i}.conv"))
    x = conv(doubled(unit(levels[3], "fusion_blocks.0.res_conv_unit2")), "fusion_blocks.0.project.conv")
    for i in (1, 2, 3):
        lateral = F.interpolate(levels[3 - i], size=x.shape[2:], mode="bilinear", align_corners=False)
        x = x + unit(lateral, f"fusion_blocks.{i}.res_conv_unit1")
        x = conv(doubled(unit(x, f"fusion_blocks.{i}.res_conv_unit2")), f"fusion_blocks.{i}.project.conv")
    x = conv(F.relu(conv(x, "project.conv")), "conv_depth.head.0")
    return F.relu(conv(F.relu(conv(doubled(x), "conv_depth.head.2")), "conv_depth.head.4")) + 0.001


@pytest.mark.parametrize("grid", [(2, 4), (3, 2)])
@torch.no_grad()
def test_dpt(grid, tmp_path):
    """Even and odd numbers of patches: of odd ones a level is resized to meet the other."""
    shapes = dpt_shapes(WIDTH)
    depth_file(tmp_path / "h.pth", shapes)
    head = read_head(tmp_path / "h.pth", width=WIDTH)
    assert isinstance(head, DptDepth)
    given = layers(4, grid)
    got, want = head(given), slow_dpt(drawn(shapes), given)
    assert (want > 0.01).float().mean() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.max().item())


def test_heads_that_do_not_fit(tmp_path):
    torch.save(drawn({"weight": (7, 40), "bias": (7,)}), tmp_path / "h.pth")
    with pytest.raises(WeightsError, match="takes 40 channels; a backbone of width 16 gives 32 or 80"):
        read_head(tmp_path / "h.pth", width=WIDTH)
    torch.save({"norm.weight": torch.zeros(2)}, tmp_path / "n.pth")
    with pytest.raises(WeightsError, match=r"is no released head .* its names begin norm.weight"):
        read_head(tmp_path / "n.pth", width=WIDTH)
    shapes = dpt_shapes(WIDTH)
    del shapes["project.conv.bias"]
    depth_file(tmp_path / "d.pth", shapes)
    with pytest.raises(WeightsError, match=r"1 missing: project.conv.bias"):
        read_head(tmp_path / "d.pth", width=WIDTH)
    with pytest.raises(WeightsError, match="takes 16 channels; a backbone of width 8 gives 8"):
        read_head(tmp_path / "d.pth", width=8)
