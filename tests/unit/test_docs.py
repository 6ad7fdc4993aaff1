"""README and docs/: no dead link or anchor, every command is one that the command line takes, no figure without a record."""

import inspect
import re
import tomllib
from functools import cache

import pytest

import pages
from dinoforge.base.errors import ConfigError
from dinoforge.cli import parse, run_verb
from dinoforge.curate.settings import SHORT as OF_CURATE
from dinoforge.data.sources.toy import ClipsConfig, ToyConfig
from dinoforge.evaluate.table import EVALUATIONS, SUITES
from dinoforge.recipes.settle import SHORT, setting_lines, settle
from dinoforge.recipes.table import RECIPES
from dinoforge.verbs.table import VERBS, VERBS_WITH_SETTINGS

PAGES = pages.pages()
TABLES = ("README.md", "scale.md", "faq.md", "records.md")
"""Pages whose inline commands may have words left out: ``[data=SRC]``, ``…``, ``to=onnx|timm``, a key that is needed."""
STANDS_FOR = {"NAME": "vit_micro.toy", "N": "1"}
"""What placeholders are read as where a value is judged; any other one (SRC, RUN, B, DIR …) is a path like any path."""
STUDY = "study=NAME"
OUTSIDE = {"curl", "docker", "pip", "cd", "git", "source", "export", "ray", "dask"}
"""Programs of others whose words no test judges."""
SPECIFIED = {"evaluation.md", "explore.md", "health.md", "method.md", "scale.md", "log.md", "records.md"}
"""Pages whose numbers are settings, limits and published protocols, or that say of each figure where it was measured."""
NAMES_FILES = {"method.md", "extend.md", "scale.md", "curation.md", "export.md", "distil.md"}
"""Pages whose codes with a slash name files of ours."""
PATCHED = {"extend.md"}
"""Pages whose commands are of a product that they have changed; ``tests/whole/test_docs.py`` runs them there."""
GIVEN = {"README.md": {"3 points": "continuation.retention's default, no measurement"}}
NO_SETTINGS = {"compile", "drop_path", "upload"}
"""Words before ``=`` in a code that are no settings: of benches, of addresses of the explorer."""


def ids(path):
    return path.name


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_links_and_anchors_lead_somewhere(path):
    dead = []
    for line, target in pages.links(path):
        if target.startswith(pages.ADDRESSES):
            continue
        name, _, place = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (place and place not in pages.sections(file)):
            dead.append(f"{path.name}:{line}: {target}")
    assert not dead


def test_every_page_is_in_the_contents_once():
    listed = re.findall(r"^(\w+)$", "".join(b.text for b in pages.blocks(pages.DOCS / "index.md")), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in pages.DOCS.glob("*.md") if path.stem != "index")


def _unbracketed(text):
    """A line of a table as somebody would type it: every option taken, of alternatives the first, nothing left out."""
    text = re.sub(r"\[,[^\]]*\]", "", text)
    text = re.sub(r" \[(?=[a-z_.]+=)([^\]]*)\]", r" \1", text)
    text = re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "{a: {}}", text)
    words = [word for word in text.split(" ") if word and word != "…" and not word.endswith("=…")]
    return " ".join(re.sub(r"\|.*|,?…$", "", word) for word in words)


def _settings(words):
    """What follows a verb, with placeholders for values that are judged."""
    named = ["study=losses" if word == STUDY else word for word in words]
    return [f"{key}={STANDS_FOR.get(value, value)}" for key, _, value in (word.partition("=") for word in named)]


def _judge(words, *, whole):
    """Read the words of a command as the command line does, without running it.

    Args:
        whole: Whether a key that the verb needs must be there.
    """
    verb, settings = words[0], [word for word in words[1:] if not word.startswith("--")]
    if verb not in VERBS:
        raise ConfigError(f"no such verb {verb!r}")
    settings = _settings(settings)
    while True:
        try:
            run_verb(VERBS[verb], settings, as_json=False, print_config=True)
            break
        except ConfigError as error:
            needed = re.match(r"(\w+)= is required", str(error))
            if whole or needed is None:
                raise
            settings.append(f"{needed[1]}=x")
    if verb == "demo":
        settle({name: value for name, value in parse(settings).items() if name not in {"images", "out", "seed"}})


def _file(name):
    if not (pages.ROOT / name).exists():
        raise ConfigError(f"no file {name}")


def _command(line, *, whole=True):
    """Check one line of a shell.

    Raises:
        ConfigError: What it names is not there, or it is no command that is known.
    """
    words = pages.words_of(line)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if program == "dinoforge":
        if len(words) > 1 and not words[1].startswith("-"):
            _judge(words[1:], whole=whole)
    elif program == "torchrun":
        if "-m" in words:
            _judge(words[words.index("-m") + 2 :], whole=whole)
    elif program == "sbatch":
        _file(words[1])
        _judge(["pretrain", *words[2:]], whole=whole)
    elif program == "make":
        targets = [word for word in words[1:] if "=" not in word]
        made = re.findall(r"^([\w-]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE)
        if not set(targets) <= set(made):
            raise ConfigError(f"make has no {targets}")
    elif program in {"python", "python3", "pytest"}:
        for word in words[1:]:
            if word.endswith(".py"):
                _file(word)
    elif program not in OUTSIDE:
        raise ConfigError(f"{program!r} is no command that is known; output belongs into a block of text")


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_command_of_a_block_is_taken_by_the_command_line(path, capsys):
    wrong = []
    for block in pages.blocks(path) if path.name not in PATCHED else ():
        for line in pages.lines_of(block) if block.language in {"", "sh"} else ():
            try:
                _command(line)
            except ConfigError as error:
                wrong.append(f"{block.where}: {line}: {error}")
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_command_in_a_line_of_text_is_taken_by_the_command_line(path, capsys):
    wrong = []
    for number, code in pages.codes(path):
        verb = code.partition(" ")[0]
        short = verb in VERBS and re.match(r"\w+ [a-z_.]+=", code)  # `curate train_filter=DIR`, a part of a command
        if short or re.match(r"(\.venv/bin/)?(dinoforge|torchrun|sbatch|make|python|pytest) ", code):
            try:
                _command(
                    _unbracketed(f"dinoforge {code}" if short else code), whole=not short and path.name not in TABLES
                )
            except ConfigError as error:
                wrong.append(f"{path.name}:{number}: {code}: {error}")
    assert not wrong


@cache
def known():
    """Every setting that any verb takes, what may stand behind the address of a drawn world, and groups and ends of them."""
    lines = [
        *setting_lines(),
        *(line for verb in VERBS_WITH_SETTINGS.values() for line in verb.lines() if line.strip()),
    ]
    found = {"recipe", "config", "init", "out", "key", *SHORT, *OF_CURATE, *(line.split()[0] for line in lines)}
    found |= {name.rstrip("_") for function in VERBS.values() for name in inspect.signature(function).parameters}
    found |= ToyConfig.model_fields.keys() | ClipsConfig.model_fields.keys()
    parts = [name.split(".") for name in found]
    return found | {
        ".".join(part) for name in parts for depth in range(len(name)) for part in (name[:depth], name[depth:])
    }


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_setting_in_a_line_of_text_exists(path):
    wrong = []
    for number, code in pages.codes(path) if path.name not in {"log.md", "records.md"} else ():
        found = re.match(r"([a-z_]+(?:\.[a-z_]+)*)=", code)
        if found and found[1] not in known() | NO_SETTINGS:
            wrong.append(f"{path.name}:{number}: {code}")
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_values_in_a_line_of_text_are_taken(path):
    """Of codes that are nothing but settings of a recipe with their values."""
    own, wrong = {line.split()[0] for line in setting_lines()}, []
    for number, code in pages.codes(path) if path.name not in {*PATCHED, "log.md", "records.md"} else ():
        given = dict(word.split("=", 1) for word in code.split() if re.match(r"[a-z_.]+=[^\s…]+$", word))
        if len(given) == len(code.split()) and given.keys() <= own:
            try:
                settle({"recipe": "vit_small.small_data", **given})
            except ConfigError as error:
                wrong.append(f"{path.name}:{number}: {code}: {error}")
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_recipe_and_task_in_a_line_of_text_exists(path):
    wrong = []
    for number, code in pages.codes(path) if path.name not in {"log.md", "records.md"} else ():
        recipes = re.findall(r"\b(?:recipe=|(?=vit_\w+\.[a-z]))([\w.]+)(?![\w=])", code)
        tasks = [task for found in re.findall(r"\btasks=([\w,]+)", code) for task in found.split(",") if task]
        if not {*recipes} - {"NAME"} <= RECIPES.keys() or not {*tasks} <= EVALUATIONS.keys() | SUITES.keys():
            wrong.append(f"{path.name}:{number}: {code}")
    assert not wrong


@pytest.mark.parametrize("path", [path for path in PAGES if path.name not in SPECIFIED], ids=ids)
def test_every_figure_stands_in_a_record_that_is_linked_beside_it(path):
    given = GIVEN.get(path.name, {})
    assert all(words in pages.text_of(path) for words in given)
    assert [one for one in pages.figures_without_source(path) if one.partition(": ")[2] not in given] == []


def test_extras_that_are_named_exist():
    extras = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in PAGES:
        for found in re.findall(r"dinoforge\[([\w,]+)\]", pages.text_of(path)):
            assert set(found.split(",")) <= set(extras), path.name


def test_messages_that_are_answered_are_what_the_code_says():
    quotes = pages.quotes(pages.DOCS / "faq.md")
    said = pages.messages()
    assert len(quotes) > 20
    assert not [quote for quote in quotes if not any(quote in message for message in said)]


def test_files_that_are_named_are_there():
    """In codes: of the repository (``src/…``, ``tests/…``, ``bench/…``), or of the package (``loss/koleo.py``)."""
    wrong = []
    for path in PAGES:
        for number, code in pages.codes(path) if path.name in NAMES_FILES else ():
            named = re.fullmatch(r"(?:[\w.]+/)+(?:\w+\.py)?", code)
            if named and not any((root / code).exists() for root in (pages.ROOT, pages.ROOT / "src" / "dinoforge")):
                wrong.append(f"{path.name}:{number}: {code}")
    assert not wrong


def test_lines_are_short():
    """Tables cannot be broken; all else can."""
    long = [
        f"{path.name}:{number}"
        for path in PAGES
        if path.name not in SPECIFIED | {"README.md", "studies.md"}
        for number, line in enumerate(pages.text_of(path).splitlines(), start=1)
        if len(line) > 128 and not line.startswith("|")
    ]
    assert not long
