"""The planted truth of a toy pool of 20,000 images against the bars of curation; minutes."""

import dataclasses
import json

import pytest

import dinoforge
from dinoforge.data.sources.table import open_source
from planted import MILD, POOL, planted


@pytest.mark.long
def test_twenty_thousand(tmp_path, capsys):
    pool, test = (POOL.format(world="species", images=20_000, seed=11, split=split) for split in ("train", "test"))
    found = dinoforge.curate(pool=pool, keep_out=test, retrieve="all", out=str(tmp_path / "c"))
    table = planted(tmp_path / "c", open_source(pool).columns)
    balanced = dinoforge.curate(
        pool=pool, keep_out=test, retrieve="all", out=str(tmp_path / "c"),
        **{"balance.levels": [400, 40], "balance.images": 4000},
    )  # fmt: skip
    evenness = json.loads((tmp_path / "c" / "summary.json").read_text())["evenness"]
    with capsys.disabled():
        print()
        for name, value in dataclasses.asdict(table).items():
            print(name, value)
        print("precision", round(table.precision, 4), "evenness", evenness)
        print(found, balanced, sep="\n")
    assert table.share(table.copies) >= 0.97
    for kind in MILD:
        assert table.share(table.copies, [kind]) >= 0.97, kind
    assert table.precision >= 0.95
    assert table.merged <= 0.01 * table.distinct
    assert table.share(table.leaks) >= 0.99
    assert table.junk[0] >= 0.95 * table.junk[1]
    assert table.plain_as_junk <= 0.01 * table.plain
    assert evenness["after"] > evenness["before"] + 0.02
    assert balanced.kept == 4000
