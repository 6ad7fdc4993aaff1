"""The check of a CUDA machine: its arithmetic by hand, its refusal elsewhere, and that no failure of a part ends it."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def loaded(name):
    """A file of ``bench``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


CHECK = loaded("gpu_check")


def test_share_of_the_peak_by_hand():
    """ViT-S/14 at 224 and 98 pixels has 257 and 50 tokens: 12 (24 T 384^2 + 4 T^2 384) operations a view."""
    step = loaded("step")
    wide, near = 12_131_518_464, 2_169_446_400
    image = 3 * (2 * wide + 8 * near) + 2 * wide
    assert image == 149_118_861_312
    assert step.flops(step.CASES["vit_small"]) == image
    # 1,000 images a second are 149.1 of an H100's 989 TFLOP/s.
    assert CHECK.share_of_peak(1000 * image / 1e12, CHECK.PEAKS["NVIDIA H100 80GB HBM3"]) == pytest.approx(0.1508)
    assert CHECK.share_of_peak(149.1, CHECK.PEAKS.get("NVIDIA L40S")) is None, "no L4, though its name begins so"


def test_steps_must_begin_at_one_loss():
    """Else what is timed is not the same step; and a loss that is no number is not passed over."""
    agree = loaded("step").agree
    assert agree({"ours": 11.0, "plain": 11.0005}, "fp32")
    assert not agree({"ours": 11.0, "plain": 11.1}, "fp32")
    assert agree({"ours": 11.0, "plain": 11.1}, "bf16")
    assert not agree({"ours": float("nan"), "plain": float("nan")}, "bf16")


def test_a_smaller_card_takes_a_smaller_batch():
    h100, l4 = 85_000_000_000, 23_600_000_000
    assert [CHECK.batch_for(most, h100) for most in (128, 64, 32)] == [128, 64, 32]
    assert [CHECK.batch_for(most, l4) for most in (128, 64, 32)] == [32, 16, 8]
    assert CHECK.batch_for(32, 10**9) == 2, "KoLeo needs a second image"


def test_pytest_says_how_many():
    assert CHECK.counted("1 failed, 9 passed, 2 skipped, 700 deselected in 3.10s") == {
        "passed": 9, "failed": 1, "skipped": 2,
    }  # fmt: skip
    assert CHECK.counted("3 passed, 2 errors in 1s") == {"passed": 3, "failed": 2, "skipped": 0}


def test_a_bench_that_fails_is_recorded():
    found = CHECK.bench("vit_small", {"no_such": "1"}, peak=1e12, seconds=100)
    assert found["case"] == "vit_small"
    assert "no_such" in found["error"]
    assert CHECK.bench("vit_small", {}, peak=1e12, seconds=-1)["error"] == "no time was left"
    killed = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert CHECK.last_error(f"Traceback\n  File x\n{killed}\n\nsome later word\n") == killed


def test_a_bench_that_hangs_is_ended_with_its_children(tmp_path):
    """The grandchild would write a file after two seconds."""
    late = tmp_path / "late"
    grandchild = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    code = (
        f"import subprocess, sys; print('so far', flush=True); subprocess.run([sys.executable, '-c', {grandchild!r}])"
    )
    began = time.monotonic()
    out, errors = CHECK.run([sys.executable, "-c", code], 1)
    assert time.monotonic() - began < 2
    assert out == "so far\n"
    assert CHECK.last_error(errors) == "TimeoutError: ended after 1 s"
    time.sleep(2)
    assert not late.exists()


def test_without_a_device_it_says_so_in_one_line(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(BENCH.parent / "src")}
    done = subprocess.run(
        [sys.executable, str(BENCH / "gpu_check.py")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "gpu-check: torch finds no CUDA device here; nothing was checked.\n"
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_only_files_with_gpu_tests_are_read(monkeypatch):
    """None of them needs a library that only other tests use."""
    commands = []
    monkeypatch.setattr(CHECK, "run", lambda command, seconds: commands.append(command) or ("4 passed in 1s", ""))
    found = CHECK.gpu_tests(10)
    assert found == {"passed": 4, "failed": 0, "skipped": 0, "failures": []}
    files = [Path(word).name for word in commands[0] if word.endswith(".py")]
    assert "test_step_on_gpu.py" in files
    assert "test_config.py" not in files
