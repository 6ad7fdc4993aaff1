"""Signatures executed in the tests: jaxtyping's import hook with a decorator of our own, which checks the same and costs less.

The hook decorates every function with ``jaxtyping.jaxtyped``, which binds the arguments of each call, and checks them before it
and again after it. Here beartype wraps the function itself, so that arguments and answer are checked once each; the sizes of axes
are remembered through a call where its annotations have axes at all.
"""

import functools
import inspect
import types
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_given = jaxtyping.jaxtyped
# An int may stand where a float is asked for (PEP 484's tower), as in every annotated call.
_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install():
    """Execute the signatures of ``dinoforge``, as far as it is imported after this call."""
    jaxtyping.jaxtyped = checked  # what the hook's decorators are is looked up when a module is imported
    return jaxtyping.install_import_hook("dinoforge", f"{__name__}._typed")


def checked(thing=None, *, typechecker=_typed):
    if thing is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(thing):
        if is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = checked(thing.__init__, typechecker=typechecker)
        return thing
    if not isinstance(thing, types.FunctionType) or inspect.isgeneratorfunction(thing):
        return _given(thing, typechecker=typechecker)
    hints = {name: _meaning(hint, thing.__globals__) for name, hint in thing.__annotations__.items()}
    axes = [part.dim_str for hint in hints.values() for part in _arrays(hint)]
    if any("{" in axis for axis in axes):  # a size that is computed from the arguments
        return _given(thing, typechecker=typechecker)
    return _wrapped(thing, _typed(_with_hints(thing, hints)), axes)


def _wrapped(function, checked, axes):
    config, context = jaxtyping.config, _given

    @functools.wraps(function)
    def plain(*args, **kwargs):
        return (function if config.jaxtyping_disable else checked)(*args, **kwargs)

    @functools.wraps(function)
    def shaped(*args, **kwargs):
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        with context("context"):
            return checked(*args, **kwargs)

    return shaped if axes else plain


def _with_hints(function, hints):
    """The same function, whose annotations are no strings."""
    same = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    functools.update_wrapper(same, function)
    del same.__wrapped__
    same.__kwdefaults__, same.__annotations__ = function.__kwdefaults__, hints
    return same


def _meaning(hint, names):
    """What an annotation says; of a name that is imported for type checkers alone, anything."""

    def holder(value):
        del value

    holder.__annotations__ = {"value": hint}
    try:
        return get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:
        return Any


def _arrays(hint):
    """The arrays with axes in an annotation."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return [hint]
    return [found for part in get_args(hint) for found in _arrays(part)]
