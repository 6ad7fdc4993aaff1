"""Of equal images the first stays."""

from dinoforge.curate.exact import keep_first


def row(name, key):
    return {"id": name, "sha256": key}


def test_of_equal_images_the_first_stays():
    kept, dropped = keep_first([row("a", "1"), row("b", "2"), row("c", "1"), row("d", "1"), row("e", "2")])
    assert [r["id"] for r in kept] == ["a", "b"]
    assert [(r["id"], r["reason"], r["against"]) for r in dropped] == [
        ("c", "exact copy", "a"),
        ("d", "exact copy", "a"),
        ("e", "exact copy", "b"),
    ]


def test_no_image_and_no_copy():
    assert keep_first([]) == ([], [])
    assert keep_first([row("a", "1"), row("b", "2")])[1] == []
