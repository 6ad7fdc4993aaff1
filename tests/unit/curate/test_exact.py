"""Of equal images the first stays."""

import pyarrow as pa

from dinoforge.curate.exact import keep_first
from dinoforge.data.manifest import SCHEMA, Manifest


def manifest(*rows):
    return Manifest(pa.Table.from_pylist([{"id": name, "sha256": key} for name, key in rows], SCHEMA), {"verb": "x"})


def test_of_equal_images_the_first_stays():
    pool = manifest(("a", "1"), ("b", "2"), ("c", "1"), ("d", "1"), ("e", "2")).replaced("copy_of", "of a scan")
    kept, dropped = keep_first(pool)
    assert [(r["id"], r["reason"], r["copy_of"]) for r in kept.rows()] == [("a", "", None), ("b", "", None)]
    assert [(r["id"], r["reason"], r["copy_of"]) for r in dropped.rows()] == [
        ("c", "exact copy", "a"),
        ("d", "exact copy", "a"),
        ("e", "exact copy", "b"),
    ]
    assert kept.made == {"verb": "x"}


def test_no_image_and_no_copy():
    assert [len(part) for part in keep_first(manifest())] == [0, 0]
    assert [len(part) for part in keep_first(manifest(("a", "1"), ("b", "2")))] == [2, 0]
