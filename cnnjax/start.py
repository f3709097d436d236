"""The first moments of a command's process, before the imports that take seconds and start threads."""

import sys

from cnnjax import interrupts
from cnnjax.memory import keep_freed_memory


def begin() -> None:
    """Sees to memory and to Ctrl-C, and imports JAX, which may refuse what the environment tells it: one line then."""
    keep_freed_memory()
    interrupts.begin()
    try:
        import jax  # noqa: F401
    except ValueError as error:  # "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"
        print(f"error: environment: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
