"""The commands and the Python of the pages that one follows are run, in order, in one folder, as they stand there.

Pages that go on from each other share that folder. What is installed or started by other programs (make, source, pip) is not run;
``tests/unit/test_docs.py`` judges its words. A block below ``<!-- long -->`` runs in the long tests alone.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

import pages
from dinoforge.cli import execute

FOLLOWED = ("start", "data", "curation", "distil", "export")
LATER = {"make", "source"}


def follow(page, *, long):
    """Run a page's blocks, those marked long only where they are asked for."""
    for block in pages.blocks(pages.DOCS / f"{page}.md"):
        if block.long and not long:
            continue
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), {})
            continue
        for line in pages.lines_of(block) if block.language == "" else ():
            words = pages.words_of(line)
            if words[0] not in LATER:
                assert words[0] == "dinoforge", f"{block.where}: {words[0]} cannot be run here"
                assert execute(words[1:]) == 0, f"{block.where}: {line}"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_pages_can_be_followed(place, unchecked):
    for page in FOLLOWED:
        follow(page, long=False)


@pytest.mark.long
def test_pages_can_be_followed_to_the_last_block(place, unchecked):
    for page in FOLLOWED:
        follow(page, long=True)


def changed(text, hunk):
    """A text with the lines of a hunk in it, whose other lines stand in it once."""
    lines = hunk.strip("\n").split("\n")
    before, after = ("\n".join(line[1:] for line in lines if line[:1] in kept) for kept in (" -", " +"))
    assert text.count(f"{before}\n") == 1, before
    return text.replace(f"{before}\n", f"{after}\n")


def extended(root):
    """The blocks of extend.md in a copy of the product: files that name themselves, changes; gives what is to be run after."""
    shutil.copytree(pages.ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    rest, made = [], []
    for block in pages.blocks(pages.DOCS / "extend.md"):
        head, _, body = block.text.partition("\n")
        if block.language == "diff":
            file = root / head.removeprefix("+++ ")
            for hunk in body.split("@@\n"):
                file.write_text(changed(file.read_text(), hunk))
        elif head.startswith("# src/"):
            (root / head[2:]).write_text(body)
            made.append(root / head[2:])
        else:
            rest.append(block.text if block.language == "python" else _run(pages.lines_of(block)))
    return rest, made


def _run(lines):
    words = [pages.words_of(line)[1:] for line in lines]
    return f"from dinoforge.cli import execute\nfor words in {words!r}:\n    assert execute(words) == 0, words"


def test_what_extend_changes_is_found(tmp_path):
    """Every file that it shows is Python that fits, every line that it changes is there."""
    rest, made = extended(tmp_path)
    assert [path.stem for path in made] == ["uniform", "deep", "arrays", "centroid"]
    assert len(rest) == 2
    for path in made:
        compile(path.read_text(), str(path), "exec")


@pytest.mark.long
def test_what_extend_shows_runs(tmp_path):
    rest, made = extended(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}

    def ran(*words, cwd):
        done = subprocess.run(
            [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "centroid" in ran("-c", "\n".join(rest), cwd=tmp_path)
    rows = (tmp_path / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    assert "uniform" in json.loads(rows[-1])["losses"]
    ran("-m", "ruff", "check", "--config", pages.ROOT / "pyproject.toml", *made, cwd=pages.ROOT)
