"""The precision that is chosen, by what a processor can do; no large bf16 product is ever run here."""

import pytest
import torch

from dinoforge.base import hardware
from dinoforge.base.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ({"avx2", "fma"}, False),
        ({"avx512f", "avx512_bf16"}, True),
        ({"amx_bf16", "amx_tile"}, True),
        ({"asimd", "bf16"}, True),
    ],
)
def test_instructions_decide(flags, has):
    assert hardware.cpu_has_bf16(frozenset(flags)) == has


def test_without_instructions_auto_is_fp32_and_a_wish_is_warned_of(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2"}))
    auto = hardware.choose_precision("auto", CPU)
    assert auto.precision == "fp32"
    assert "no bf16 instructions" in auto.why
    wish = hardware.choose_precision("bf16", CPU)
    assert wish.precision == "bf16"
    assert "warning" in wish.why
    assert "GFLOP/s in bf16 against" in wish.why


@pytest.mark.parametrize(("half", "full", "want"), [(3e9, 1e9, "bf16"), (1e9, 3e9, "fp32")])
def test_with_instructions_a_measurement_decides(monkeypatch, half, full, want):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(hardware, "matmul_rate", lambda dtype, **_: half if dtype == torch.bfloat16 else full)
    assert hardware.choose_precision("auto", CPU).precision == want
    assert hardware.choose_precision("fp32", CPU).precision == "fp32"
    assert hardware.choose_precision("bf16", CPU).precision == "bf16"


def test_context_computes_in_the_precision():
    x = torch.ones(2, 2)
    with hardware.compute_context("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with hardware.compute_context("fp32", CPU):
        assert (x @ x).dtype == torch.float32


def test_a_device_that_is_not_here():
    for wish in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"speed.device={wish} is not on this machine"):
            hardware.device(wish)
    assert hardware.device("cpu") == CPU
