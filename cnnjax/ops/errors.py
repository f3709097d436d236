"""How cnnjax tells a person what was wrong with an input."""

import difflib
from collections.abc import Iterable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


class InputError(ValueError):
    """A mistake in what the caller gave: one line that names the argument, what was received and what is allowed.

    Commands print its message as their only output and exit with status 2.
    """


def unknown(kind: str, received: object, allowed: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not among `allowed`, with the nearest one suggested.

    Args:
      kind: what the name stands for, such as "model".
      received: the name that was given.
      allowed: every name that would have been right.
    """
    allowed = list(allowed)
    in_lower_case = {name.lower(): name for name in allowed}
    nearest = difflib.get_close_matches(str(received).lower(), in_lower_case, n=1, cutoff=0.5)
    hint = f"did you mean {in_lower_case[nearest[0]]!r}? " if nearest else ""
    return InputError(f"unknown {kind} {received!r}: {hint}allowed: {', '.join(allowed)}")


def as_array(name: str, value: ArrayLike) -> Array:
    """`value` as an array; a `TypeError` that names the argument for None, text, a ragged list and the like."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        received = " ".join(repr(value).split())
        raise TypeError(f"{name} must be an array of numbers, not ragged: got {received:.80}") from None
