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
    nearest = near(str(received), allowed)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    return InputError(f"unknown {kind} {short_repr(received)}: {hint}allowed: {', '.join(allowed)}")


def near(received: str, allowed: Iterable[str]) -> str | None:
    """The name among `allowed` that was perhaps meant, if one is near.

    A name is near that differs by a few slips of the finger, or by something left out or put in at its ends; one that
    shares no more than a part, as "efficientnet_b0" and "densenet121" do, is not. What ends in all of the text goes
    before what begins with it: `resnet20` is `cifar_resnet20`, not `resnet200`.
    """
    by_name = {name.lower(): name for name in allowed}
    text = str(received).lower()
    ended = [name for name in by_name if len(text) >= 3 and name.endswith(f"_{text}")]
    begun = [name for name in by_name if len(text) >= 3 and name.startswith(text)]
    continued = [name for name in by_name if len(name) >= 3 and text.startswith(name)]
    few = 0.6 if len(text) <= 3 else 0.75  # one letter of three is more of the whole
    for names, cutoff in ((ended, 0.4), (begun, 0.4), (by_name, few), (continued, 0.4)):
        found = difflib.get_close_matches(text, names, n=1, cutoff=cutoff)
        if found:
            return by_name[found[0]]
    return None


def short_repr(value: object) -> str:
    """`repr` on one line of at most 80 characters.

    Raises:
      InputError: it has a number with more digits than Python prints.
    """
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        raise InputError("received a number of thousands of digits; allowed: fewer") from None
    return text if len(text) <= 80 else text[:77] + "..."


def as_array(name: str, value: ArrayLike) -> Array:
    """`value` as an array; a `TypeError` that names the argument for None, text, a ragged list and the like."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        received = " ".join(repr(value).split())
        raise TypeError(f"{name} must be an array of numbers, not ragged: got {received:.80}") from None
