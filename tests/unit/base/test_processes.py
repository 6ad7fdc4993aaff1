import os
import signal

import numpy as np
import pytest

from dinoforge.base.errors import DataError, RunError
from dinoforge.base.processes import spread


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_answers_come_in_order_from_as_many_processes_as_there_are(workers):
    held = np.arange(30)  # goes along without being sent
    answers = list(spread(lambda job: (int(held[job]) ** 2, os.getpid()), range(30), workers=workers))
    assert [square for square, _ in answers] == [n**2 for n in range(30)]
    processes = {process for _, process in answers}
    assert len(processes) == min(workers, 30)
    assert (os.getpid() in processes) == (workers == 1)


def test_nothing_to_do():
    assert list(spread(lambda job: job, [], workers=4)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_that_of_the_work(workers):
    def work(job):
        if job == 3:
            raise DataError("the third")
        return job

    with pytest.raises(DataError, match="the third"):
        list(spread(work, range(6), workers=workers))


def test_a_process_that_is_killed_is_said():
    with pytest.raises(RunError, match=r"ended with status -9; was there memory enough\? Try fewer workers"):
        list(spread(lambda job: job if job < 3 else os.kill(os.getpid(), signal.SIGKILL), range(6), workers=2))


def test_nobody_is_left_behind():
    answers = spread(lambda job: (job, os.getpid()), range(1000), workers=2)
    _, process = next(answers)
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
