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


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, as far as torch says; a tensor is made on them without there being any."""

    class Made:
        def __init__(self, device):
            # As torch does: a plain "cuda" is the current one.
            self.device = torch.device("cuda", 1) if device == "cuda" else torch.device(device)

    monkeypatch.setattr(torch, "empty", lambda *_, device: Made(device))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def ranks(monkeypatch):
    """This is the second of two ranks on this machine."""
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.usefixtures("gpus", "ranks")
@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_each_rank_has_a_gpu_of_its_own(wish):
    assert hardware.device(wish) == torch.device("cuda", 1)
    assert hardware.device("cpu") == CPU


@pytest.mark.usefixtures("gpus", "ranks")
@pytest.mark.parametrize("wish", ["cuda:0", "cuda:1", "mps"])
def test_several_ranks_do_not_share_a_device(wish):
    with pytest.raises(ConfigError, match=f"^speed.device={wish} is one device for several ranks; ") as error:
        hardware.device(wish)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("gpus", "ranks")
@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_more_ranks_than_gpus_are_refused(monkeypatch, wish):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"^3 ranks on a machine with 2 GPUs; start at most 2 there\.$"):
        hardware.device(wish)
    assert hardware.device("cpu") == CPU


@pytest.mark.usefixtures("gpus")
def test_alone_any_gpu_may_be_asked_for(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert hardware.device("cuda:0") == torch.device("cuda", 0)
    assert hardware.device("auto") == torch.device("cuda", 1)


@pytest.mark.usefixtures("ranks")
def test_apples_gpu_is_not_for_several_ranks(monkeypatch):
    """There is one of it, so ranks compute on the processor unless something else is asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.device("auto") == CPU
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert hardware.device("auto") == torch.device("mps")


def test_waiting_for_a_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: waited.append(where.type))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cpu", "mps", "cuda"):
        hardware.wait_for(torch.device(name))
    assert waited == ["mps", "cuda"]
