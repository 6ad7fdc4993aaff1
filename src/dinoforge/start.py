"""Where the command ``dinoforge`` begins: Ctrl-C is one line even while the libraries are imported, which takes seconds."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Import the command line and run it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a process that was started to ignore Ctrl-C goes on ignoring it
        signal.signal(signal.SIGINT, _stop)
    from dinoforge.cli import main as run

    importlib.import_module("dinoforge.verbs.table")  # every command needs it, and it imports the most
    signal.signal(signal.SIGINT, before)  # from here on it is an exception, which the command line catches
    run()


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End at once: an exception raised within an import is swallowed by some libraries, and shown by others."""
    if "--json" in sys.argv:
        print('{"error": "interrupted."}', flush=True)
    print("dinoforge: interrupted.", file=sys.stderr, flush=True)
    os._exit(130)
