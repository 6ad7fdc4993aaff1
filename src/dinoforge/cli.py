"""The command line: ``dinoforge VERB key=value …``. It parses, calls one function of ``runs``, and speaks plainly of errors.

Exit status: 0 done; 2 a user's error, one line; 3 stopped by the sentinel; 75 interrupted after a checkpoint; 130 ended by
Ctrl-C with nothing to go on with; 1 our bug.
"""

from __future__ import annotations

import dataclasses
import errno
import inspect
import json
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, Interrupted, RankLost, SentinelStop, UserError, closest, unknown
from dinoforge.base.files import finite
from dinoforge.data.sources.options import shown
from dinoforge.recipes.settle import setting_lines, settle

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""
_REFUSALS = {
    errno.EACCES, errno.EDQUOT, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC, errno.EPERM, errno.EROFS, errno.ESTALE
}  # fmt: skip
"""What a system says of a path that no program could do anything about."""
_LONG = 120
"""Characters of a path that are shown."""


def parse(settings: Sequence[str]) -> dict[str, str]:
    """``["plan.images=5M", "data=photos/"]`` as a dictionary.

    Raises:
        ConfigError: A word without ``=``, or the same key twice.
    """
    found: dict[str, str] = {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"Settings are written key=value; got {word!r}.")
        if key in found:
            raise ConfigError(f"{key} is given twice: {shown(found[key])!r} and {shown(value)!r}.")
        found[key] = value
    return found


def run_verb(function: Callable[..., Any], settings: Sequence[str], *, as_json: bool, print_config: bool) -> None:
    """Call a verb's function with the settings as keywords and print what it returns."""
    values = parse(settings)
    signature = inspect.signature(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = [name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
    # `in=` and the like are keywords of Python; the function calls them `in_`.
    arguments = {f"{key}_" if f"{key}_" in named else key: value for key, value in values.items()}
    extra = [key for key in arguments if key not in named]
    if extra and not open_ended:
        raise unknown("setting", extra[0], [name.rstrip("_") for name in named])
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty and name not in arguments:
            raise ConfigError(f"{name.rstrip('_')}= is required. See `dinoforge {function.__name__} --help`.")
    if print_config:
        _print_config(_described(function, arguments), as_json=as_json)
        return
    result = function(**arguments)
    if dist.rank():
        return  # the first rank says it
    facts = {name: _plain(value) for name, value in result.items()} if isinstance(result, Mapping) else _plain(result)
    if as_json:
        print(json.dumps(finite(facts), default=str), flush=True)
    else:
        print(result.text() if hasattr(result, "text") else _plainly(facts), flush=True)
    if hasattr(result, "wait"):
        result.wait()  # what it answered with is there for as long as this process


def _plain(value: Any) -> Any:
    """A dataclass as a mapping; anything else as it is."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _described(function: Callable[..., Any], arguments: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The settings a verb would run with, each with where its value came from."""
    from dinoforge.verbs import table

    if function.__name__ in table.VERBS_WITH_RECIPE:
        own = {"out"} | {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        settled = settle({name: value for name, value in arguments.items() if name not in own})
        return settled.values()
    if function.__name__ in table.VERBS_WITH_SETTINGS:
        return dict(table.VERBS_WITH_SETTINGS[function.__name__].described(arguments))
    found = {
        name.rstrip("_"): (arguments.get(name, parameter.default), "command line" if name in arguments else "default")
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return found | {name: (value, "command line") for name, value in arguments.items() if name.rstrip("_") not in found}


def _print_config(values: Mapping[str, tuple[Any, str]], *, as_json: bool) -> None:
    if as_json:
        config = {name: {"value": value, "origin": origin} for name, (value, origin) in values.items()}
        print(json.dumps({"config": finite(config)}, default=str))
        return
    print("\n".join(f"{name} = {value}  # {origin}" for name, (value, origin) in values.items()))


def _plainly(facts: Any) -> str:
    """Facts for a person: a line each, nested ones indented."""
    if not isinstance(facts, Mapping):
        return str(facts)
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{name}:", textwrap.indent(_plainly(value), "  ")]
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            lines += [f"{name}:", *(f"  {row}" for row in _rows(value))]
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
            lines += [f"{name}:", *(f"  {part}" for part in value)]
        else:
            lines.append(f"{name}: {_short(value)}")
    return "\n".join(lines)


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line each: what is nothing but texts in columns, everything else with its names."""
    if len({tuple(row) for row in rows}) > 1 or not all(isinstance(text, str) for row in rows for text in row.values()):
        return ["  ".join(f"{name}={_short(value)}" for name, value in row.items()) for row in rows]
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    return ["  ".join(text.ljust(widths[name]) for name, text in row.items()).rstrip() for row in rows]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Settings = Annotated[list[str] | None, typer.Argument(metavar="key=value …", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print every setting and where it came from; run nothing.")
]


def _add(function: Callable[..., Any]) -> None:
    """Make a verb of a function: its keywords are the keys, its docstring the help."""

    def command(settings: Settings = None, json: Json = False, print_config: PrintConfig = False) -> None:
        run_verb(function, settings or [], as_json=json, print_config=print_config)

    app.command(name=function.__name__, help=_help(function))(command)


def _help(function: Callable[..., Any]) -> str:
    """The docstring, then the keys of the recipe where the verb takes them. ``\\b`` keeps click from re-wrapping."""
    from dinoforge.verbs import table

    text = inspect.getdoc(function) or ""
    text = text.replace("Args:", "Keys:").split("\n\nRaises:")[0].split("\n\nReturns:")[0]
    if function.__name__ in table.VERBS_WITH_RECIPE:
        text += "\n\nRecipe settings (defaults; a recipe changes some, see `dinoforge recipes show=NAME`):\n\n"
        text += "\n".join(setting_lines())
    elif function.__name__ in table.VERBS_WITH_SETTINGS:
        text += "\n\nSettings (defaults):\n\n" + "\n".join(table.VERBS_WITH_SETTINGS[function.__name__].lines())
    return "\n\n".join("\b\n" + paragraph for paragraph in text.split("\n\n"))


def _complain(error: BaseException | str, *, as_json: bool) -> None:
    """One line. What all ranks know of is said by the first of them; what happened to one alone, by that one."""
    line, happened_to = " ".join(str(error).split()), getattr(error, "rank", None)
    if dist.rank() and (happened_to is not None or isinstance(error, (Interrupted, SentinelStop))):
        return
    if dist.rank() > 1 and isinstance(error, RankLost):  # the first two, for the first may be the one that is lost
        return
    place = happened_to or dist.rank()
    if as_json and dist.rank() == 0:
        print(json.dumps({"error": line}))
    print(f"dinoforge: {f'rank {place}: ' if place else ''}{line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of the command ``dinoforge``."""
    words = list(sys.argv[1:] if argv is None else argv)
    sys.exit(execute(words))


def execute(words: list[str]) -> int:
    """Run one command line and return its exit status; never raises."""
    as_json = "--json" in words
    try:
        verbs = _build()
        verb = next((word for word in words if not word.startswith("-")), None)
        if verb is not None:
            _check(verb, verbs)
        result = app(words or ["--help"], standalone_mode=False, prog_name="dinoforge")
        if result == _INTERRUPTED:  # the parser catches Ctrl-C itself
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except UserError as error:
        _complain(error, as_json=as_json)
        return 2
    except SentinelStop as error:
        _complain(error, as_json=as_json)
        return 3
    except Interrupted as error:
        _complain(error, as_json=as_json)
        return 75
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted.", as_json=as_json)
        return _INTERRUPTED
    except BrokenPipeError:
        return 141
    except Exception as error:
        return _unforeseen(error, as_json=as_json)


def _unforeseen(error: Exception, *, as_json: bool) -> int:
    """Tell what the parser or the operating system refuses in a line; everything else is a bug of ours."""
    if hasattr(error, "format_message"):  # the parser's own complaint: an unknown --option
        _complain(error.format_message(), as_json=as_json)
        return 2
    if isinstance(error, OSError) and error.errno in _REFUSALS and error.filename is not None:
        name = str(error.filename)
        _complain(f"{name if len(name) <= _LONG else name[:_LONG] + '…'}: {error.strerror}.", as_json=as_json)
        return 2
    traceback.print_exc()
    _complain(f"this is a bug in dinoforge, please report it: {type(error).__name__}: {error}", as_json=as_json)
    return 1


def _check(verb: str, known: Sequence[str]) -> None:
    """Refuse what is no verb, or one that several processes cannot do as one.

    Raises:
        ConfigError: It is.
    """
    from dinoforge.verbs import table

    if verb not in known:
        raise ConfigError(f"No such verb {verb!r}.{closest(verb, known)} Verbs: {', '.join(known)}.")
    if dist.launched() and verb not in table.VERBS_ON_RANKS:
        raise ConfigError(f"{verb} runs in one process; start it without torchrun, or unset WORLD_SIZE.")


def _build() -> list[str]:
    """Register the verbs, once; their names."""
    from dinoforge.verbs import table

    if not app.registered_commands:
        for function in table.VERBS.values():
            _add(function)
    return list(table.VERBS)


if __name__ == "__main__":
    main()
