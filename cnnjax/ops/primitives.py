"""Operations as single primitives of XLA's, for whoever reads a traced function rather than runs it."""

import contextlib
from collections.abc import Generator

import jax

_wanted = jax.make_user_context(False)  # JAX's caches of traced functions know it
BY = "cnnjax_by_"
"""What the scope of a convolution begins with; the name of its implementation follows."""


@contextlib.contextmanager
def as_primitives() -> Generator[None]:
    """While it lasts, convolution is traced as `conv_general_dilated`, and pooling as `reduce_window_max` and the like.

    The convolution stands under a `jax.named_scope` of `BY` and the implementation that would compute it. Functions
    that are traced meanwhile have the same values up to rounding; `cnnjax.analysis` reads networks so.
    """
    with _wanted(True):
        yield


def wanted() -> bool:
    """Whether operations are being traced as primitives."""
    return _wanted.value
