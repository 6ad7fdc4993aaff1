"""Several ranks on this machine, as torchrun would start them, but forked from this process: no time goes into importing torch."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback

import torch
import torch._dynamo  # with what follows, what a rank imports when it first steps: once here, not in each that is forked
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor

from dinoforge.base import dist

FORK = multiprocessing.get_context("fork")
PATIENCE = 300
"""Seconds after which ranks that have not ended are killed and the test fails."""


def free_port():
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return here.getsockname()[1]


class Ranks:
    """Ranks that each call ``work(*words)``; what a rank prints goes to a file of its own under ``folder``, if one is given."""

    def __init__(self, world, work, *words, folder=None, environment=()):
        port = str(free_port())
        self.folder = folder
        self.world = world
        self.pipes, self.processes = [], []
        for rank in range(world):
            mine, theirs = FORK.Pipe(duplex=False)
            names = {
                "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            } | dict(environment)  # fmt: skip
            process = FORK.Process(target=self._child, args=(theirs, rank, names, work, words))
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def _child(self, pipe, rank, names, work, words):
        os.setpgrp()  # so that a rank is killed together with its workers, and no test's signal reaches us
        os.environ.update({name: str(value) for name, value in names.items() if value is not None})
        for name in (name for name, value in names.items() if value is None):
            os.environ.pop(name, None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        torch.set_num_threads(1)
        if self.folder is not None:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        try:
            answer = (True, work(*words))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
        sys.stdout.flush()
        os._exit(0)

    def kill(self, number=signal.SIGKILL, ranks=None):
        """Send a signal to some ranks, or all, and with SIGKILL to all that they started."""
        for rank, process in enumerate(self.processes):
            if ranks is None or rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number) if number == signal.SIGKILL else os.kill(process.pid, number)

    def answers(self, patience=PATIENCE):
        """What each rank returned; None for one that was killed.

        Raises:
            AssertionError: A rank raised, or they took too long.
        """
        found, until = [], time.monotonic() + patience
        for rank, pipe in enumerate(self.pipes):
            try:
                if not pipe.poll(max(until - time.monotonic(), 0)):
                    self.kill()
                    raise AssertionError(f"rank {rank} has not ended after {patience} s")
                fine, answer = pickle.loads(pipe.recv_bytes())
            except EOFError:
                fine, answer = True, None
            if not fine:
                self.kill()
                raise AssertionError(f"rank {rank} raised\n{answer}")
            found.append(answer)
        for process in self.processes:
            process.join()
        return found

    def alive(self):
        return any(process.is_alive() for process in self.processes)

    def text(self, rank, stream="err"):
        """What a rank has printed until now."""
        return (self.folder / f"{stream}{rank}").read_text()


def on_ranks(world, work, *words):
    """``work(*words)`` on so many ranks that have joined: what each returned. On one, here and without a group."""
    if world == 1:
        return [work(*words)]

    def joined():
        with dist.joined():
            return work(*words)

    return Ranks(world, joined).answers()
