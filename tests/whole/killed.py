"""A run that is killed at a known place."""

import pytest

from dinoforge.train.checkpoint import Checkpoints


def killed_after(step, monkeypatch, work):
    """Work that trains, killed once the checkpoint of a step is written."""
    save = Checkpoints.save

    def once(self, module, optimizer, facts):
        path = save(self, module, optimizer, facts)
        if facts["step"] == step:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", once)
        work()
