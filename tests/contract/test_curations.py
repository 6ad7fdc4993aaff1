"""What every stage of a curation keeps to, whichever it is; a new line in the table is tested by itself."""

import numpy as np
import pytest

from dinoforge.curate.embeddings import LAYOUT, Embeddings
from dinoforge.curate.engine import run_stages
from dinoforge.curate.images import read_images
from dinoforge.curate.settings import chosen_stages, settle
from dinoforge.curate.state import State
from dinoforge.curate.table import CURATIONS
from dinoforge.data.sources.table import open_source

POOL = "toy://species?images=50&size=32&copies=0.2&junk=0.2&leaks=0.1&split=train"
WORDS = {"seeds": "s", "keep_out": "k", "retrieve": "samples", "balance.levels": [6, 3], "balance.images": 9}
OF = {"retrieve": "retrieval", "balance.levels": "balance", "balance.images": "balance"}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    at = tmp_path_factory.mktemp("read")

    def read(address, name):
        return read_images(open_source(address), at / name, name=name, workers=1)

    return (
        read(POOL, "pool"), read("toy://species?images=10&size=32&seed=5", "seeds-0"), read(POOL.replace("train", "test"), "keep_out")
    )  # fmt: skip


def alone(name, sets, folder, rows=None):
    pool, seeds, keep_out = sets
    words = {word: value for word, value in WORDS.items() if OF.get(word, name) == name}
    config, _ = settle({"pool": "p", **words, "stages": [name]})
    alive = pool.whole if rows is None else rows
    state = State(pool, alive, [seeds], keep_out, {}, Embeddings(folder / "e", LAYOUT), folder)
    return run_stages(state, config, chosen_stages(config), folder / "stages")


@pytest.mark.parametrize("name", CURATIONS)
class TestEveryStage:
    def test_works_alone_and_says_why(self, name, sets, tmp_path):
        state, done = alone(name, sets, tmp_path)
        gone = done[-1].result.dropped
        assert done[-1].name == name
        assert len(np.unique(gone.row)) == len(gone)
        assert np.isin(gone.row, sets[0].whole).all()
        assert all(str(reason) for reason in gone.reason)
        assert len(gone.against) == len(gone.similarity) == len(gone.reason) == len(gone)
        assert sorted([*state.alive, *gone.row]) == sets[0].whole.tolist()
        against = gone.against[gone.against >= 0]
        known = sets[2].whole if name == "leaks" else state.alive
        assert np.isin(against, known).all()

    def test_is_a_function_of_its_inputs(self, name, sets, tmp_path):
        (one, _), (other, _) = (alone(name, sets, tmp_path / part) for part in "ab")
        np.testing.assert_array_equal(one.alive, other.alive)

    def test_sees_only_the_rows_that_are_still_in(self, name, sets, tmp_path):
        some = sets[0].whole[::2]
        state, done = alone(name, sets, tmp_path, rows=some)
        assert np.isin(done[-1].result.dropped.row, some).all()
        assert np.isin(state.alive, some).all()

    def test_is_explained(self, name):
        assert CURATIONS[name].about
        assert all(field.description for field in CURATIONS[name].config.model_fields.values())
