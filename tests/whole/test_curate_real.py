"""Real images with planted copies, leaks and junk against the bars of curation; a minute."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dinoforge
from dinoforge.base.random import numpy_generator
from dinoforge.data.decode import decode
from dinoforge.data.toyworld.pollution import COPY_KINDS, JUNK, copied, junk
from planted import MILD, planted

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
COPIES, LEAKS, JUNK_EACH = 60, 60, 20
"""Of each kind."""
SAME = {"Faces", "Faces_easy"}
"""Classes of Caltech-101 that show the same photographs."""
TWICE = """
ibis 76 79, metronome 2 4, metronome 5 6 10 11, pyramid 8 43, octopus 4 5 6, cougar_face 22 33, cougar_body 2 33, platypus 15 22 30,
beaver 1 12, beaver 4 22, stegosaurus 32 43, Leopards 45 145, brain 16 17, pagoda 12 43, okapi 8 31, crab 2 19, gramophone 3 43,
water_lilly 1 9, lotus 23 33, crayfish 1 23, wrench 12 16, garfield 22 32 34, grand_piano 41 51, revolver 18 19
"""
"""Numbers of pictures of one class that show the same, told by eye of pairs that a curation had found."""
ACROSS = [
    ("crocodile/9", "crocodile_head/12"),
    ("crocodile/2", "crocodile_head/7"),
    ("crocodile/22", "crocodile_head/21"),
]
"""And such of two classes."""
UNKNOWN = "caltech_101_rand_resize"
"""Pictures of the crawl that are changed ones of Caltech-101, it is not known of which."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    place = tmp_path_factory.mktemp("real")
    train, test = (
        _rows("caltech101", split, kept=lambda row: row["label_name"] not in SAME) for split in ("train", "test")
    )
    rows = [_row(f"caltech/{row['id']}", row["image"], "plain") for row in train]
    rows += [_row(f"crawl/{row['id']}", row["image"], "crawl") for row in _rows("pool", "pool")]
    rows += [
        _row(f"twice/{row['id']}", row["image"], "twice", copy_of=f"group {row['group']}")
        for row in _rows("near_duplicates", "pairs")
    ]
    rows += _changed(train, COPIES, "copy", "caltech/{}") + _changed(test, LEAKS, "leak", "test/{}")
    for number, kind in enumerate(list(JUNK) * JUNK_EACH):
        rows.append(_row(f"junk/{kind}-{number}", junk(kind, 200, numpy_generator(7, "junk", number)), "junk"))
    _name_what_is_shown(rows)
    rows = [rows[row] for row in numpy_generator(7, "order").permutation(len(rows))]
    pq.write_table(
        pa.Table.from_pylist([{"id": row["id"], "image": row["image"]} for row in rows]), place / "pool.parquet"
    )
    pq.write_table(
        pa.Table.from_pylist([{"id": row["id"], "image": row["image"]} for row in test]), place / "asked.parquet"
    )
    return place, {name: np.asarray([row[name] for row in rows]) for name in rows[0] if name != "image"}


def _name_what_is_shown(rows):
    """The same name for all that show the same, as far as that is known."""
    shown = {f"{place}/{name}": names[0] for names in _shown_twice() for name in names for place in ("caltech", "test")}
    for row in rows:
        of = row["copy_of"] or row["id"]
        row["shows"] = shown.get(of, of)
        if UNKNOWN in row["id"]:
            row["role"] = "unknown"


def _shown_twice():
    for words in TWICE.replace("\n", " ").split(", "):
        kind, *numbers = words.split()
        yield [f"{kind}/image_{int(number):04}.jpg" for number in numbers]
    for pair in ACROSS:
        yield [f"{kind}/image_{int(number):04}.jpg" for kind, number in (name.split("/") for name in pair)]


def _rows(folder, split, *, kept=lambda _: True):
    return [row for row in pq.read_table(DATA / folder / f"{split}.parquet").to_pylist() if kept(row)]


def _row(name, image, role, *, copy_of="", copy_kind="", copy_strength=float("nan")):
    return {"id": name, "image": image, "role": role, "copy_of": copy_of, "copy_kind": copy_kind,
            "copy_strength": copy_strength}  # fmt: skip


def _changed(originals, each, role, called):
    """So many copies of every kind, each of another picture."""
    rng, found = numpy_generator(7, role), []
    for kind, how in COPY_KINDS.items():
        for number, row in enumerate(rng.choice(len(originals), each, replace=False).tolist()):
            of, strength = originals[row], how.strength(rng)
            image = of["image"] if kind == "exact" else copied(kind, decode(of["image"]), strength, rng)
            found.append(_row(f"{role}/{kind}-{number}", image, role, copy_of=called.format(of["id"]), copy_kind=kind,
                              copy_strength=strength))  # fmt: skip
    return found


@pytest.mark.long
def test_planted_copies_among_real_images(place, tmp_path, capsys):
    """Caltech-101 with copies of it and of its test images, a mixed crawl, faces and documents that come twice, and junk."""
    folder, columns = place
    done = dinoforge.curate(
        pool=str(folder / "pool.parquet"),
        keep_out=str(folder / "asked.parquet"),
        retrieve="all",
        out=str(tmp_path / "c"),
    )
    table = planted(tmp_path / "c", columns)
    with capsys.disabled():
        print()
        for name, value in dataclasses.asdict(table).items():
            print(name, value)
        print("precision", round(table.precision, 4), done, sep="\n")
    for kind in MILD:
        assert table.share(table.copies, [kind]) >= 0.97, kind
        assert table.share(table.leaks, [kind]) >= 0.99, kind
    assert table.precision >= 0.95
    assert table.merged <= 0.01 * table.distinct
    assert table.junk[0] >= 0.95 * table.junk[1]
