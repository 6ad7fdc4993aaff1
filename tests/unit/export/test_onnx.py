"""The ONNX model itself: names of its axes, weights in a file beside it, and silence."""

import logging
import warnings

import pytest
import torch

from dinoforge.base.errors import WeightsError
from dinoforge.export import onnx
from dinoforge.export.compare import compared, judge
from dinoforge.model.vit import VitConfig
from perturbed import perturbed

runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
def test_axes_have_names_and_large_weights_lie_beside(tmp_path, monkeypatch, capfd):
    """Batch, height and width are free: a side of one patch too, and sizes far from those of the trace."""
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    monkeypatch.setattr(onnx, "_MOST_BYTES", 0)
    backbone = perturbed(VitConfig(width=32, depth=1, heads=2, patch=8, pixels=32, registers=2, channels=4))
    written = onnx.TARGET.write(tmp_path, backbone)
    assert "torchvision" not in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    weights = sum(tensor.numel() * 4 for tensor in backbone.module.state_dict().values())
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.9 * weights
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    axes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert axes == {
        "images": ["batch", 4, "height", "width"],
        "image": ["batch", 32],
        "registers": ["batch", 2, 32],
        "patches": ["batch", "rows", "columns", 32],
    }
    reopened = onnx.TARGET.reopen(tmp_path, written)
    where = [(1, 8, 8), (1, 8, 160), (7, 96, 40), (1, 32, 32)]
    judge(compared(backbone.module, reopened.features, where, channels=4), 1e-5, name="onnx")
    images = torch.randn(1, 4, 35, 47, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reopened.features(images).patches, reopened.features(images[..., :32, :40]).patches)
    assert "cut off" in reopened.notes[0]
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(WeightsError, match="cannot be opened by ONNX Runtime"):
        onnx.TARGET.reopen(tmp_path, written)


def test_the_logger_is_as_it_was():
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with pytest.raises(KeyError), onnx._quiet():
        warnings.warn("of the exporter", FutureWarning, stacklevel=1)
        assert logger.level == logging.ERROR
        raise KeyError
    assert logger.level == before
