"""Ctrl-C before the command line is there."""

import os
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from dinoforge import start

ROOT = Path(__file__).parents[2]
COMMAND = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["dinoforge"].split(":")
SCRIPT = "from {0} import {1}; {1}()".format(*COMMAND)
"""What the installed command does."""
SLOW = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.01)\nraise SystemExit(7)\n"
"""A library that is being imported when Ctrl-C comes; it ends with 7 where nobody minds."""


def interrupted_at_import(folder, *words, ignoring=False):
    """Run one whatever these tests themselves were started to do with Ctrl-C."""
    minding = signal.SIG_IGN if ignoring else signal.SIG_DFL
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(SLOW)
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT / 'src'}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, minding),
    )  # fmt: skip


@pytest.mark.parametrize("words", [["-m", "dinoforge"], ["-c", SCRIPT]])
def test_ctrl_c_while_libraries_are_imported_is_one_line(words, tmp_path):
    done = interrupted_at_import(tmp_path, *words, "embed", "backbone=b", "data=d", "out=f")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "dinoforge: interrupted.\n")


def test_programs_are_told_too(tmp_path):
    done = interrupted_at_import(tmp_path, "-m", "dinoforge", "recipes", "--json")
    assert (done.returncode, done.stdout) == (130, '{"error": "interrupted."}\n')


def test_a_process_that_ignores_ctrl_c_goes_on(tmp_path):
    """As nohup and shells in the background start them."""
    assert interrupted_at_import(tmp_path, "-m", "dinoforge", "recipes", ignoring=True).returncode == 7


def test_what_is_run_has_the_signals_that_it_would_have_had(monkeypatch):
    told = []
    stub = types.ModuleType("dinoforge.cli")
    stub.main = lambda: told.append(signal.getsignal(signal.SIGINT))
    monkeypatch.setitem(sys.modules, "dinoforge.cli", stub)
    before = signal.getsignal(signal.SIGINT)
    start.main()
    assert told == [before]
    assert signal.getsignal(signal.SIGINT) is before
