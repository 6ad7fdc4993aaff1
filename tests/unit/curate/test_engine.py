"""Stages run once: a result is taken over where all that it was made of is the same, and never where it is not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dinoforge.base.errors import RunError
from dinoforge.curate import engine, searched
from dinoforge.curate.embeddings import LAYOUT, Embedder, Embeddings
from dinoforge.curate.settings import chosen_stages, settle
from dinoforge.curate.state import State
from dinoforge.curate.table import CURATIONS
from pools import read_pools


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return read_pools(tmp_path_factory.mktemp("pools"))


@pytest.fixture
def run(pools, tmp_path, monkeypatch):
    """Run with these settings; the names of the stages whose functions were called, what is left, and what was done."""
    called = []
    for name, stage in list(CURATIONS.items()):
        monkeypatch.setitem(CURATIONS, name, _told(stage, name, called))

    def go(embedder=LAYOUT, balanced=True, **words):
        called.clear()
        known = {word: value for word, value in pools.words.items() if balanced or not word.startswith("balance.")}
        words = {**known, **words}
        config, _ = settle({"pool": "p", **words})
        state = State(
            pools.pool,
            pools.pool.whole,
            [pools.seeds],
            pools.keep_out,
            {},
            Embeddings(tmp_path / "e", embedder),
            tmp_path,
        )
        state, done = engine.run_stages(state, config, chosen_stages(config), tmp_path / "stages")
        return list(called), state, done

    return go


def _told(stage, name, called):
    def run(state, config):
        called.append(name)
        return stage.run(state, config)

    return replace(stage, run=run)


def test_the_second_run_computes_nothing_and_gives_the_same(run):
    called, first, done = run()
    assert called == list(CURATIONS)
    again, second, redone = run()
    assert again == []
    gone = np.concatenate([one.result.dropped.row for one in done])
    assert sorted([*gone, *first.alive]) == first.pool.whole.tolist()  # each went once, or is in
    assert all(one.reused for one in redone)
    np.testing.assert_array_equal(first.alive, second.alive)
    for one, other in zip(done, redone, strict=True):
        assert one.fingerprint == other.fingerprint
        for column in ("row", "reason", "against", "similarity"):
            np.testing.assert_array_equal(getattr(one.result.dropped, column), getattr(other.result.dropped, column))
        assert one.result.arrays.keys() == other.result.arrays.keys()
        for name, values in one.result.arrays.items():
            np.testing.assert_array_equal(values, other.result.arrays[name])


@pytest.mark.parametrize(
    ("words", "anew"),
    [
        ({"balance.images": 8}, ["balance"]),
        ({"retrieval.neighbours": 2}, ["retrieval", "balance"]),
        ({"leaks.direct_only": True}, ["leaks"]),
        ({"filters.most_page": None, "filters.least_spread": 2}, ["filters"]),
    ],
)
def test_a_changed_setting_makes_its_stage_anew_and_what_comes_of_it(words, anew, run, capsys):
    run()
    capsys.readouterr()
    called, _, _ = run(**words)
    assert called[: len(anew)] == anew
    said = capsys.readouterr().err
    for path, value in words.items():
        assert f"settings.{path}" in said
        assert f"-> {value}" in said
    assert run(**words)[0] == []


def test_stages_before_a_change_are_left_alone(run):
    run()
    assert set(run(**{"copies.threshold": 0.97})[0]).isdisjoint({"filters", "exact", "pairs"})


def test_other_weights_make_all_that_goes_by_them_anew(run):
    def embed(source):
        rows = np.asarray(
            [len(str(name)) + 7 * place for place, name in enumerate(source.columns["id"])], dtype=np.float32
        )
        return np.stack([np.sin(rows), np.cos(rows), rows * 0 + 1, np.sin(3 * rows)], axis=1), np.arange(len(source))

    run(Embedder("one", "weights 1", embed))
    assert run(Embedder("one", "weights 1", embed))[0] == []
    assert run(Embedder("one", "weights 2", embed))[0] == ["embedding", "retrieval", "balance"]


def test_a_damaged_result_is_made_anew(run, tmp_path):
    run()
    (tmp_path / "stages" / "copies" / "result.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "stages" / "filters" / "stage.json").write_text("{")
    assert run()[0] == ["filters", "copies"]


def test_a_stage_of_another_version_is_made_anew(run, monkeypatch):
    run()
    monkeypatch.setitem(CURATIONS, "retrieval", replace(CURATIONS["retrieval"], version=2))
    assert run()[0][0] == "retrieval"


def test_what_was_settled_before_a_kill_is_not_compared_again(run, tmp_path, monkeypatch):
    """The result of the stage is gone, its parts are there."""
    from dinoforge.curate.stages import pairs

    compared = []
    whole = pairs.settled
    monkeypatch.setattr(pairs, "PART", 20)
    monkeypatch.setattr(
        pairs, "settled", lambda some, *args, **how: compared.append(len(some)) or whole(some, *args, **how)
    )
    _, first, _ = run(stages=["copies", "leaks"], seeds=None, retrieve=None, balanced=False)
    parts = sorted((tmp_path / "stages" / "pairs.parts").glob("*.npz"))
    assert len(parts) == len(compared) > 2
    (tmp_path / "stages" / "pairs" / "stage.json").unlink()
    parts[-1].unlink()
    compared.clear()
    called, second, _ = run(stages=["copies", "leaks"], seeds=None, retrieve=None, balanced=False)
    assert called == ["pairs"]
    assert len(compared) == 1
    np.testing.assert_array_equal(first.alive, second.alive)


def test_searches_stay_until_their_result_lies_on_the_disk(run, tmp_path, monkeypatch):
    """And go then, those of a larger pool and what a kill left of candidates too."""
    parts = tmp_path / "stages" / "pairs.parts"

    def left():
        return {path.name for path in parts.iterdir() if path.suffix != ".npz"}

    def killed(*_words):
        raise RunError("killed")

    store = engine._store
    monkeypatch.setattr(searched, "QUERIES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            engine, "_store", lambda folder, *words: (killed if folder.name == "pairs" else store)(folder, *words)
        )
        with pytest.raises(RunError, match="killed"):
            run()
    (search,) = left()
    made = {path: path.stat().st_mtime_ns for path in (parts / search).iterdir()}
    assert made
    for name in ("keep_out.candidates", ".keep_out.candidates.new", "search-0123"):
        (parts / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setitem(CURATIONS, "pairs", replace(CURATIONS["pairs"], tidy=killed))
        with pytest.raises(RunError, match="killed"):
            run()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    called, *_ = run()
    assert "pairs" not in called  # its result was there
    assert left() == set()
    (parts / "search-0123").mkdir()
    monkeypatch.setattr(searched, "QUERIES", 16_384)
    called, *_ = run(**{"pairs.neighbours": 5})
    assert "pairs" in called
    assert left() == set()


def test_the_record_says_what_a_result_was_made_of(run, tmp_path):
    _, _, done = run()
    about = json.loads((tmp_path / "stages" / "retrieval" / "stage.json").read_text())
    assert about["fingerprint"] == next(one.fingerprint for one in done if one.name == "retrieval")
    assert about["made"]["settings"]["retrieval"]["neighbours"] == 4
    assert about["made"]["depends"][0].startswith("layout")
    assert about["facts"]["sets"][0]["method"] == "samples"


def test_it_ends_where_no_image_is_left(run):
    called, state, done = run(**{"filters.smallest_side": 5000})
    assert called == ["filters"]
    assert len(state.alive) == 0
    assert len(done) == 1
