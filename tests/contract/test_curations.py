"""What every stage of a curation keeps to, whichever it is; a new line in the table is tested by itself."""

import numpy as np
import pytest

from dinoforge.curate.embeddings import LAYOUT, Embeddings
from dinoforge.curate.engine import run_stages
from dinoforge.curate.settings import chosen_stages, settle
from dinoforge.curate.state import State
from dinoforge.curate.table import CURATIONS
from pools import OF, read_pools


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    return read_pools(tmp_path_factory.mktemp("pools"))


def alone(name, pools, folder, rows=None):
    words = {word: value for word, value in pools.words.items() if OF.get(word, name) == name}
    config, _ = settle({"pool": "p", **words, "stages": [name]})
    alive = pools.pool.whole if rows is None else rows
    state = State(pools.pool, alive, [pools.seeds], pools.keep_out, {}, Embeddings(folder / "e", LAYOUT), folder)
    return run_stages(state, config, chosen_stages(config), folder / "stages")


@pytest.mark.parametrize("name", CURATIONS)
class TestEveryStage:
    def test_works_alone_and_says_why(self, name, pools, tmp_path):
        state, done = alone(name, pools, tmp_path)
        gone = done[-1].result.dropped
        assert done[-1].name == name
        assert len(np.unique(gone.row)) == len(gone)
        assert np.isin(gone.row, pools.pool.whole).all()
        assert all(str(reason) for reason in gone.reason)
        assert len(gone.against) == len(gone.similarity) == len(gone.reason) == len(gone)
        assert sorted([*state.alive, *gone.row]) == pools.pool.whole.tolist()
        against = gone.against[gone.against >= 0]
        known = pools.keep_out.whole if name == "leaks" else state.alive
        assert np.isin(against, known).all()

    def test_is_a_function_of_its_inputs(self, name, pools, tmp_path):
        (one, _), (other, _) = (alone(name, pools, tmp_path / part) for part in "ab")
        np.testing.assert_array_equal(one.alive, other.alive)

    def test_sees_only_the_rows_that_are_still_in(self, name, pools, tmp_path):
        some = pools.pool.whole[::2]
        state, done = alone(name, pools, tmp_path, rows=some)
        assert np.isin(done[-1].result.dropped.row, some).all()
        assert np.isin(state.alive, some).all()

    def test_is_explained(self, name):
        assert CURATIONS[name].about
        assert all(field.description for field in CURATIONS[name].config.model_fields.values())
