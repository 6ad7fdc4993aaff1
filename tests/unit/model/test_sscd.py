"""SSCD: the architecture against another library's and published numbers, and what files are opened."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.base.files import sha256
from dinoforge.data.augment import squeezed
from dinoforge.model.sscd import ResNet50, Sscd, generalised_mean, is_file, open_descriptor


def drawn(width):
    """Random weights, and statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    module = Sscd(width).eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(-0.2, 0.2, generator=generator).add_(1.0 if name.endswith("weight") else 0.0)
    return module


@pytest.fixture(scope="module")
def module():
    return drawn(16)


@pytest.fixture(scope="module")
def weights(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sscd_disc_mixup.torchvision.pt"
    torch.save(dict(module.state_dict()), path)
    return path


def test_as_many_parameters_as_published():
    """torchvision's ResNet-50 with a thousand classes has 25,557,032."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ResNet50(1000).parameters()) == 25_557_032
        names = Sscd(512).state_dict()
    assert names["backbone.layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert names["backbone.layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert names["backbone.layer4.2.bn3.running_var"].shape == (2048,)
    assert names["backbone.fc.weight"].shape == (512, 2048)
    assert len(names) == 320  # 318 of the trunk, weight and bias of the projection


def test_trunk_equals_another_library(module):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ResNetModel(transformers.ResNetConfig()).eval()
    stem = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    short = {"downsample.0": "shortcut.convolution", "downsample.1": "shortcut.normalization"}
    state = {}
    for name, tensor in module.backbone.state_dict().items():
        parts = name.rsplit(".", 1)
        if parts[0] == "fc":
            continue
        if parts[0] in stem:
            place = stem[parts[0]]
        else:
            layer, block, rest = parts[0].split(".", 2)
            inner = (
                short.get(rest) or f"layer.{int(rest[-1]) - 1}.{'convolution' if 'conv' in rest else 'normalization'}"
            )
            place = f"encoder.stages.{int(layer[-1]) - 1}.layers.{block}.{inner}"
        state[f"{place}.{parts[1]}"] = tensor
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 70, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        found = module.backbone.trunk(images)
    assert found.shape == (2, 2048, 3, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_generalised_mean_by_hand():
    """Cube root of (1 + 8 + 27 + 0) / 4: what is below 1e-6 counts as that."""
    x = torch.tensor([[[[1.0, 2.0], [3.0, -5.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    torch.testing.assert_close(generalised_mean(x), torch.tensor([[9.0 ** (1 / 3), 2.0]]))
    torch.testing.assert_close(generalised_mean(x, power=1.0), torch.tensor([[1.5, 2.0]]), rtol=1e-5, atol=1e-6)


def test_released_tensors_are_opened(module, weights):
    found = open_descriptor(weights)
    assert (found.name, found.width) == (f"sscd {sha256(weights)[:16]}", 16)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = found.module(images)
        projected = module.backbone.fc(generalised_mean(module.backbone.trunk(images)))
    torch.testing.assert_close(ours, projected / projected.norm(dim=1, keepdim=True))
    assert is_file(str(weights))
    assert not is_file(str(weights.parent))


def test_a_file_without_counts_of_batches_is_opened(module, tmp_path):
    state = {name: tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pt")
    assert open_descriptor(tmp_path / "old.pt").width == 16


def test_what_is_no_sscd_is_named(tmp_path):
    (tmp_path / "text.pt").write_text("not a tensor")
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "vit.pt")
    torch.save({"embeddings.1.weight": torch.zeros(8, 8)}, tmp_path / "classy.pt")
    torch.save({"backbone.conv1.weight": torch.zeros(1), "backbone.fc.weight": torch.zeros(4, 9)}, tmp_path / "part.pt")
    torch.save({"run": print}, tmp_path / "code.pt")
    for name, message in (
        ("nowhere.pt", "does not exist"), ("text.pt", "is no readable weights file"),
        ("vit.pt", "is no SSCD descriptor: it lacks .*; its names begin cls_token"),
        ("classy.pt", "Classy Vision; take the file that ends in .torchvision.pt"),
        ("part.pt", r"tensors fit\. .* missing: backbone"), ("code.pt", "pickle with code inside"),
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=message) as error:
            open_descriptor(tmp_path / name)
        assert "\n" not in str(error.value)


def program(path, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_a_program_runs_only_where_it_is_vouched_for(weights, tmp_path):
    torch.manual_seed(0)
    path = program(
        tmp_path / "a.torchscript.pt", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8))
    )
    with pytest.raises(
        ConfigError, match=f"would be run as TorchScript, .* where you trust it, say trust_sha256={sha256(path)}"
    ):
        open_descriptor(path)
    with pytest.raises(ConfigError, match=f"trust_sha256=123 is not the SHA-256 of .*, which is {sha256(path)}"):
        open_descriptor(path, trust_sha256="123")
    found = open_descriptor(path, trust_sha256=sha256(path).upper())
    assert (found.name, found.width) == (f"script {sha256(path)[:16]}", 8)
    torch.testing.assert_close(found.module(torch.ones(3, 3, 9, 9)).norm(dim=1), torch.ones(3))
    with pytest.raises(ConfigError, match="trust_sha256= has no effect"):
        open_descriptor(weights, trust_sha256=sha256(weights))


def test_a_program_that_gives_no_vectors_is_refused(tmp_path):
    path = program(tmp_path / "b.pt", nn.AdaptiveAvgPool2d(2))
    with pytest.raises(WeightsError, match=r"is no descriptor: for 2 images it gives \[2, 3, 2, 2\]"):
        open_descriptor(path, trust_sha256=sha256(path))
    path = program(tmp_path / "c.pt", nn.Linear(7, 2))
    with pytest.raises(WeightsError, match="cannot be run as a descriptor"):
        open_descriptor(path, trust_sha256=sha256(path))


def test_nothing_of_a_picture_is_cut_off():
    """Bilinear and antialiased is Pillow's, to within one grey level; both ends of a long picture are in."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    found = squeezed(pixels, side=32).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1
