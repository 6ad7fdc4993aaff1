"""The script for SLURM, with stand-ins for SLURM's own commands: tasks get their numbers, and a stop is queued again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from process import SOURCE
from test_pretrain import TINY, WORLD, rows, wait_for

from ranks import free_port

pytestmark = pytest.mark.dist

SCRIPT = Path(__file__).parents[2] / "docs" / "pretrain.sbatch"
COMMANDS = {
    # Starts the tasks (with as many cores as the job asked for, which is said again since 22.05), hands SIGTERM on as slurmstepd does, ends with the highest status.
    "srun": """
import os, signal, subprocess, sys
assert sys.argv[1] == "--cpus-per-task=5"
tasks = [
    subprocess.Popen(sys.argv[2:], env={**os.environ, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)})
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
open(os.environ["SAID"] + ".srun", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
""",
    "scontrol": """
import os, sys
print("127.0.0.1" if sys.argv[1:3] == ["show", "hostnames"] else "", file=sys.stdout)
open(os.environ["SAID"], "a").write(" ".join(sys.argv[1:]) + chr(10))
""",
    "dinoforge": "from dinoforge.cli import main; main()",
}


def test_a_job_that_is_stopped_queues_itself_and_goes_on(tmp_path):
    commands, said, out = tmp_path / "bin", tmp_path / "said", tmp_path / "run"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!{sys.executable}\n{text}")
        (commands / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1",
        "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "5", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": str(free_port() - 20000),
        "SLURM_JOB_NODELIST": "here", "SAID": str(said),
    }  # fmt: skip
    words = [WORLD, f"out={out}", *TINY, "plan.images=1600", "plan.checkpoint_images=800", "--json"]
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    job = subprocess.Popen(["bash", str(SCRIPT), *words], **how)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(rows(out)) > 3)
    os.kill(int(Path(f"{said}.srun").read_text()), signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 75, err
    assert "Traceback" not in err
    assert said.read_text().splitlines()[1:] == [f"requeue {environment['SLURM_JOB_ID']}"]
    done = len(rows(out)) - 1
    assert 3 <= done < 100
    again = subprocess.run(["bash", str(SCRIPT), *words], check=False, **how, timeout=240)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.strip().splitlines()[-1])["resumed_from"] == done
    assert len(said.read_text().splitlines()) == 3  # hostnames, requeue, hostnames
