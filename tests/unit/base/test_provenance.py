"""The mark of the source, by files that change."""

from dinoforge.base import provenance


def test_the_source_has_another_mark_when_a_file_changes(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "base" / "provenance.py"))
    before = provenance.source_mark()
    (tmp_path / "a" / "b.py").write_text("x = 2\n")
    changed = provenance.source_mark()
    (tmp_path / "a" / "b.py").rename(tmp_path / "a" / "c.py")
    assert len({before, changed, provenance.source_mark()}) == 3
