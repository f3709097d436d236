"""What the fields of a network may be, by the types that its class gives them."""

import contextlib
import functools
import math
import types
import typing
from collections.abc import Callable, Generator, Mapping
from typing import Any

from cnnjax.ops.errors import InputError, short_repr

_MOST = {"stage_sizes": 10_000, "block_sizes": 10_000, "grid": 256}
"""Of fields that say how many operations to build one after the other, which would take for ever."""
_NOT_CHECKED = ("name", "parent", "dtype", "param_dtype")


def check_fields(network: Callable[..., Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, of which each has the type that the network's class gives it; lists stand for tuples.

    Of our own networks, whole numbers are at least 1 (`num_classes` at least 0). Types that say little (`Any`, names or
    functions) are left to the network itself.

    Args:
      network: its class, or a `functools.partial` of it; nothing is known of the fields of other functions.
      fields: names to values.

    Raises:
      InputError: a value is of another type, no finite number, or too small or large.
    """
    while isinstance(network, functools.partial):
        network = network.func
    try:
        hints = typing.get_type_hints(network) if isinstance(network, type) else {}
    except (NameError, TypeError):  # written as text, of names that are not at hand
        hints = {}
    ours = network.__module__.startswith("cnnjax.")
    checked = {}
    for field, value in fields.items():
        least = 0 if field == "num_classes" else 1
        hint = hints.get(field, Any) if field not in _NOT_CHECKED else Any
        problem = _problem(value, hint, least if ours else None, _MOST.get(field, 2**63 - 1))
        if problem:
            raise InputError(f"{field}: received {short_repr(value)}; allowed: {problem}")
        checked[field] = tuple(value) if isinstance(value, list) and typing.get_origin(hint) is tuple else value
    return checked


def _problem(value: Any, hint: Any, least: int | None, most: int) -> str | None:
    """What is allowed by a type, where the value is not."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and (least is None or value >= least) and value <= most:
            return None
        above = f"{least} or more" if most == 2**63 - 1 else f"{least} to {most:,}"
        return "an integer" if least is None else f"an integer, {'0 (for features) or more' if least == 0 else above}"
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and abs(value) < math.inf else "a finite number"
    if hint is bool:
        return None if isinstance(value, bool) else "True or False"
    if origin is Callable or hint is Callable:
        return None if callable(value) else "a function"
    if isinstance(hint, types.UnionType) and str not in arguments:
        problems = [_problem(value, option, least, most) for option in arguments]
        return None if None in problems else " or ".join(dict.fromkeys(text for text in problems if text))
    if hint is type(None):
        return None if value is None else "None"
    if origin is tuple:
        return _tuple_problem(value, arguments, least, most)
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):  # which has no instances to ask for
        return None if isinstance(value, hint) else hint.__name__
    return None


def _tuple_problem(value: Any, arguments: tuple[Any, ...], least: int | None, most: int) -> str | None:
    many = arguments[-1] is ...
    hints = arguments[:1] * len(value) if many and isinstance(value, tuple | list) else arguments
    fits = isinstance(value, tuple | list) and len(value) == len(hints)
    if fits and all(_problem(one, hint, least, most) is None for one, hint in zip(value, hints, strict=True)):
        return None
    member = _problem(object(), arguments[0], least, most)
    return f"a tuple, each {member}" if many else f"a tuple of {len(arguments)}, each {member}"


@contextlib.contextmanager
def tracing(network: object, fields: Mapping[str, Any]) -> Generator[None]:
    """While it lasts, an error of our own code in a network that was given fields is an `InputError` that names them.

    For what fields are only found to be wrong by when the network is traced, such as widths that groups don't divide.
    Errors of other people's networks stay what they are, with their file and line.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not fields or not type(network).__module__.startswith("cnnjax."):
            raise
        given = ", ".join(f"{name}={short_repr(value)}" for name, value in fields.items())
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"model.fields: {type(network).__name__} can't be built with {given}: {reason:.300}"
        ) from error
