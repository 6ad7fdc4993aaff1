"""Reading in processes: the order is the source's, and a decoder that dies or hangs costs one image."""

import hashlib
import os
import signal
import time

import numpy as np
import pytest

from dinoforge.base.errors import RunError
from dinoforge.data import look
from dinoforge.data.decode import Broken
from dinoforge.data.look import looked, printable
from dinoforge.data.sources.source import Source
from dinoforge.data.toyworld.pollution import png

pytestmark = pytest.mark.dist


class Hostile(Source):
    """Pictures of one pixel whose level is their row; some rows do as ``acts`` says."""

    def __init__(self, count, acts=None):
        self.address = "hostile"
        self.columns = {"id": np.asarray([str(row) for row in range(count)])}
        self.acts = acts or {}

    def encoded(self, row):
        act = self.acts.get(row)
        if act is not None:
            act()
        return png(np.full((1, 1 + row % 3, 3), row % 251, np.uint8))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    time.sleep(600)


def refuse():
    raise Broken("it is gone")


def fail():
    raise ZeroDivisionError("in a library\nof two lines")


def everything(source, rows=None, *, workers=2, patience=60.0):
    rows = np.arange(len(source)) if rows is None else rows
    return [seen for some in looked(source, rows, workers=workers, patience=patience) for seen in some]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_answers_come_in_the_order_of_the_rows(workers):
    source, rows = Hostile(50), np.random.default_rng(0).permutation(50)[:41]
    seen = everything(source, rows, workers=workers)
    assert [one.sha256 for one in seen] == [hashlib.sha256(source.encoded(int(row))).hexdigest() for row in rows]
    assert [one.width for one in seen] == [1 + row % 3 for row in rows.tolist()]
    assert {one.broken for one in seen} == {None}


def test_a_slow_image_holds_nobody_up_and_keeps_its_place():
    seen = everything(Hostile(40, {0: lambda: time.sleep(0.3)}))
    assert [one.width for one in seen] == [1 + row % 3 for row in range(40)]


def test_what_dies_or_hangs_or_fails_is_named_and_the_rest_is_read():
    acts = {3: die, 4: crash, 17: hang, 20: refuse, 21: fail, 39: die}
    seen = everything(Hostile(40, acts), patience=0.6)
    broken = {row: one for row, one in enumerate(seen) if one.broken}
    assert {row: one.broken for row, one in broken.items()} == {
        3: "the decoder died",
        4: "the decoder died",
        17: "reading and decoding it took more than 0.6 s",
        20: "it is gone",
        21: "cannot be read: ZeroDivisionError: in a library of two lines",
        39: "the decoder died",
    }
    assert {row for row, one in broken.items() if one.lasting} == {3, 4, 39}
    assert all(one.sha256 for row, one in enumerate(seen) if row not in acts)


def test_one_death_may_be_another_ones_fault(tmp_path):
    mark = tmp_path / "mark"

    def die_once():
        if not mark.exists():
            mark.touch()
            die()

    assert [one.broken for one in everything(Hostile(9, {5: die_once}))] == [None] * 9


def test_processes_that_never_begin_are_one_line(monkeypatch):
    monkeypatch.setattr(look, "_work", lambda *_: None)
    with pytest.raises(RunError, match="killed before they begin; try fewer workers"):
        everything(Hostile(5))


def test_whoever_stops_asking_leaves_no_process():
    answers = looked(Hostile(500), np.arange(500), workers=2)
    next(answers)
    crew = answers.gi_frame.f_locals["crew"]
    answers.close()
    assert not any(looker.process.is_alive() for looker in crew.lookers)


def test_an_image_is_decoded_to_its_end():
    """A file that is cut off in its pixels has a whole head."""
    whole = png(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    source = Hostile(1)
    source.encoded = lambda _row: whole[: len(whole) // 2]
    seen = look.look(source, 0)
    assert seen.broken
    assert (seen.width, seen.bytes, seen.lasting) == (None, len(whole) // 2, True)


def test_no_row_no_process():
    assert everything(Hostile(3), np.asarray([], dtype=np.int64)) == []


def test_reasons_are_one_printable_line():
    assert printable("a\nb\t c\udcff") == "a b c\\udcff"
