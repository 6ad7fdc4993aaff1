"""What a container or a job leaves of the machine's memory, by its control groups."""

from pathlib import Path

import pytest
import torch

from dinoforge.base import memory

CPU = torch.device("cpu")
GIB = 2**30


def group(folder, names, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names[:2], numbers[:2], strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"cache 7\n{names[2]} {numbers[2]}\n")


@pytest.fixture
def control(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTROL", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    return tmp_path


def test_the_tightest_of_the_groups_around_counts(control):
    """As of a step in a job of SLURM: the step has no limit, the job has; of files that were read half can be dropped."""
    (control / "own").write_text("0::/slurm/job_1/step_0\n")
    names = memory._SECOND
    group(control / "cgroup" / "slurm" / "job_1" / "step_0", names, ("max", GIB, 0))
    group(control / "cgroup" / "slurm" / "job_1", names, (3 * GIB, 2 * GIB, GIB // 2))
    group(control / "cgroup" / "slurm", names, (5 * GIB, 2 * GIB, 0))
    assert memory.memory_bytes(CPU) == 3 * GIB
    assert memory.free_memory_bytes(CPU) == min(3 * GIB // 2, memory.free_memory_bytes(CPU))
    assert memory.free_memory_bytes(CPU) == 3 * GIB // 2


def test_in_a_container_the_path_is_not_to_be_seen(control):
    (control / "own").write_text("0::/docker/0123456789\n")
    group(control / "cgroup", memory._SECOND, (2 * GIB, GIB, 0))
    assert (memory.memory_bytes(CPU), memory.free_memory_bytes(CPU)) == (2 * GIB, GIB)


def test_the_first_version(control):
    """Its groups are by controller, and without a limit that is a huge number."""
    (control / "own").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/\n")
    group(control / "cgroup" / "memory" / "job", memory._FIRST, (4 * GIB, 3 * GIB, GIB))
    group(control / "cgroup" / "memory", memory._FIRST, (2**63 - 4096, 9 * GIB, 0))
    assert (memory.memory_bytes(CPU), memory.free_memory_bytes(CPU)) == (4 * GIB, 2 * GIB)


@pytest.mark.parametrize("text", [None, "", "0::/\n"])
def test_without_groups_it_is_the_machine(control, text):
    if text is not None:
        (control / "own").write_text(text)
    assert memory.memory_bytes(CPU) == memory._whole()
    assert 0 < memory.free_memory_bytes(CPU) <= memory._whole()
    assert isinstance(memory.OWN, Path)
