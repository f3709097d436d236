"""Operations as single primitives of XLA's, for whoever reads a traced function rather than runs it."""

import contextlib
import contextvars
from collections.abc import Generator

_wanted = contextvars.ContextVar("primitives_wanted", default=False)


@contextlib.contextmanager
def as_primitives() -> Generator[None]:
    """While it lasts, a convolution is traced as `conv_general_dilated` and max pooling as `reduce_window_max`.

    The convolution stands under `jax.named_scope("by_NAME")`, with the name of the implementation that would compute
    it. `cnnjax.analysis` traces networks so; the values are the same.
    """
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> bool:
    """Whether operations are being traced as primitives."""
    return _wanted.get()
