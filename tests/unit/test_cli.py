"""The command line: what it prints where, and with which status."""

import dataclasses
import importlib
import inspect
import json

import pytest

import dinoforge
from dinoforge.base.errors import ConfigError, Interrupted, SentinelStop
from dinoforge.cli import execute, parse, run_verb
from dinoforge.recipes.settle import settle, to_yaml
from dinoforge.recipes.table import RECIPES
from dinoforge.verbs.table import VERBS, _with_paths


def last(text):
    return json.loads(text.strip().splitlines()[-1])


def test_words_become_settings():
    assert parse(["a.b=1", "c=x=y", "d="]) == {"a.b": "1", "c": "x=y", "d": ""}
    with pytest.raises(ConfigError, match="a is given twice: '1' and '2'"):
        parse(["a=1", "a=2"])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert execute([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "Raises:" not in text


def test_help_of_pretrain_names_keys_defaults_and_units(capsys):
    execute(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "probe: Labelled images",
        "plan.batch [1024]",
        "data.augment.global_pixels [224] Side of a global view, in pixels.",
    ):
        assert part in text, part


def test_no_words_show_help(capsys):
    assert execute([]) == 0
    assert "pretrain" in capsys.readouterr().out


def test_print_config_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert execute(["pretrain", "recipe=vit_micro.toy", "data=nowhere", "out=r", "plan.clip=2", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "plan.clip = 2.0  # command line" in lines
    assert "plan.batch = 32  # recipe" in lines
    assert "plan.rate_scaling = sqrt  # default" in lines
    assert execute(["embed", "backbone=b", "data=nowhere", "out=f", "--print-config"]) == 0
    assert "tokens = image  # default" in capsys.readouterr().out.splitlines()
    assert execute(["evaluate", "backbone=b", "knn.neighbours=3", "--print-config", "--json"]) == 0
    config = last(capsys.readouterr().out)["config"]
    assert config["knn.neighbours"] == {"value": [3], "origin": "command line"}
    assert config["tasks"] == {"value": "knn", "origin": "default"}
    assert not list(tmp_path.iterdir())


def test_print_config_of_a_wrong_setting_is_an_error(capsys):
    assert execute(["pretrain", "out=r", "plan.clipp=2", "--print-config"]) == 2
    assert "Did you mean 'plan.clip'" in capsys.readouterr().err


def test_json_is_the_last_line(capsys):
    assert execute(["recipes", "--json"]) == 0
    names = [row["name"] for row in last(capsys.readouterr().out)["recipes"]]
    assert "vit_micro.toy" in names
    assert execute(["schema", "--json"]) == 0
    schema = last(capsys.readouterr().out)
    assert schema["properties"]["plan"]
    assert schema["additionalProperties"] is False


def test_recipes_are_listed_in_columns(capsys):
    """A line each, the meaning of all of them beginning in the same column; no line names its columns."""
    assert execute(["recipes"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "recipes:"
    assert [line.split()[0] for line in lines] == list(RECIPES)
    longest = max(map(len, RECIPES))
    for name, line in zip(RECIPES, lines, strict=True):
        meaning = RECIPES[name].__doc__.splitlines()[0]
        assert line == f"  {name}{' ' * (longest - len(name))}  {meaning}"
        assert meaning.endswith(".")


def test_rows_with_numbers_or_other_names_keep_their_names(capsys):
    def verb():
        return {"a": [{"x": "one", "y": 2}], "b": [{"x": "one"}, {"y": "two"}]}

    run_verb(verb, [], as_json=False, print_config=False)
    assert capsys.readouterr().out == "a:\n  x=one  y=2\nb:\n  x=one\n  y=two\n"


def test_a_shown_recipe_is_a_whole_config(capsys, tmp_path):
    execute(["recipes", "show=vit_micro.toy", "--json"])
    (tmp_path / "c.yaml").write_text(last(capsys.readouterr().out)["yaml"])
    assert execute(["pretrain", f"config={tmp_path / 'c.yaml'}", "out=r", "--print-config"]) == 0
    assert "recipe = vit_micro.toy" in capsys.readouterr().out


def test_doctor(capsys):
    assert execute(["doctor", "data=toy://species?images=20&size=16", "--json"]) == 0
    facts = last(capsys.readouterr().out)
    assert facts["ok"] is True
    assert {"device", "torch", "advice", "precision", "worker_images_per_second"} <= facts.keys()
    assert facts["stages"].keys() == {"read", "decode", "geometry", "photometric"}
    assert facts["bound"] in {"data", "compute"}
    assert facts["step_images_per_second"] > 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2),
        (SentinelStop("x"), 3),
        (Interrupted("x"), 75),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_status_by_cause(error, status, capsys, monkeypatch):
    def broken(*_words, **_settings):
        raise error

    monkeypatch.setattr("dinoforge.cli.run_verb", broken)
    assert execute(["recipes", "--json"]) == status
    shown = capsys.readouterr()
    assert "error" in last(shown.out)
    assert ("Traceback" in shown.err) == (status == 1)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if "out" in inspect.signature(VERBS[verb]).parameters])
def test_an_empty_out_is_no_place(verb, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = [name for name, one in inspect.signature(VERBS[verb]).parameters.items() if one.default is one.empty]
    words = [f"{name.rstrip('_')}=x" for name in needed if name not in {"out", "settings"}]
    assert execute([verb, *words, "out="]) == 2
    assert capsys.readouterr().err == "dinoforge: out= is empty; give a name.\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["report", "run={}"], ["contains", "in={}", "images=x"], ["demo", "out={}"]])
def test_what_the_system_refuses_of_a_path_is_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert execute([word.format("x" * 300) for word in words]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("dinoforge: ") for line in shown) == 1
    assert shown[-1] == f"dinoforge: {'x' * 120}…: File name too long."


def test_what_is_not_there_may_be_a_bug(capsys, monkeypatch):
    def broken(*_words, **_settings):
        raise FileNotFoundError(2, "No such file or directory", "x")

    monkeypatch.setattr("dinoforge.cli.run_verb", broken)
    assert execute(["recipes"]) == 1


def test_errors_stay_on_one_line(capsys, monkeypatch):
    def broken(*_words, **_settings):
        raise ConfigError("first\n  second")

    monkeypatch.setattr("dinoforge.cli.run_verb", broken)
    execute(["recipes"])
    assert capsys.readouterr().err == "dinoforge: first second\n"


def test_numbers_json_cannot_hold_become_null(capsys):
    def verb():
        return {"x": float("nan"), "rows": [{"y": 1.0}]}

    run_verb(verb, [], as_json=True, print_config=False)
    assert last(capsys.readouterr().out) == {"x": None, "rows": [{"y": 1.0}]}
    run_verb(verb, [], as_json=False, print_config=False)
    assert capsys.readouterr().out == "x: nan\nrows:\n  y=1\n"


def test_what_is_served_is_told_first_and_then_waited_for(capsys):
    """Who reads the answer asks what it names while the process goes on."""
    told = []

    @dataclasses.dataclass
    class Served:
        url: str

        def wait(self):
            told.append(capsys.readouterr().out)

    def verb():
        return Served("http://127.0.0.1:8600/")

    run_verb(verb, [], as_json=True, print_config=False)
    assert [last(text) for text in told] == [{"url": "http://127.0.0.1:8600/"}]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verb", VERBS)
def test_python_has_every_verb_whatever_was_imported_before(verb, tmp_path, monkeypatch):
    """``evaluate``, ``report`` and ``recipes`` are folders too, and stay importable; a typo is told before a file is written."""
    monkeypatch.chdir(tmp_path)
    importlib.import_module("dinoforge.evaluate.knn")
    importlib.import_module("dinoforge.report.pca")
    for _ in range(2):
        with pytest.raises((ConfigError, TypeError), match=r"nonsense|missing \d required"):
            getattr(dinoforge, verb)(nonsense="1", out="never")
    assert not list(tmp_path.iterdir())
    import dinoforge.evaluate.knn as rules

    assert rules.knn_scores
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        dinoforge.pretrian  # noqa: B018


def test_home_is_home_where_the_shell_leaves_it_as_it_is(tmp_path, monkeypatch, capsys):
    """In any path, on the command line and from Python; a tilde elsewhere in a name stays."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert execute(["scan", "data=toy://species?images=4&size=32", "out=~/a/typed.parquet"]) == 0
    dinoforge.scan(data="toy://species?images=4&size=32", out="~/a/called.parquet")
    dinoforge.scan(data="toy://species?images=4&size=32", out="a~/stays.parquet")
    assert {path.name for path in (tmp_path / "home" / "a").glob("*.parquet")} == {"typed.parquet", "called.parquet"}
    assert (tmp_path / "a~" / "stays.parquet").exists()
    assert not (tmp_path / "~").exists()
    told = []
    _with_paths(lambda **words: told.append(words))(data="x.parquet,~/y,~z/w", count=3)
    assert told == [{"data": f"x.parquet,{tmp_path}/home/y,~z/w", "count": 3}]


def test_passwords_of_addresses_are_not_shown(capsys):
    """Neither by --print-config nor in errors, nor in what a run writes down."""
    secret = "https://user:hunter2@example.org/list.txt?X-Amz-Signature=abcdef"
    assert (
        execute(["pretrain", f"data={secret}", f"probe={secret}", f"retention={secret}", "out=r", "--print-config"])
        == 0
    )
    execute(["doctor", f"data={secret}", f"data={secret}"])
    shown = capsys.readouterr()
    assert "example.org/list.txt" in shown.out
    for word in ("hunter2", "abcdef"):
        assert word not in shown.out + shown.err
        assert word not in to_yaml(settle({"data": secret, "probe": secret, "retention": secret}).recipe)
